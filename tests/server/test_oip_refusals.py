"""What a ModelInfer request can do wrong: the right status, and a sentence that names the field."""

from __future__ import annotations

import asyncio
import re
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from analyzers.errors import InvalidInputError
from server.app import open_repository
from server.oip import InferenceService
from server.oip_messages import SERVICE, oip
from server.request import Limits
from server.settings import Settings
from server.workers import Workers
from tests.conftest import SIZE, random_pictures, running_server
from tests.server.test_bad_requests import huge_header

GOOD = random_pictures(1).encoded[0]
FLOATS = np.full((1, 3, SIZE, SIZE), 0.5, np.float32).tobytes()
SHAPE = (1, 3, SIZE, SIZE)
Tensor = oip.ModelInferRequest.InferInputTensor
Output = oip.ModelInferRequest.InferRequestedOutputTensor
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def ask(repository: Path) -> Iterator[Callable[..., bytes]]:
    arguments = ("--repository", str(repository), "--max-images", "8", "--max-pixels", "1000000")
    options = [("grpc.max_send_message_length", -1)]
    with (
        running_server(*arguments) as (address, _),
        grpc.insecure_channel(address, options=options) as channel,
    ):

        def call(request: object, method: str = "ModelInfer") -> bytes:
            data = request if isinstance(request, bytes) else request.SerializeToString()
            return channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=20)

        yield call


