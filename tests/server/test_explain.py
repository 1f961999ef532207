"""Answers over the wire are those of the file, for every way to send a picture."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from analyzers.errors import InvalidInputError
from analyzers.explain import Wanted, explain
from analyzers.geometry import Frame
from analyzers.manifest import Manifest
from analyzers.pixels import to_model_input
from analyzers.runtime import open_session
from server.client import Client, ServerError
from server.command import main as ask
from tests.conftest import NAMES, SIZE, png, random_pictures

PIXELS = random_pictures(8).decoded(SIZE, SIZE)


@pytest.fixture(scope="module")
def client(address: str) -> object:
    with Client(address) as opened:
        yield opened


def rounded(explanation: object) -> object:
    """Round through float32, as the wire does."""
    if isinstance(explanation, float):
        return np.float32(explanation).item()
    if isinstance(explanation, tuple):
        return tuple(map(rounded, explanation))
    if hasattr(explanation, "__dataclass_fields__"):
        fields = {name: rounded(getattr(explanation, name)) for name in explanation.__dataclass_fields__}
        return type(explanation)(**fields)
    return explanation


def test_answers_are_the_analyzers_own(client: Client, tiny_model: bytes) -> None:
    session = open_session(tiny_model)
    manifest = Manifest.from_metadata(session.metadata)
    outputs = session.run_images(manifest, to_model_input(PIXELS))
    frame = Frame(1.0, 1.0, SIZE, SIZE)
    expected = [rounded(explain(manifest, outputs, row, frame, Wanted())) for row in range(8)]
    assert client.explain(PIXELS) == expected


def test_an_answer_is_the_same_alone_and_in_a_batch(client: Client) -> None:
    together = client.explain(PIXELS)
    assert [client.explain(picture)[0] for picture in PIXELS] == together


def test_every_way_to_send_a_picture_gives_the_same_answer(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png(PIXELS[0]))
    expected = client.explain(PIXELS[:1])
    ways = [path, str(path), path.read_bytes(), PIXELS[0], [PIXELS[0]], PIXELS[0].astype(np.float32) / np.float32(255)]
    assert all(client.explain(way) == expected for way in ways)


def test_ledgers_add_up_for_every_class(client: Client) -> None:
    for explanation in client.explain(PIXELS, top_k_classes=3):
        assert [ledger.class_name for ledger in explanation.class_features] == [
            prediction.class_name for prediction in explanation.predictions
        ]
        assert sum(p.probability for p in explanation.predictions) == pytest.approx(1, abs=1e-6)
        for ledger in explanation.class_features:
            assert ledger.total == pytest.approx(ledger.logit, abs=1e-4)
            amounts = [abs(entry.contribution) for entry in ledger.contributions]
            assert amounts == sorted(amounts, reverse=True)


def test_fewer_reasons_leave_the_sum_as_it_was(client: Client) -> None:
    (few,) = client.explain(PIXELS[0], top_k_reasons=1, top_k_classes=2)
    assert len(few.predictions) == len(few.class_features) == 2
    for ledger in few.class_features:
        assert len(ledger.contributions) == 1
        assert ledger.omitted != 0
        assert ledger.total == pytest.approx(ledger.logit, abs=1e-4)
    assert len(few.parts.parts) == 1


def test_only_the_rows_that_are_wanted_come(client: Client) -> None:
    (parts,) = client.explain(PIXELS[0], rows=["parts"])
    assert parts.parts is not None
    assert parts.class_features is None
    (ledgers,) = client.explain(PIXELS[0], rows=["class_features"])
    assert ledgers.parts is None
    assert any(entry.part is not None for entry in ledgers.class_features[0].contributions)
    (neither,) = client.explain(PIXELS[0], rows=["explanatory_graph"])
    assert (neither.parts, neither.class_features) == (None, None)


def test_positions_are_pixels_of_the_picture_that_was_sent(client: Client) -> None:
    (small,) = client.explain(PIXELS[0])
    large = Image.fromarray(PIXELS[0]).resize((SIZE * 10, SIZE * 5), Image.Resampling.NEAREST)
    (stretched,) = client.explain(png(np.asarray(large)))
    assert (stretched.width, stretched.height) == (160, 80)
    shrunk = np.asarray(large.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    (same,) = client.explain(shrunk)
    assert [(p.x, p.y) for p in stretched.parts.parts] == [(p.x * 10, p.y * 5) for p in same.parts.parts]
    assert all(0 <= p.x <= SIZE and 0 <= p.y <= SIZE for p in small.parts.parts)


def test_a_turned_picture_is_explained_upright(client: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    assert client.explain(buffer.getvalue()) == client.explain(PIXELS[0])


def test_concurrent_requests_get_their_own_rows(address: str) -> None:
    with Client(address) as client:
        expected = client.explain(PIXELS)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda row: client.explain(PIXELS[row % 8])[0], range(160)))
    assert answers == [expected[row % 8] for row in range(160)]


def test_mixed_or_strange_images_are_refused_by_the_client(client: Client) -> None:
    for images in ([PIXELS[0], png(PIXELS[0])], [3], [PIXELS[0], PIXELS[0][:8]], PIXELS.astype(np.int32)):
        with pytest.raises(InvalidInputError, match="images: "):
            client.explain(images)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with Client("127.0.0.1:1", timeout_seconds=2) as client, pytest.raises(ServerError) as caught:
        client.list_models()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_the_command_prints_json_and_models(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png(PIXELS[0]))
    assert ask(["explain", str(path), str(path), "--server", address, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["picture"] for answer in answers] == [str(path)] * 2
    assert {p["class_name"] for p in answers[0]["predictions"]} == set(NAMES)
    assert ask(["explain", str(path), "--server", address]) == 0
    lines = capsys.readouterr().out.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.strip().startswith("---"))
    amounts = [float(line.split()[0]) for line in lines[1:rule]]
    assert sum(amounts) == pytest.approx(float(lines[rule + 1].split()[0]), abs=0.005)
    assert ask(["models", "--server", address]) == 0
    assert capsys.readouterr().out == "tiny/1  parts, class_features\n"


def test_the_command_s_errors_are_one_sentence(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["nowhere.png", "--server", address],
        [__file__, "--server", address],
        [__file__, "--server=127.0.0.1:1"],
    ):
        assert ask(["explain", *arguments, "--timeout=2"]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("pellucid: error: ")
        assert errors.count("\n") == 1
