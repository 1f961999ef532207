"""Copies of a model whose weights are lots: an explanation that does not change with them explains nothing.

Model parameter randomisation (Adebayo et al., NeurIPS 2018).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, numpy_helper


def randomise_body(model: ModelProto, *, seed: int = 0) -> ModelProto:
    """Return a copy whose convolutions and matrices, those of the final layer aside, are shuffled.

    Shuffled, so that every layer's numbers stay what they were and nothing overflows or dies.

    Args:
        model: explained or plain.
        seed: of the lots.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    random = np.random.default_rng(seed)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and not tensor.name.startswith(_OURS):
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array(random.permutation(array.ravel()).reshape(array.shape), tensor.name)
            )
    return copy


_OURS = ("class_features/", "explanatory_graph/", "parts/", "pellucid.")


def randomise_head(weight: npt.NDArray[np.float32], *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return a final layer's weights shuffled among all classes and features."""
    return np.asarray(np.random.default_rng(seed).permutation(weight.ravel()).reshape(weight.shape))
