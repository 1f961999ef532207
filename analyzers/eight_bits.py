"""Eight bits: a copy whose convolutions multiply integers, calibrated on real pictures."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from analyzers.body import body, outside
from analyzers.errors import ModelError
from analyzers.plain import manifest_of
from analyzers.progress import track

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
Place = Literal["first", "last"]
PLACES: tuple[Place, ...] = get_args(Place)
BATCH = 8

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a model is brought to eight bits; docs/portable.md says what each choice costs and brings.

    Attributes:
        method: where the range of an activation ends: at the extremes that were seen, or before.
        keep: convolutions that stay float32.
        symmetric: signed activations around 0, as GPUs want them; slow on x86 processors.
        reduced: weights of 7 bits, for processors whose sums of products saturate (x86 without VNNI).
        per_channel: a scale for each filter's weights, instead of one a layer.
        joined: activations and poolings between convolutions work on integers, too.
    """

    method: Method = "minmax"
    keep: tuple[Place, ...] = ()
    symmetric: bool = False
    reduced: bool = False
    per_channel: bool = True
    joined: bool = True


def to_eight_bits(model: ModelProto, images: Float32Array, scheme: Scheme | None = None) -> ModelProto:
    """Return the model with convolutions of eight bits; what follows the conv map stays float32.

    Args:
        model: explained, every node with a name.
        images: (pictures, 3, height, width) in 0..1 that ranges are taken from.
        scheme: how.

    Raises:
        ModelError: there is no convolution, or the quantiser fails.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    scheme = scheme or Scheme()
    methods = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
    copy = ModelProto()
    copy.CopyFrom(model)  # the quantiser moves the weights of what it is given into files
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "model.onnx"
        try:
            quantize_static(
                copy,
                target,
                _Reader(model, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu", "Clip", "MaxPool"] if scheme.joined else ["Conv"],
                nodes_to_exclude=_excluded(model, scheme),
                per_channel=scheme.per_channel,
                reduce_range=scheme.reduced,
                activation_type=QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[methods[scheme.method]],
                extra_options={"ActivationSymmetric": scheme.symmetric},
            )
        except Exception as error:  # the quantiser raises whatever it meets
            raise ModelError(f"the model cannot be quantised: {' '.join(str(error).split())[:200]}") from None
        return ModelProto.FromString(target.read_bytes())


def _excluded(model: ModelProto, scheme: Scheme) -> list[str]:
    """Return the names of all nodes that stay float32."""
    inside = body(model, manifest_of(model))
    convolutions = [node.name for node in inside if node.op_type == "Conv"]
    if not convolutions:
        raise ModelError("the model has no convolution before its features, and nothing else is brought to eight bits")
    kept = {"first": convolutions[0], "last": convolutions[-1]}
    return [node.name for node in outside(model, inside)] + [kept[place] for place in scheme.keep]


class _Reader:
    """Hands the pictures to the quantiser, as many at a time as the model takes."""

    def __init__(self, model: ModelProto, images: Float32Array) -> None:
        self.tensor = manifest_of(model).input.tensor
        first = model.graph.input[0].type.tensor_type.shape.dim[0]
        size = first.dim_value or BATCH
        blocks = [images[start : start + size] for start in range(0, len(images), size)]
        if first.dim_value:
            blocks = [block for block in blocks if len(block) == size]
        self.blocks: Iterator[Float32Array] = iter(track(blocks, "calibrating", len(blocks)))

    def get_next(self) -> dict[str, Float32Array] | None:
        """Return the next ones by input, None after the last."""
        block = next(self.blocks, None)
        return None if block is None else {self.tensor: block}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser from printing, and from giving advice through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
