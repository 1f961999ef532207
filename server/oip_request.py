"""From a ModelInferRequest to what is asked and to checked pictures; whatever does not fit is named.

Counts come before contents and Python's integers before arrays, so that a request made to be large costs little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analyzers.errors import InvalidInputError
from analyzers.pixels import decode
from server.errors import UnsupportedError, clip
from server.oip_contents import floats, small_numbers
from server.oip_messages import oip
from server.request import Images, Limits

if TYPE_CHECKING:
    from analyzers.manifest import ModelInput
    from server.model import ExplainedModel

MAX_ID = 1024
SMALL_BYTES = 1 << 20
SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")

Parameters = Mapping[str, oip.InferParameter]


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks for.

    Attributes:
        datatype: of its pictures: FP32, UINT8 or BYTES.
        pictures: how many.
        outputs: names of the outputs that are wanted, in order.
        best: how many classes stand for the scores, 0 for the scores themselves.
        timeout_seconds: how long the answer is worth waiting for; None for no limit.
        marked: whether the answer is to say that no other one follows.
    """

    datatype: str
    pictures: int
    outputs: tuple[str, ...]
    best: int
    timeout_seconds: float | None
    marked: bool


def read_question(request: oip.ModelInferRequest, model: ExplainedModel, limits: Limits) -> Question:
    """Check everything but the pictures' bytes.

    Raises:
        InvalidInputError: naming the field, what was expected and what came.
        UnsupportedError: it wants sequences or shared memory.
    """
    expected = model.manifest.input
    if (count := len(request.inputs)) != 1:
        raise InvalidInputError("inputs", f"holds {count} tensors; expected exactly one, '{expected.tensor}'")
    if (count := len(request.outputs)) > len(model.outputs):
        raise InvalidInputError("outputs", f"asks for {count}; the model has {len(model.outputs)}, each counts once")
    if (size := len(request.id)) > MAX_ID:
        raise InvalidInputError("id", f"has {size} characters; at most {MAX_ID} come back, send a shorter one")
    timeout, marked = _read_parameters(request.parameters) if len(request.parameters) else (None, False)
    tensor = request.inputs[0]
    if tensor.name != expected.tensor:
        raise InvalidInputError(
            "inputs[0].name", f"is '{clip(tensor.name, 80)}'; the model's input is '{expected.tensor}'"
        )
    if len(tensor.parameters):
        _refuse_shared_memory("inputs[0]", tensor.parameters)
    pictures = _read_shape(tensor, expected, limits)
    _check_filled(request, tensor)
    outputs, best = _read_outputs(request, model) if len(request.outputs) else (model.outputs, 0)
    return Question(tensor.datatype, pictures, outputs, best, timeout, marked)


def takes_long(question: Question, expected: ModelInput) -> bool:
    """Whether reading these pictures would hold up others: decoding does, and checking large tensors."""
    size = question.pictures * 3 * expected.height * expected.width
    return question.datatype == "BYTES" or size * (4 if question.datatype == "FP32" else 1) > SMALL_BYTES


def read_images(request: oip.ModelInferRequest, question: Question, expected: ModelInput, limits: Limits) -> Images:
    """Read and check the pictures, without a copy where they are raw.

    Raises:
        InvalidInputError: naming the field, what was expected and what came.
    """
    if question.datatype == "BYTES":
        field, encoded = _read_encoded(request, question.pictures)
        decoded = [
            decode(one, expected.height, expected.width, max_pixels=limits.max_pixels, field=f"{field}[{number}]")
            for number, one in enumerate(encoded)
        ]
        return np.stack([picture.pixels for picture in decoded])
    if question.datatype == "UINT8":
        return _read_bytes(request, (question.pictures, expected.height, expected.width, 3))
    return _read_floats(request, (question.pictures, 3, expected.height, expected.width))


def _value(parameters: Parameters, key: str) -> bool | int | str | float | None:
    if key not in parameters:
        return None
    parameter = parameters[key]
    choice = parameter.WhichOneof("parameter_choice")
    value: bool | int | str | float | None = None if choice is None else getattr(parameter, choice)
    return value


