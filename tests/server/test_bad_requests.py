"""Bad requests: the right status, a sentence that names the field, and a server that goes on answering."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from pellucid.v1 import explain_pb2 as pb
from server.app import SERVICE
from tests.conftest import SIZE, png, random_pictures, running_server

U8, F32 = pb.ImageTensor.DATA_TYPE_UINT8, pb.ImageTensor.DATA_TYPE_FLOAT32
GOOD = random_pictures(1).encoded[0]


def call(address: str, data: bytes, method: str = "Explain") -> bytes:
    """Send raw bytes, so that requests which no library would build can be sent too."""
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        return channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=20)


def refused(address: str, request: pb.ExplainRequest | bytes, method: str = "Explain") -> tuple[grpc.StatusCode, str]:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        call(address, data, method)
    return caught.value.code(), caught.value.details()


def tensor(shape: list[int], data: bytes, kind: int = U8) -> pb.ExplainRequest:
    return pb.ExplainRequest(tensor=pb.ImageTensor(shape=shape, data_type=kind, data=data))


def floats(value: float) -> pb.ExplainRequest:
    numbers = np.full((1, SIZE, SIZE, 3), 0.5, np.float32)
    numbers[0, 3, 3, 1] = value
    return tensor([1, SIZE, SIZE, 3], numbers.tobytes(), F32)


def huge_header(width: int, height: int) -> bytes:
    """A valid, tiny PNG file whose header promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


