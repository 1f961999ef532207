"""The model as every peer runs it: the session options of our own server, all outputs that have a row per picture."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort

MAX_BATCH = 8


class Model:
    """A model file.

    Attributes:
        shapes: of its outputs by name, without the batch.
        types: of their numbers.
        input_shape: of a picture.
    """

    def __init__(self, file: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        outputs = [output for output in self.session.get_outputs() if isinstance(output.shape[0], str)]
        self.names = [output.name for output in outputs]
        self.input_shape = tuple(self.session.get_inputs()[0].shape[1:])
        tried = self.run(np.zeros((1, *self.input_shape), np.float32))
        self.shapes = {name: value.shape[1:] for name, value in tried.items()}
        self.types = {name: value.dtype for name, value in tried.items()}

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run (batch, 3, height, width) and return outputs by name."""
        return dict(zip(self.names, self.session.run(self.names, {"image": images}), strict=True))