def _read_parameters(parameters: Parameters) -> tuple[float | None, bool]:
    """Return the timeout in seconds and whether the answer is to be marked as the last; what is unknown is not read."""
    for key in SEQUENCE:
        if _value(parameters, key):
            raise UnsupportedError(f"parameters[{key}]: sequences are not offered; every request stands alone")
    _refuse_shared_memory("", parameters)
    marked = _value(parameters, "triton_enable_empty_final_response") is True
    timeout = _value(parameters, "timeout")
    if timeout is None:
        return None, marked
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        shown = clip(repr(timeout), 40)
        raise InvalidInputError("parameters[timeout]", f"is {shown}; expected microseconds as int64, 0 for no limit")
    return timeout / 1e6 or None, marked


def _refuse_shared_memory(owner: str, parameters: Parameters) -> None:
    for key in SHARED_MEMORY:
        if key in parameters:
            field = f"{owner}.parameters[{key}]".lstrip(".")
            raise UnsupportedError(f"{field}: shared memory is not offered; send tensors in the request itself")


def _axes(datatype: str, expected: ModelInput) -> list[int]:
    """Return the axes of such a tensor behind the first."""
    match datatype:
        case "FP32":
            return [3, expected.height, expected.width]
        case "UINT8":
            return [expected.height, expected.width, 3]
        case "BYTES":
            return []
        case _:
            raise InvalidInputError(
                "inputs[0].datatype",
                f"is '{clip(datatype, 20)}'; expected FP32 [n,3,{expected.height},{expected.width}] in 0..1,"
                f" UINT8 [n,{expected.height},{expected.width},3], or BYTES [n] of JPEG, PNG or WebP files",
            )


def _read_shape(tensor: oip.ModelInferRequest.InferInputTensor, expected: ModelInput, limits: Limits) -> int:
    """Return the number of pictures."""
    axes = _axes(tensor.datatype, expected)
    shape = list(tensor.shape[:5])  # longer ones are wrong whatever follows
    if len(tensor.shape) != 1 + len(axes) or shape[1:] != axes or shape[0] < 1:
        shown = str(shape) if len(tensor.shape) <= 5 else f"{str(shape)[:-1]}, ...] of {len(tensor.shape)} axes"
        wanted = ", ".join(map(str, ["n", *axes]))
        raise InvalidInputError("inputs[0].shape", f"is {shown}; expected [{wanted}] for {tensor.datatype}")
    if shape[0] > limits.max_images:
        raise InvalidInputError(
            "inputs[0].shape",
            f"holds {shape[0]} pictures; at most {limits.max_images} go into one request, send the rest in another",
        )
    return shape[0]


def _check_filled(request: oip.ModelInferRequest, tensor: oip.ModelInferRequest.InferInputTensor) -> None:
    """Check that the elements are either raw, once, or in the field of their type alone."""
    raw = len(request.raw_input_contents)
    filled = [field.name for field, _ in tensor.contents.ListFields()] if tensor.HasField("contents") else []
    if raw and filled:
        raise InvalidInputError("raw_input_contents", "and inputs[0].contents are both filled; expected one of them")
    if raw > 1:
        raise InvalidInputError("raw_input_contents", f"holds {raw} tensors; expected one, as there is one input")
    meant = {"FP32": "fp32_contents", "UINT8": "uint_contents", "BYTES": "bytes_contents"}[tensor.datatype]
    if not raw and filled != [meant]:
        found = ", ".join(filled) or "neither"
        raise InvalidInputError(
            "inputs[0].contents",
            f"has {found} filled; expected {meant} for {tensor.datatype}, or the tensor in raw_input_contents",
        )


