"""Smaller copies of an explained model: half precision, eight bits, or run by OpenVINO."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper

from analyzers.errors import ModelError
from analyzers.graph import Graph, ancestors
from analyzers.manifest import Manifest
from analyzers.plain import manifest_of
from analyzers.runtime import open_session

Form = Literal["fp16", "int8", "openvino"]
Float32Array = npt.NDArray[np.float32]
Run = Callable[[Float32Array], Mapping[str, npt.NDArray[Any]]]


def to_half(model: ModelProto) -> ModelProto:
    """Return the model with half-precision weights and arithmetic; inputs and outputs stay float32.

    On a processor ONNX Runtime computes most of it in single precision all the same: what is tested there is what the
    rounding of weights and of values between operators does.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(model)
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    converted: ModelProto = convert_float_to_float16(copy, keep_io_types=True, disable_shape_infer=False)
    return converted


def to_eight_bits(model: ModelProto, images: Float32Array) -> ModelProto:
    """Return the model with convolutions of eight bits, calibrated on pictures; explanations stay float32.

    Args:
        model: an explained model.
        images: (pictures, 3, height, width) in 0..1.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    known = manifest_of(model)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out one picture after the other."""

        def __init__(self) -> None:
            self.rows = iter(images)

        def get_next(self) -> dict[str, Float32Array] | None:
            row = next(self.rows, None)
            return None if row is None else {known.input.tensor: row[None]}

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        target = Path(folder) / "model.onnx"
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it advises to pre-process, through the root logger
        try:
            quantize_static(
                model,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=_behind_the_map(model, known),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # the quantiser raises whatever it meets
            raise ModelError(f"the model cannot be quantised: {str(error)[:200]}") from None
        finally:
            root.setLevel(level)
        return ModelProto.FromString(target.read_bytes())


def _behind_the_map(model: ModelProto, known: Manifest) -> list[str]:
    """Return the convolutions that come after the map behind the features, a final layer of 1x1 among them."""
    section = known.class_features
    source = None if section is None else section.map or section.pooled
    if source is None:
        return []
    before = {node.output[0] for node in ancestors(Graph(model), source)}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.output[0] not in before]


def runner(model: ModelProto) -> Run:
    """Return what runs a model in ONNX Runtime on the processor."""
    known = manifest_of(model)
    session = open_session(model.SerializeToString())
    return lambda images: session.run_images(known, images)


def openvino_runner(model: ModelProto) -> tuple[Run, str]:
    """Return what runs a model in OpenVINO, and which version that is.

    Raises:
        ModelError: it is not installed, or cannot load the model.
    """
    try:
        import openvino  # type: ignore[import-not-found]
    except ImportError:
        raise ModelError("OpenVINO is not installed; `pip install openvino` beside pellucid brings it") from None
    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    except Exception as error:  # OpenVINO raises RuntimeError with pages of text
        raise ModelError(f"OpenVINO cannot load the model: {' '.join(str(error).split())[:200]}") from None
    names = [output.get_any_name() for output in compiled.outputs]

    def run(images: Float32Array) -> Mapping[str, npt.NDArray[Any]]:
        answer = compiled(images)
        return {name: np.asarray(answer[place]) for place, name in enumerate(names)}

    return run, f"openvino {openvino.__version__}"


def named(model: ModelProto) -> ModelProto:
    """Return the model with a name for every node, which the quantiser needs to leave some of them out."""
    copy = ModelProto()
    copy.CopyFrom(model)
    taken = {node.name for node in copy.graph.node}
    for number, node in enumerate(copy.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{number}" if f"{node.op_type}_{number}" not in taken else f"node.{number}"
    helper.set_model_props(copy, {entry.key: entry.value for entry in model.metadata_props})
    return copy
