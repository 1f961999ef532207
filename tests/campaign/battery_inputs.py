"""Cases of what ModelInfer takes and refuses: inputs, buffers, outputs, parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tritonclient.grpc import service_pb2 as oip

from tests.campaign.battery_case import INVALID, OK, QUICK, Case, inferred
from tests.campaign.requests import (
    FLOATS,
    PICTURES,
    PIXELS,
    SCORES,
    bytes_input,
    encoded,
    floats,
    infer,
    pictures,
    tensor,
)
from tests.conftest import NAMES, SIZE

ONE = (1, 3, SIZE, SIZE)
RAW = FLOATS[:1].tobytes()
FP32 = tensor("FP32", ONE)
MIB = 2**20


def scores(rows: int, outputs: int | None = None) -> Callable[[bytes], str]:
    """Return a check that the answer is raw and holds finite scores of that many pictures."""

    def check(data: bytes) -> str:
        answer = oip.ModelInferResponse.FromString(data)
        names = [output.name for output in answer.outputs]
        if len(answer.raw_output_contents) != len(names) or (outputs is not None and len(names) != outputs):
            return f"{len(answer.raw_output_contents)} raw values for the outputs {names}"
        values = np.frombuffer(answer.raw_output_contents[names.index(SCORES)], "<f4")
        good = values.size == rows * len(NAMES) and np.isfinite(values).all()
        return "" if good and answer.model_name == "tiny" else f"{values} from {answer.model_name}"

    return check


def echoed(data: bytes) -> str:
    """Check that the id came back."""
    answer = oip.ModelInferResponse.FromString(data)
    return "" if answer.id == "an id of ours" else f"the id {answer.id!r}"


def classified(data: bytes) -> str:
    """Check two classes as "value:index:label", the better one first."""
    answer = oip.ModelInferResponse.FromString(data)
    (output,), raw = answer.outputs, answer.raw_output_contents[0]
    length = int.from_bytes(raw[:4], "little")
    value, index, label = raw[4 : 4 + length].decode().split(":")
    good = output.datatype == "BYTES" and list(output.shape) == [1, 2] and NAMES[int(index)] == label
    return "" if good and np.isfinite(float(value)) else f"{output} {raw!r}"


def parameter(name: str, **value: object) -> oip.ModelInferRequest:
    """Return a valid request with one parameter."""
    request = floats()
    request.parameters[name].CopyFrom(oip.InferParameter(**value))
    return request


def output_parameter(name: str, **value: object) -> oip.ModelInferRequest:
    """Return a valid request with one parameter on the scores."""
    request = floats(outputs=(SCORES,))
    request.outputs[0].parameters[name].CopyFrom(oip.InferParameter(**value))
    return request


def input_parameter(name: str, **value: object) -> oip.ModelInferRequest:
    """Return a valid request with one parameter on the input."""
    request = floats()
    request.inputs[0].parameters[name].CopyFrom(oip.InferParameter(**value))
    return request


def shaped(*shape: int, data: bytes = RAW) -> oip.ModelInferRequest:
    """Return a request of FP32 values in that shape."""
    return infer(tensor("FP32", shape), raw=(data,))


def one_value(value: float) -> oip.ModelInferRequest:
    """Return a valid request but for one number."""
    values = FLOATS[:1].copy()
    values[0, 1, 2, 3] = value
    return infer(FP32, raw=(values.tobytes(),))


FINE = (
    inferred("raw FP32", floats(), OK, check=scores(1)),
    inferred("raw FP32, a batch of three", floats(3), OK, check=scores(3)),
    inferred("typed FP32", infer(tensor("FP32", ONE, fp32_contents=FLOATS[:1].ravel().tolist())), OK, check=scores(1)),
    inferred("raw UINT8", infer(tensor("UINT8", (2, SIZE, SIZE, 3)), raw=(PIXELS[:2].tobytes(),)), OK, check=scores(2)),
    inferred(
        "typed UINT8",
        infer(tensor("UINT8", (1, SIZE, SIZE, 3), uint_contents=PIXELS[0].ravel().tolist())),
        OK,
        check=scores(1),
    ),
    inferred("raw pictures", pictures(*PICTURES[:2]), OK, check=scores(2)),
    inferred("typed pictures", infer(tensor("BYTES", (1,), bytes_contents=[PICTURES[0]])), OK, check=scores(1)),
    inferred("pictures of every kind", pictures(encoded("JPEG"), encoded("WEBP"), encoded("PNG")), OK, check=scores(3)),
    inferred("one output by name", floats(outputs=(SCORES,)), OK, check=scores(1, outputs=1)),
    inferred("an id", floats(id="an id of ours"), OK, check=echoed),
    inferred("classification", output_parameter("classification", int64_param=2), OK, check=classified),
    inferred("an unknown parameter", parameter("of ours", string_param="x"), OK, check=scores(1)),
    inferred("a priority", parameter("priority", uint64_param=1), OK, check=scores(1)),
    inferred("a timeout of a minute", parameter("timeout", int64_param=60_000_000), OK, check=scores(1)),
)

TENSORS = (
    inferred("no input", infer(), INVALID, "input"),
    inferred("another input's name", infer(tensor("FP32", ONE, name="pixels"), raw=(RAW,)), INVALID, "pixels"),
    inferred("an input without a name", infer(tensor("FP32", ONE, name=""), raw=(RAW,)), INVALID, "input"),
    inferred("an extra input", infer(FP32, tensor("FP32", ONE, name="more"), raw=(RAW, RAW)), INVALID, "input"),
    inferred("the input twice", infer(FP32, FP32, raw=(RAW, RAW)), INVALID, "input"),
    inferred("INT64", infer(tensor("INT64", ONE), raw=(RAW * 2,)), INVALID, "INT64"),
    inferred("FP16", infer(tensor("FP16", ONE), raw=(RAW[: len(RAW) // 2],)), INVALID, "FP16"),
    inferred("BF16", infer(tensor("BF16", ONE), raw=(RAW[: len(RAW) // 2],)), INVALID, "BF16"),
    inferred("a datatype of nobody", infer(tensor("FLOAT", ONE), raw=(RAW,)), INVALID, "FLOAT"),
    inferred("no datatype", infer(tensor("", ONE), raw=(RAW,)), INVALID, "datatype"),
    inferred("another height", shaped(1, 3, 8, SIZE, data=RAW[: len(RAW) // 2]), INVALID, "shape"),
    inferred("channels last as FP32", shaped(1, SIZE, SIZE, 3), INVALID, "shape"),
    inferred("three axes", shaped(3, SIZE, SIZE), INVALID, "shape"),
    inferred("no shape", shaped(), INVALID, "shape"),
    inferred("an empty batch", shaped(0, 3, SIZE, SIZE, data=b""), INVALID, "shape"),
    inferred("a negative batch", shaped(-1, 3, SIZE, SIZE), INVALID, "shape"),
    inferred("two negative axes", shaped(-1, -3, SIZE, SIZE), INVALID, "shape"),
    inferred("[2^62, 4] of 16 bytes", shaped(2**62, 4, data=bytes(16)), INVALID, "shape"),
    inferred("a batch that overflows to 1", shaped(2**54 + 1, 3, SIZE, SIZE), INVALID, "shape"),
    inferred("more pictures than go into a request", shaped(65, 3, SIZE, SIZE, data=RAW * 65), INVALID, "64"),
    inferred("200,000 axes", shaped(*[1] * 200_000, data=b"1234"), INVALID, "shape", seconds=QUICK),
)

BUFFERS = (
    inferred("two buffers for one input", infer(FP32, raw=(RAW, RAW)), INVALID, "raw_input_contents"),
    inferred("no values at all", infer(FP32), INVALID, "raw_input_contents"),
    inferred("a byte too few", infer(FP32, raw=(RAW[:-1],)), INVALID, "3071"),
    inferred("a byte too many", infer(FP32, raw=(RAW + b"1",)), INVALID, "3073"),
    inferred("an empty buffer", infer(FP32, raw=(b"",)), INVALID, "raw_input_contents"),
    inferred("raw and typed", infer(tensor("FP32", ONE, fp32_contents=[0.5] * 768), raw=(RAW,)), INVALID, "raw"),
    inferred("too few typed values", infer(tensor("FP32", ONE, fp32_contents=[0.5] * 767)), INVALID, "767"),
    inferred("floats typed as integers", infer(tensor("FP32", ONE, int_contents=[1] * 768)), INVALID, "contents"),
    inferred("UINT8 of 256", infer(tensor("UINT8", (1, SIZE, SIZE, 3), uint_contents=[256] * 768)), INVALID, "256"),
    inferred("NaN", one_value(float("nan")), INVALID, "NaN"),
    inferred("infinity", one_value(float("inf")), INVALID, "infinite"),
    inferred("0..255 as floats", one_value(255.0), INVALID, "255"),
    inferred("below 0", one_value(-0.5), INVALID, "-0.5"),
    inferred(
        "a picture shorter than its length",
        infer(tensor("BYTES", (1,)), raw=(bytes_input(PICTURES[0])[:-1],)),
        INVALID,
        "raw_input_contents",
    ),
    inferred(
        "a length of 4 GiB", infer(tensor("BYTES", (1,)), raw=(b"\xff\xff\xff\xffabc",)), INVALID, "raw_input_contents"
    ),
    inferred(
        "bytes behind the last picture",
        infer(tensor("BYTES", (1,)), raw=(bytes_input(PICTURES[0]) + b"1",)),
        INVALID,
        "raw_input_contents",
    ),
    inferred(
        "fewer pictures than the shape says",
        infer(tensor("BYTES", (2,)), raw=(bytes_input(PICTURES[0]),)),
        INVALID,
        "raw_input_contents",
    ),
    inferred("pictures in two axes", infer(tensor("BYTES", (1, 1)), raw=(bytes_input(PICTURES[0]),)), INVALID, "shape"),
    inferred("no picture but text", pictures(b"hello" * 99), INVALID, "JPEG, PNG or WebP"),
    inferred("a truncated picture", pictures(PICTURES[0][: len(PICTURES[0]) // 2]), INVALID, "truncated"),
)

OUTPUTS = (
    inferred("an unknown output", floats(outputs=("nothing",)), INVALID, "nothing"),
    inferred("an output twice", floats(outputs=(SCORES, SCORES)), INVALID, "output"),
    inferred("no class of many", output_parameter("classification", int64_param=0), INVALID, "classification"),
    inferred("minus one class", output_parameter("classification", int64_param=-1), INVALID, "classification"),
    inferred("classes as a word", output_parameter("classification", string_param="2"), INVALID, "classification"),
    inferred("an id of 1 MB", floats(id="x" * MIB), INVALID, "id", seconds=QUICK),
    inferred("a name of 1 MB", infer(tensor("FP32", ONE, name="x" * MIB), raw=(RAW,)), INVALID, "input", seconds=QUICK),
    inferred("a datatype of 1 MB", infer(tensor("x" * MIB, ONE), raw=(RAW,)), INVALID, "datatype", seconds=QUICK),
    inferred("an output's name of 1 MB", floats(outputs=("x" * MIB,)), INVALID, "output", seconds=QUICK),
    inferred("100,000 inputs", infer(*[FP32] * 100_000, raw=(RAW,)), INVALID, "input", seconds=QUICK),
    inferred("100,000 buffers", infer(FP32, raw=(b"1",) * 100_000), INVALID, "raw_input_contents", seconds=QUICK),
    inferred("200,000 outputs", floats(outputs=(SCORES,) * 200_000), INVALID, "output", seconds=QUICK),
    Case(
        "a sequence",
        inferred("", parameter("sequence_id", int64_param=7), "").call,
        (INVALID, "UNIMPLEMENTED"),
        "sequence",
    ),
    Case(
        "an input in shared memory",
        inferred("", input_parameter("shared_memory_region", string_param="r"), "").call,
        (INVALID, "UNIMPLEMENTED"),
        "shared",
    ),
    inferred("a timeout of a microsecond", parameter("timeout", int64_param=1), "DEADLINE_EXCEEDED", ""),
    inferred("a timeout as a word", parameter("timeout", string_param="1"), INVALID, "timeout"),
)

INPUT_CASES: tuple[Case, ...] = (*FINE, *TENSORS, *BUFFERS, *OUTPUTS)