BYTES = SIZE * SIZE * 3
INVALID: dict[str, tuple[pb.ExplainRequest, tuple[str, ...]]] = {
    "no picture": (pb.ExplainRequest(), ("encoded_images", "tensor", "expected one")),
    "both kinds": (
        pb.ExplainRequest(encoded_images=[GOOD], tensor=pb.ImageTensor(shape=[1], data=b"1")),
        ("encoded_images", "tensor", "both"),
    ),
    "empty bytes": (pb.ExplainRequest(encoded_images=[GOOD, b""]), ("encoded_images[1]", "empty", "JPEG, PNG or WebP")),
    "not a picture": (pb.ExplainRequest(encoded_images=[b"hello" * 99]), ("encoded_images[0]", "JPEG, PNG or WebP")),
    "a GIF": (pb.ExplainRequest(encoded_images=[b"GIF89a" + bytes(50)]), ("encoded_images[0]", "JPEG, PNG or WebP")),
    "truncated": (pb.ExplainRequest(encoded_images=[GOOD[: len(GOOD) // 2]]), ("encoded_images[0]", "truncated")),
    "too many pixels": (
        pb.ExplainRequest(encoded_images=[huge_header(13300, 13300)]),
        ("encoded_images[0]", "13300 x 13300", "limit of 50000000"),
    ),
    "far too many pixels": (pb.ExplainRequest(encoded_images=[huge_header(2**30, 2**30)]), ("encoded_images[0]",)),
    "too many pictures": (pb.ExplainRequest(encoded_images=[GOOD] * 65), ("encoded_images", "65", "at most 64")),
    "too many tensors": (tensor([65, SIZE, SIZE, 3], bytes(65 * BYTES)), ("tensor.shape", "65", "at most 64")),
    "wrong height": (
        tensor([1, 8, SIZE, 3], bytes(8 * SIZE * 3)),
        ("tensor.shape", "[1, 8, 16, 3]", "[batch, 16, 16, 3]"),
    ),
    "wrong rank": (tensor([SIZE, SIZE, 3], bytes(BYTES)), ("tensor.shape", "[batch, 16, 16, 3]")),
    "no shape": (tensor([], bytes(BYTES)), ("tensor.shape", "[batch, 16, 16, 3]")),
    "one channel": (tensor([1, SIZE, SIZE, 1], bytes(256)), ("tensor.shape", "[1, 16, 16, 1]", "[batch, 16, 16, 3]")),
    "channels first": (tensor([1, 3, SIZE, SIZE], bytes(BYTES)), ("tensor.shape", "[1, 3, 16, 16]")),
    "empty batch": (tensor([0, SIZE, SIZE, 3], b""), ("tensor.shape", "empty")),
    "negative batch": (tensor([-1, SIZE, SIZE, 3], b""), ("tensor.shape", "-1")),
    "huge batch": (tensor([2**62, SIZE, SIZE, 3], b"1234"), ("tensor.shape", "at most 64")),
    "200,000 axes": (tensor([1] * 200_000, b"1"), ("tensor.shape", "[batch, 16, 16, 3]")),
    "no data type": (tensor([1, SIZE, SIZE, 3], bytes(BYTES), 0), ("tensor.data_type", "DATA_TYPE_UINT8")),
    "unknown data type": (tensor([1, SIZE, SIZE, 3], bytes(BYTES), 7), ("tensor.data_type", "7", "DATA_TYPE_FLOAT32")),
    "too few bytes": (tensor([1, SIZE, SIZE, 3], bytes(BYTES - 1)), ("tensor.data", "767 bytes", "768")),
    "too many bytes": (tensor([1, SIZE, SIZE, 3], bytes(BYTES + 1)), ("tensor.data", "769 bytes", "768")),
    "bytes as floats": (tensor([1, SIZE, SIZE, 3], bytes(BYTES), F32), ("tensor.data", "768 bytes", "3072")),
    "NaN": (floats(np.nan), ("tensor.data", "NaN", "0 to 1")),
    "infinity": (floats(np.inf), ("tensor.data", "infinite", "0 to 1")),
    "0..255 as floats": (floats(255.0), ("tensor.data", "255", "0 to 1")),
    "below 0": (floats(-0.5), ("tensor.data", "-0.5", "0 to 1")),
    "unknown row": (
        pb.ExplainRequest(encoded_images=[GOOD], rows=["part"]),
        ("rows", "'part'", "parts, explanatory_graph"),
    ),
    "negative classes": (pb.ExplainRequest(encoded_images=[GOOD], top_k_classes=-1), ("top_k_classes", "-1", "0")),
    "negative reasons": (pb.ExplainRequest(encoded_images=[GOOD], top_k_reasons=-9), ("top_k_reasons", "-9", "0")),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_bad_request_is_an_invalid_argument_that_names_the_field(address: str, name: str) -> None:
    request, words = INVALID[name]
    code, text = refused(address, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert all(word in text for word in words), text
    assert text.startswith(words[0])
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.ExplainRequest(model="lion", encoded_images=[GOOD]), ("model", "'lion'", "there are tiny")),
        (pb.ExplainRequest(model="tiny", version="7", encoded_images=[GOOD]), ("version", "'7'", "there are 1")),
        (pb.ExplainRequest(model="../tiny", encoded_images=[GOOD]), ("model", "'../tiny'")),
    ],
)
def test_an_unknown_model_or_version_is_not_found(address: str, request_: pb.ExplainRequest, words: list[str]) -> None:
    code, text = refused(address, request_)
    assert code is grpc.StatusCode.NOT_FOUND
    assert all(word in text for word in words), text


def test_echoed_input_is_cut_short(address: str) -> None:
    long = "x" * 100_000
    for request in (
        pb.ExplainRequest(model=long, encoded_images=[GOOD]),
        pb.ExplainRequest(model="tiny", version=long, encoded_images=[GOOD]),
        pb.ExplainRequest(encoded_images=[GOOD], rows=[long]),
    ):
        code, text = refused(address, request)
        assert code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
        assert len(text) < 400


@pytest.mark.parametrize("method", ["Explain", "ListModels", "GetModel"])
def test_bytes_that_are_no_message_are_an_invalid_argument(address: str, method: str) -> None:
    code, text = refused(address, b"\xff\xff\xff\x0f not a message", method)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "pellucid.v1." in text


def test_a_request_over_the_size_limit_exhausts_resources(repository: object) -> None:
    with running_server("--repository", str(repository), "--max-request-bytes", "100000") as (target, _):
        code, _ = refused(target, pb.ExplainRequest(encoded_images=[bytes(200_000)]))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        call(target, pb.ExplainRequest(encoded_images=[GOOD]).SerializeToString())


def test_more_requests_than_the_server_takes_are_refused_and_the_others_are_answered(repository: object) -> None:
    slow = pb.ExplainRequest(encoded_images=[png(np.zeros((4000, 4000, 3), np.uint8))] * 3).SerializeToString()

    def status(_: int) -> grpc.StatusCode:
        try:
            call(target, slow)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    with running_server("--repository", str(repository), "--workers", "1", "--max-requests", "2") as (target, _):
        with ThreadPoolExecutor(8) as pool:
            statuses = set(pool.map(status, range(8)))
        assert statuses == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert status(0) is grpc.StatusCode.OK


def test_after_all_of_it_the_server_still_answers(address: str) -> None:
    answer: Callable[[bytes], pb.ExplainResponse] = pb.ExplainResponse.FromString
    for request, _ in INVALID.values():
        refused(address, request)
    response = answer(call(address, pb.ExplainRequest(encoded_images=[GOOD]).SerializeToString()))
    assert len(response.explanations) == 1
