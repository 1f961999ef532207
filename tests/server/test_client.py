"""The client: every way to hand over pictures, and errors that carry their code."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import grpc
import numpy as np
import pytest
from PIL import Image

from analyzers.errors import InvalidInputError, PellucidError
from analyzers.explanation import Explanation
from server.client import Client, ServerError
from server.client import Image as ImageKind
from tests.conftest import SIZE, png, random_pictures, unsigned

ENCODED = random_pictures(3, seed=11).encoded
PIXELS = random_pictures(3, seed=11).decoded(SIZE, SIZE)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(client: Client) -> list[Explanation]:
    return client.explain(list(ENCODED))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The three pictures as files."""
    for number, encoded in enumerate(ENCODED):
        (tmp_path / f"{number}.png").write_bytes(encoded)
    return sorted(tmp_path.iterdir())


ONE: dict[str, Callable[[list[Path]], ImageKind]] = {
    "bytes": lambda files: ENCODED[0],
    "path": lambda files: files[0],
    "path as text": lambda files: str(files[0]),
    "uint8 array": lambda files: PIXELS[0],
    "float32 array": lambda files: (PIXELS[0] / 255).astype(np.float32),
    "float64 array": lambda files: PIXELS[0] / 255,
}
MANY: dict[str, Callable[[list[Path]], object]] = {
    "bytes": lambda files: list(ENCODED),
    "tuple of bytes": lambda files: ENCODED,
    "paths": lambda files: files,
    "paths as text": lambda files: [str(file) for file in files],
    "paths and bytes": lambda files: [files[0], ENCODED[1], str(files[2])],
    "uint8 arrays": lambda files: list(PIXELS),
    "float arrays": lambda files: [picture / 255 for picture in PIXELS],
    "uint8 batch": lambda files: PIXELS,
    "float batch": lambda files: PIXELS / 255,
    "batch that is not contiguous": lambda files: np.repeat(PIXELS, 2, axis=2)[:, :, ::2],
    "batch in Fortran's order": lambda files: np.asfortranarray(PIXELS),
    "batch in another byte order": lambda files: (PIXELS / 255).astype(">f8"),
}


@pytest.mark.parametrize("kind", ONE)
def test_one_picture_may_come_as_any_kind(
    client: Client, expected: list[Explanation], files: list[Path], kind: str
) -> None:
    assert unsigned(client.explain(ONE[kind](files))) == unsigned(expected[:1])


@pytest.mark.parametrize("kind", MANY)
def test_several_pictures_may_come_as_any_kind(
    client: Client, expected: list[Explanation], files: list[Path], kind: str
) -> None:
    assert unsigned(client.explain(MANY[kind](files))) == unsigned(expected)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([PIXELS[0], ENCODED[1]], "hold a ndarray; expected bytes, paths or arrays, not mixed"),
        ([ENCODED[0], PIXELS[1]], "hold a ndarray; expected bytes, paths or arrays, not mixed"),
        ([1, 2], "hold a int; expected bytes"),
        ([None], "hold a NoneType; expected bytes"),
        ([PIXELS[0], PIXELS[1][:8]], "different shapes"),
        (PIXELS.astype(np.int64), "arrays of int64; expected uint8, or floats"),
        (PIXELS > 9, "arrays of bool; expected uint8, or floats"),
    ],
    ids=["array first", "bytes first", "numbers", "nothing", "shapes", "int64", "bool"],
)
def test_pictures_of_mixed_or_unknown_kinds_are_refused_before_they_are_sent(images: object, words: str) -> None:
    with Client("127.0.0.1:1") as nobody, pytest.raises(InvalidInputError, match=r"^images: ") as caught:
        nobody.explain(images)
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_an_os_error(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.explain(tmp_path / "nothing.png")


def test_no_picture_at_all_is_refused_by_the_server(client: Client) -> None:
    with pytest.raises(ServerError, match="encoded_images: holds no picture") as caught:
        client.explain([])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_what_was_asked_for_reaches_the_server(client: Client, expected: list[Explanation]) -> None:
    (answer,) = client.explain(
        ENCODED[0], model="tiny", version="1", rows=["class_features"], top_k_classes=2, top_k_reasons=1
    )
    assert answer.parts is None
    assert answer.predictions == expected[0].predictions[:2]
    assert [len(ledger.contributions) for ledger in answer.class_features] == [1, 1]


def test_a_refusal_carries_its_code_and_the_server_s_sentence(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.explain(ENCODED[0], model="lion")
    assert isinstance(caught.value, PellucidError)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert str(caught.value) == "NOT_FOUND: model: there is no model 'lion'; there are tiny"
    with pytest.raises(ServerError) as caught:
        client.get_model("tiny", "2")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # ours, and nobody listens
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(target, timeout_seconds=5) as nobody, pytest.raises(ServerError) as caught:
            nobody.explain(ENCODED[0])
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_a_server_that_never_answers_is_given_up_after_the_timeout() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        target, start = f"127.0.0.1:{mute.getsockname()[1]}", monotonic()
        with Client(target, timeout_seconds=0.3) as waiting, pytest.raises(ServerError) as caught:
            waiting.list_models()
    assert caught.value.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    assert 0.2 < monotonic() - start < 5


def test_a_request_larger_than_grpc_s_usual_4_mb_goes_through(client: Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    assert len(buffer.getvalue()) > 5_000_000
    (answer,) = client.explain(buffer.getvalue())
    assert (answer.width, answer.height) == (1400, 1400)


def test_a_client_lists_and_describes_models(client: Client) -> None:
    (status,) = client.list_models()
    assert (status.model, status.version, status.ready, status.problem) == ("tiny", "1", True, "")
    assert list(status.rows) == ["parts", "class_features"]
    assert client.get_model() == client.get_model("tiny", "1")


def test_a_closed_client_asks_nobody(address: str) -> None:
    with Client(address) as closed:
        assert closed.list_models()
    with pytest.raises(ValueError, match="closed channel"):
        closed.explain(png(PIXELS[0]))


def test_a_model_says_whether_its_contributions_have_a_place(client: Client) -> None:
    described = client.get_model("tiny")
    assert (described.exact, described.inexact, described.features) == (True, "", 8)
