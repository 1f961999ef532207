"""Typed tensor elements as arrays; NumPy's own way of reading a repeated field is slow and stalls other threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analyzers.errors import InvalidInputError

if TYPE_CHECKING:
    from server.oip_messages import oip

STEP = 1 << 16  # numbers read before another thread may have its turn: about a millisecond


def floats(contents: oip.InferTensorContents) -> npt.NDArray[np.float32]:
    """Return fp32_contents, the only field filled, as they are serialised: little-endian, one behind the other."""
    contents.DiscardUnknownFields()
    data = contents.SerializeToString()
    return np.frombuffer(data, "<f4", offset=len(data) - 4 * len(contents.fp32_contents))


def small_numbers(contents: oip.InferTensorContents, field: str) -> npt.NDArray[np.uint8]:
    """Return uint_contents, the only field filled.

    Raises:
        InvalidInputError: one of them is over 255.
    """
    numbers = contents.uint_contents
    try:
        data = b"".join(bytes(numbers[start : start + STEP]) for start in range(0, len(numbers), STEP))
    except ValueError:
        raise InvalidInputError(field, f"holds {max(numbers)}; expected numbers from 0 to 255") from None
    return np.frombuffer(data, np.uint8)
