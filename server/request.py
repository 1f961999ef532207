"""From an ExplainRequest's pictures to a checked batch for the model; whatever does not fit is named."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError
from analyzers.geometry import Frame
from analyzers.manifest import ModelInput
from analyzers.pixels import decode, to_model_input
from pellucid.v1 import explain_pb2 as pb


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold.

    Attributes:
        max_images: pictures.
        max_pixels: pixels per picture.
    """

    max_images: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures ready for the model: float32 (batch, 3, height, width), and the frame of each as it was sent."""

    images: npt.NDArray[np.float32]
    frames: list[Frame]


_TYPES: dict[int, np.dtype[Any]] = {
    pb.ImageTensor.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.ImageTensor.DATA_TYPE_FLOAT32: np.dtype("<f4"),
}


def read_batch(request: pb.ExplainRequest, model: ModelInput, limits: Limits) -> Batch:
    """Decode and check the pictures of a request.

    Raises:
        InvalidInputError: naming the field, what was expected and what came.
    """
    if request.encoded_images and request.HasField("tensor"):
        raise InvalidInputError("encoded_images", "and tensor are both set; expected exactly one of them")
    if request.HasField("tensor"):
        return _read_tensor(request.tensor, model, limits)
    if not request.encoded_images:
        raise InvalidInputError("encoded_images", "holds no picture and tensor is not set; expected one of them")
    _check_count("encoded_images", len(request.encoded_images), limits)
    pictures = [
        decode(
            encoded,
            model.height,
            model.width,
            max_pixels=limits.max_pixels,
            field=f"encoded_images[{number}]",
        )
        for number, encoded in enumerate(request.encoded_images)
    ]
    return Batch(
        to_model_input(np.stack([picture.pixels for picture in pictures])),
        [_frame(model, picture.source_width, picture.source_height) for picture in pictures],
    )


def _check_count(field: str, count: int, limits: Limits) -> None:
    if count > limits.max_images:
        raise InvalidInputError(
            field,
            f"holds {count} pictures; at most {limits.max_images} go into one request, send the rest in another",
        )


def _frame(model: ModelInput, width: int, height: int) -> Frame:
    return Frame(scale_x=width / model.width, scale_y=height / model.height, width=width, height=height)


def _read_tensor(tensor: pb.ImageTensor, model: ModelInput, limits: Limits) -> Batch:
    shape = list(tensor.shape)
    expected = f"[batch, {model.height}, {model.width}, 3]"
    if len(shape) != 4 or shape[1:] != [model.height, model.width, 3]:
        raise InvalidInputError("tensor.shape", f"is {str(shape[:8])[:200]}; expected {expected}")
    if shape[0] < 1:
        raise InvalidInputError("tensor.shape", f"is {shape}; the batch is empty, expected {expected}")
    _check_count("tensor.shape", shape[0], limits)
    kind = _TYPES.get(tensor.data_type)
    if kind is None:
        raise InvalidInputError(
            "tensor.data_type", f"is {tensor.data_type}; expected DATA_TYPE_UINT8 or DATA_TYPE_FLOAT32"
        )
    data = tensor.data
    size = math.prod(shape) * kind.itemsize
    if len(data) != size:
        raise InvalidInputError(
            "tensor.data", f"has {len(data)} bytes; {size} are expected for shape {shape} of {kind.name}"
        )
    numbers = np.frombuffer(data, kind).reshape(shape)
    frames = [_frame(model, model.width, model.height)] * shape[0]
    if kind == np.uint8:
        return Batch(to_model_input(numbers), frames)
    if not np.isfinite(numbers).all():
        raise InvalidInputError("tensor.data", "holds NaN or infinite numbers; expected numbers from 0 to 1")
    low, high = float(numbers.min()), float(numbers.max())
    if low < 0 or high > 1:
        raise InvalidInputError("tensor.data", f"ranges from {low:.4g} to {high:.4g}; expected numbers from 0 to 1")
    return Batch(np.ascontiguousarray(numbers.transpose(0, 3, 1, 2), np.float32), frames)
