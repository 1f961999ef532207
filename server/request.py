"""From an ExplainRequest's pictures to a checked batch for the model; whatever does not fit is named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError
from analyzers.explain import Wanted
from analyzers.geometry import Frame
from analyzers.manifest import ModelInput
from analyzers.pixels import decode
from pellucid.v1 import explain_pb2 as pb

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


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
    """Pictures that fit the model.

    Attributes:
        images: uint8 (batch, height, width, 3), or float32 (batch, 3, height, width) in 0..1.
        frames: of each as it was sent.
        sources: the bytes of each as it was sent.
    """

    images: Images
    frames: list[Frame]
    sources: Sequence[bytes | memoryview]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each as it was sent, hexadecimal; takes longer than anything else here."""
        return [sha256(source).hexdigest() for source in self.sources]


def assemble(images: Sequence[Images]) -> npt.NDArray[np.float32]:
    """Return the pictures of several batches as the model's own float32 (batch, 3, height, width) in 0..1."""
    if len(images) == 1 and images[0].dtype == np.float32:
        return np.ascontiguousarray(images[0], np.float32)
    shapes = [part.shape if part.dtype == np.float32 else (len(part), 3, *part.shape[1:3]) for part in images]
    whole = np.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)
    start = 0
    for part in images:
        rows = whole[start : start + len(part)]
        if part.dtype == np.uint8:
            np.divide(part.transpose(0, 3, 1, 2), np.float32(255), out=rows, dtype=np.float32)
        else:
            rows[...] = part
        start += len(part)
    return whole


_TYPES: dict[int, np.dtype[Any]] = {
    pb.ImageTensor.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.ImageTensor.DATA_TYPE_FLOAT32: np.dtype("<f4"),
}


def read_wanted(request: pb.ExplainRequest) -> Wanted:
    """Read which part of an explanation a request wants.

    Raises:
        InvalidInputError: naming the field, what was expected and what came.
    """
    if request.evidence not in pb.EvidenceType.values():
        raise InvalidInputError("evidence", f"is {request.evidence}; expected one of {pb.EvidenceType.keys()}")
    return Wanted(
        frozenset(request.rows),
        request.top_k_classes,
        request.top_k_reasons,
        request.max_nodes,
        request.min_percentile,
        bool(request.evidence),
    )


def read_batch(request: pb.ExplainRequest | pb.WhatIfRequest, model: ModelInput, limits: Limits) -> Batch:
    """Decode and check the pictures of a request.

    Raises:
        InvalidInputError: naming the field, what was expected and what came.
    """
    if isinstance(request, pb.WhatIfRequest):
        one = request.encoded_image
        field, pictures, names = "encoded_image", [one] if one else [], ["encoded_image"]
        limits = Limits(1, limits.max_pixels)
    else:
        field, pictures = "encoded_images", list(request.encoded_images)
        names = [f"encoded_images[{number}]" for number in range(len(pictures))]
    if pictures and request.HasField("tensor"):
        raise InvalidInputError(field, "and tensor are both set; expected exactly one of them")
    if request.HasField("tensor"):
        return _read_tensor(request.tensor, model, limits)
    if not pictures:
        raise InvalidInputError(field, "holds no picture and tensor is not set; expected one of them")
    _check_count(field, len(pictures), limits)
    decoded = [
        decode(encoded, model.height, model.width, max_pixels=limits.max_pixels, field=name)
        for encoded, name in zip(pictures, names, strict=True)
    ]
    return Batch(
        np.stack([picture.pixels for picture in decoded]),
        [_frame(model, picture.source_width, picture.source_height) for picture in decoded],
        pictures,
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
    step = size // shape[0]
    sources = [memoryview(data)[start : start + step] for start in range(0, size, step)]
    if kind == np.uint8:
        return Batch(numbers, frames, sources)
    low, high = float(numbers.min()), float(numbers.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN is both the least and the greatest
        raise InvalidInputError("tensor.data", "holds NaN or infinite numbers; expected numbers from 0 to 1")
    if low < 0 or high > 1:
        raise InvalidInputError("tensor.data", f"ranges from {low:.4g} to {high:.4g}; expected numbers from 0 to 1")
    return Batch(numbers.transpose(0, 3, 1, 2).astype(np.float32, copy=False), frames, sources)
