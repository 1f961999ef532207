"""Smaller copies of an explained model at work: in ONNX Runtime, or the same file in OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from analyzers.errors import ModelError
from analyzers.plain import manifest_of
from analyzers.runtime import open_session

Float32Array = npt.NDArray[np.float32]
Run = Callable[[Float32Array], Mapping[str, npt.NDArray[Any]]]


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
        # By itself it takes the fastest precision of the processor, and logits and peaks move.
        precise = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", precise)
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
    return copy