def _read_outputs(request: oip.ModelInferRequest, model: ExplainedModel) -> tuple[tuple[str, ...], int]:
    """Return the names of the wanted outputs, and how many classes stand for the scores."""
    wanted: dict[str, None] = {}
    best = 0
    for place, output in enumerate(request.outputs):
        name = output.name
        if name not in model.outputs:
            there = clip(", ".join(model.outputs), 300)
            raise InvalidInputError(f"outputs[{place}].name", f"is '{clip(name, 80)}'; the model has {there}")
        if name in wanted:
            raise InvalidInputError(f"outputs[{place}].name", f"is '{name}' once more; each may be asked for once")
        wanted[name] = None
        if len(output.parameters):
            best = _read_best(f"outputs[{place}]", output, model) or best
    return tuple(wanted), best


def _read_best(
    owner: str, output: oip.ModelInferRequest.InferRequestedOutputTensor, model: ExplainedModel
) -> int | None:
    """Return how many classes are to stand for this output."""
    _refuse_shared_memory(owner, output.parameters)
    count = _value(output.parameters, "classification")
    if count is None:
        return None
    field, classes = f"{owner}.parameters[classification]", len(model.manifest.classes)
    if output.name != model.manifest.scores.tensor:
        raise InvalidInputError(
            field, f"is set for '{output.name}'; only the scores, '{model.manifest.scores.tensor}', have classes"
        )
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= classes:
        raise InvalidInputError(field, f"is {clip(repr(count), 40)}; expected 1 to {classes} as int64")
    return count


def _read_floats(request: oip.ModelInferRequest, shape: tuple[int, ...]) -> Images:
    size = math.prod(shape)
    if len(request.raw_input_contents):
        field, data = "raw_input_contents[0]", request.raw_input_contents[0]
        _check_size(field, len(data), 4 * size, "bytes")
        numbers = np.frombuffer(data, "<f4").reshape(shape)
    else:
        field, contents = "inputs[0].contents.fp32_contents", request.inputs[0].contents
        _check_size(field, len(contents.fp32_contents), size, "numbers")
        numbers = floats(contents).reshape(shape)
    low, high = float(numbers.min()), float(numbers.max())
    if low >= 0 and high <= 1:
        return numbers
    if not math.isfinite(low) or not math.isfinite(high):  # NaN makes both of them NaN
        raise InvalidInputError(field, "holds NaN or infinite numbers; expected numbers from 0 to 1")
    raise InvalidInputError(field, f"ranges from {low:.4g} to {high:.4g}; expected numbers from 0 to 1")


def _read_bytes(request: oip.ModelInferRequest, shape: tuple[int, ...]) -> Images:
    size = math.prod(shape)
    if len(request.raw_input_contents):
        data = request.raw_input_contents[0]
        _check_size("raw_input_contents[0]", len(data), size, "bytes")
        return np.frombuffer(data, np.uint8).reshape(shape)
    field, contents = "inputs[0].contents.uint_contents", request.inputs[0].contents
    _check_size(field, len(contents.uint_contents), size, "numbers")
    return small_numbers(contents, field).reshape(shape)


def _check_size(field: str, size: int, expected: int, unit: str) -> None:
    if size != expected:
        raise InvalidInputError(field, f"has {size} {unit}; {expected} are expected for the shape")


def _read_encoded(request: oip.ModelInferRequest, count: int) -> tuple[str, list[bytes]]:
    """Return the files of encoded pictures, and the field that holds them."""
    if not len(request.raw_input_contents):
        field, contents = "inputs[0].contents.bytes_contents", request.inputs[0].contents.bytes_contents
        _check_size(field, len(contents), count, "elements")
        return field, list(contents)
    field, data = "raw_input_contents[0]", request.raw_input_contents[0]
    found, place = [], 0
    for number in range(count):
        start = place + 4
        end = start + int.from_bytes(data[place:start], "little")
        if start > len(data) or end > len(data):
            raise InvalidInputError(
                field,
                f"ends within element {number} of {count}; expected 4 bytes of length, little-endian, before each",
            )
        found.append(data[start:end])
        place = end
    if place != len(data):
        raise InvalidInputError(field, f"has {len(data) - place} bytes behind the last of {count} elements")
    return field, found