def refusal(ask: Callable[..., bytes], request: object, method: str = "ModelInfer") -> tuple[Code, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(request, method)
    return caught.value.code(), caught.value.details()


def tensor(shape: tuple[int, ...] = SHAPE, datatype: str = "FP32", name: str = "image", **more: object) -> Tensor:
    return Tensor(name=name, shape=shape, datatype=datatype, **more)


def asking(*inputs: Tensor, raw: tuple[bytes, ...] = (FLOATS,), **more: object) -> oip.ModelInferRequest:
    return oip.ModelInferRequest(
        **{"model_name": "tiny", "inputs": inputs or [tensor()], "raw_input_contents": raw} | more
    )


def parameter(value: object) -> oip.InferParameter:
    kind = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
    return oip.InferParameter(**{f"{kind}_param": value})


def wanting(*names: str, **parameters: object) -> oip.ModelInferRequest:
    made = {key: parameter(value) for key, value in parameters.items()}
    return asking(outputs=[Output(name=name, parameters=made) for name in names])


def floats(value: float) -> bytes:
    numbers = np.full(SHAPE, 0.5, np.float32)
    numbers[0, 1, 3, 3] = value
    return numbers.tobytes()


def elements(*encoded: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)


def contents(**filled: object) -> oip.InferTensorContents:
    return oip.InferTensorContents(**filled)


HALVES = [0.5] * (3 * SIZE * SIZE)
INVALID: dict[str, tuple[oip.ModelInferRequest, tuple[str, ...]]] = {
    "no input": (oip.ModelInferRequest(model_name="tiny"), ("inputs:", "0 tensors", "'image'")),
    "two inputs": (asking(tensor(), tensor(name="mask")), ("inputs:", "2 tensors")),
    "the same input twice": (asking(tensor(), tensor(), raw=(FLOATS, FLOATS)), ("inputs:", "2 tensors")),
    "another name": (asking(tensor(name="pixels")), ("inputs[0].name", "'pixels'", "'image'")),
    "half floats": (asking(tensor(datatype="FP16")), ("inputs[0].datatype", "'FP16'", "expected FP32")),
    "brain floats": (asking(tensor(datatype="BF16")), ("inputs[0].datatype", "'BF16'", "UINT8", "BYTES")),
    "an unknown type": (asking(tensor(datatype="x" * 999)), ("inputs[0].datatype", "xxx...", "expected FP32")),
    "no type": (asking(tensor(datatype="")), ("inputs[0].datatype", "''")),
    "no shape": (asking(tensor(())), ("inputs[0].shape", "[]", "[n, 3, 16, 16]")),
    "height and width swapped for channels": (
        asking(tensor((1, SIZE, SIZE, 3))),
        ("inputs[0].shape", "[1, 16, 16, 3]", "[n, 3, 16, 16] for FP32"),
    ),
    "another size": (asking(tensor((1, 3, 8, 8))), ("inputs[0].shape", "[1, 3, 8, 8]")),
    "an empty batch": (asking(tensor((0, 3, SIZE, SIZE)), raw=(b"",)), ("inputs[0].shape", "[0, 3, 16, 16]")),
    "a negative batch": (asking(tensor((-1, 3, SIZE, SIZE))), ("inputs[0].shape", "[-1, 3, 16, 16]")),
    "sizes whose product overflows": (asking(tensor((2**62, 4))), ("inputs[0].shape", "[4611686018427387904, 4]")),
    "a batch that overflows": (
        asking(tensor((2**62, 3, SIZE, SIZE)), raw=(b"",)),
        ("inputs[0].shape", "holds 4611686018427387904 pictures; at most 8"),
    ),
    "200,000 axes": (asking(tensor((1,) * 200_000)), ("inputs[0].shape", "[1, 1, 1, 1, 1, ...] of 200000 axes")),
    "too many pictures": (asking(tensor((9, 3, SIZE, SIZE))), ("inputs[0].shape", "9 pictures; at most 8")),
    "bytes too few": (asking(raw=(FLOATS[:-1],)), ("raw_input_contents[0]", "3071 bytes; 3072")),
    "bytes too many": (asking(raw=(FLOATS + b"\0",)), ("raw_input_contents[0]", "3073 bytes; 3072")),
    "raw twice": (asking(raw=(FLOATS, FLOATS)), ("raw_input_contents:", "2 tensors; expected one")),
    "nothing filled": (asking(raw=()), ("inputs[0].contents", "neither filled", "fp32_contents")),
    "raw and typed": (
        asking(tensor(contents=contents(fp32_contents=HALVES))),
        ("raw_input_contents:", "both filled"),
    ),
    "the field of another type": (
        asking(tensor(contents=contents(fp64_contents=HALVES)), raw=()),
        ("inputs[0].contents", "fp64_contents filled; expected fp32_contents"),
    ),
    "two typed fields": (
        asking(tensor(contents=contents(fp32_contents=HALVES, int_contents=[1])), raw=()),
        ("inputs[0].contents", "int_contents, fp32_contents"),
    ),
    "typed numbers too few": (
        asking(tensor(contents=contents(fp32_contents=HALVES[1:])), raw=()),
        ("inputs[0].contents.fp32_contents", "767 numbers; 768"),
    ),
    "a byte over 255": (
        asking(tensor((1, SIZE, SIZE, 3), "UINT8", contents=contents(uint_contents=[256] * 768)), raw=()),
        ("inputs[0].contents.uint_contents", "holds 256"),
    ),
    "a byte far over 255 among bytes": (
        asking(tensor((1, SIZE, SIZE, 3), "UINT8", contents=contents(uint_contents=[200] * 767 + [2**32 - 1])), raw=()),
        ("inputs[0].contents.uint_contents", "holds 4294967295"),
    ),
    "bytes of a picture too few": (
        asking(tensor((1, SIZE, SIZE, 3), "UINT8"), raw=(b"\0" * 767,)),
        ("raw_input_contents[0]", "767 bytes; 768"),
    ),
    "not a number": (asking(raw=(floats(float("nan")),)), ("raw_input_contents[0]", "NaN or infinite")),
    "infinity": (asking(raw=(floats(float("inf")),)), ("raw_input_contents[0]", "NaN or infinite")),
    "less than black": (asking(raw=(floats(-0.25),)), ("raw_input_contents[0]", "from -0.25 to 0.5", "from 0 to 1")),
    "0 to 255 in floats": (asking(raw=(floats(255),)), ("raw_input_contents[0]", "from 0.5 to 255")),
    "typed infinity": (
        asking(tensor(contents=contents(fp32_contents=[float("inf"), *HALVES[1:]])), raw=()),
        ("inputs[0].contents.fp32_contents", "NaN or infinite"),
    ),
    "encoded pictures in two axes": (
        asking(tensor((1, 1), "BYTES"), raw=(elements(GOOD),)),
        ("inputs[0].shape", "[1, 1]; expected [n] for BYTES"),
    ),
    "an element cut off": (
        asking(tensor((1,), "BYTES"), raw=(elements(GOOD)[:-1],)),
        ("raw_input_contents[0]", "ends within element 0 of 1"),
    ),
    "an element of 4 GiB": (
        asking(tensor((2,), "BYTES"), raw=(elements(GOOD) + b"\xff\xff\xff\xffx",)),
        ("raw_input_contents[0]", "ends within element 1 of 2"),
    ),
    "an element too few": (
        asking(tensor((2,), "BYTES"), raw=(elements(GOOD),)),
        ("raw_input_contents[0]", "ends within element 1 of 2"),
    ),
    "an element too many": (
        asking(tensor((1,), "BYTES"), raw=(elements(GOOD, b"abc"),)),
        ("raw_input_contents[0]", "7 bytes behind"),
    ),
    "typed elements too many": (
        asking(tensor((1,), "BYTES", contents=contents(bytes_contents=[GOOD, GOOD])), raw=()),
        ("inputs[0].contents.bytes_contents", "2 elements; 1"),
    ),
    "no picture": (
        asking(tensor((2,), "BYTES"), raw=(elements(GOOD, b"GIF89a"),)),
        ("raw_input_contents[0][1]", "not a picture"),
    ),
    "a damaged picture": (
        asking(tensor((1,), "BYTES"), raw=(elements(GOOD[:60]),)),
        ("raw_input_contents[0][0]", "damaged or truncated"),
    ),
    "a picture with a huge header": (
        asking(tensor((1,), "BYTES", contents=contents(bytes_contents=[huge_header(30_000, 30_000)])), raw=()),
        ("inputs[0].contents.bytes_contents[0]", "limit of 1000000"),
    ),
    "an unknown output": (wanting("logits", "loss"), ("outputs[1].name", "'loss'", "logits, ")),
    "the final layer's weights": (wanting("class_features.head"), ("outputs[0].name", "'class_features.head'")),
    "the same output twice": (wanting("logits", "logits"), ("outputs[1].name", "once more")),
    "more classes than there are": (
        wanting("logits", classification=4),
        ("outputs[0].parameters[classification]", "is 4", "1 to 3"),
    ),
    "no classes": (wanting("logits", classification=0), ("outputs[0].parameters[classification]", "is 0")),
    "classes as text": (wanting("logits", classification="2"), ("outputs[0].parameters[classification]", "'2'")),
    "classes of peaks": (
        wanting("parts.cell", classification=1),
        ("outputs[0].parameters[classification]", "'parts.cell'", "'logits'"),
    ),
    "a long id": (asking(id="x" * 1_000_000), ("id:", "1000000 characters; at most 1024")),
    "a timeout before now": (asking(parameters={"timeout": parameter(-1)}), ("parameters[timeout]", "is -1")),
    "a timeout in words": (asking(parameters={"timeout": parameter("soon" * 99)}), ("parameters[timeout]", "'soon")),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_does_not_fit_is_an_invalid_argument_that_names_the_field(ask: Callable[..., bytes], name: str) -> None:
    request, words = INVALID[name]
    code, text = refusal(ask, request)
    assert code is Code.INVALID_ARGUMENT
    assert text.startswith(words[0])
    assert all(word in text for word in words), text
    assert len(text) < 500


UNSUPPORTED = {
    "a sequence by number": (asking(parameters={"sequence_id": parameter(7)}), "parameters[sequence_id]"),
    "a sequence by name": (asking(parameters={"sequence_id": parameter("a")}), "parameters[sequence_id]"),
    "the start of a sequence": (asking(parameters={"sequence_start": parameter(True)}), "parameters[sequence_start]"),
    "an input in shared memory": (
        asking(tensor(parameters={"shared_memory_region": parameter("mine")}), raw=()),
        "inputs[0].parameters[shared_memory_region]",
    ),
    "an output in shared memory": (
        wanting("logits", shared_memory_region="mine"),
        "outputs[0].parameters[shared_memory_region]",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_the_server_does_not_do_is_unimplemented_with_a_sentence(ask: Callable[..., bytes], name: str) -> None:
    request, field = UNSUPPORTED[name]
    code, text = refusal(ask, request)
    assert code is Code.UNIMPLEMENTED
    assert field in text
    assert "not offered" in text


def test_a_sequence_that_is_none_is_no_sequence(ask: Callable[..., bytes]) -> None:
    off = {"sequence_id": parameter(0), "sequence_start": parameter(False), "timeout": parameter(0)}
    ask(asking(parameters=off))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (asking(model_name="lion"), ("'lion'", "tiny")),
        (asking(model_version="7"), ("'7'",)),
        (asking(model_name="x" * 100_000), ("'xxx",)),
    ],
)
def test_an_unknown_model_or_version_is_not_found(
    ask: Callable[..., bytes], request_: oip.ModelInferRequest, words: tuple[str, ...]
) -> None:
    code, text = refusal(ask, request_)
    assert code is Code.NOT_FOUND
    assert all(word in text for word in words), text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (asking(*[Tensor(name="image", shape=[1], datatype="FP32")] * 100_000), "inputs:"),
        (asking(outputs=[Output(name="logits")] * 200_000), "outputs:"),
        (asking(tensor((1,), "BYTES", contents=contents(bytes_contents=[b"x"] * 200_000)), raw=()), "inputs[0]."),
        (asking(tensor(contents=contents(fp32_contents=[0.5] * 500_000)), raw=()), "inputs[0].contents.fp32"),
    ],
)
def test_requests_made_to_be_large_are_refused_at_once(
    repository: Path, request_: oip.ModelInferRequest, field: str
) -> None:
    settings = Settings(repository=repository)
    models = open_repository(settings, Workers(0))
    with ThreadPoolExecutor(1) as decoders:
        service = InferenceService(models, Limits(8, 1_000_000), settings, decoders)
        started = time.process_time()
        with pytest.raises(InvalidInputError, match=f"^{re.escape(field)}"):
            asyncio.run(service.model_infer(request_))
        assert time.process_time() - started < 0.02


@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady", "ModelMetadata", "RepositoryModelLoad"])
def test_bytes_that_are_no_message_are_an_invalid_argument(ask: Callable[..., bytes], method: str) -> None:
    code, text = refusal(ask, b"\xff\xff\xff\x0f not a message", method)
    assert code is Code.INVALID_ARGUMENT
    assert "inference." in text


def test_a_timeout_that_passes_exceeds_the_deadline(ask: Callable[..., bytes]) -> None:
    big = random_pictures(8, size=300).encoded
    late = asking(
        tensor((8,), "BYTES", contents=contents(bytes_contents=big)), raw=(), parameters={"timeout": parameter(100)}
    )
    code, text = refusal(ask, late)
    assert code is Code.DEADLINE_EXCEEDED
    assert "within 0.0001 s" in text


def test_after_all_of_it_a_good_request_is_answered(ask: Callable[..., bytes]) -> None:
    for request, _ in INVALID.values():
        refusal(ask, request)
    assert len(oip.ModelInferResponse.FromString(ask(asking())).raw_output_contents) > 10
