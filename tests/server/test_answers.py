"""Answers: what the analyzers compute, the same however a picture travels, and adding up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from hashlib import sha256

import grpc
import numpy as np
import pytest

from analyzers.explain import Wanted, explain
from analyzers.explanation import Box, Explanation, Part
from analyzers.geometry import Frame
from analyzers.manifest import Manifest
from analyzers.pixels import to_model_input
from analyzers.runtime import open_session
from pellucid.v1 import explain_pb2 as pb
from pellucid.v1 import explain_pb2_grpc as pb_grpc
from server.client import Client
from tests.conftest import FILTERS, NAMES, SIZE, random_pictures, unsigned

PICTURES = random_pictures(8, seed=7).encoded
PIXELS = random_pictures(8, seed=7).decoded(SIZE, SIZE)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as opened:
        yield opened


@pytest.fixture(scope="module")
def computed(tiny_model: bytes) -> list[Explanation]:
    """What the analyzers make of PIXELS in this process, without any server."""
    session = open_session(tiny_model, threads=1)
    manifest = Manifest.from_metadata(session.metadata)
    outputs = session.run_images(manifest, to_model_input(PIXELS))
    frame = Frame(scale_x=1, scale_y=1, width=SIZE, height=SIZE)
    return [explain(manifest, outputs, row, frame, Wanted()) for row in range(len(PIXELS))]


def as_sent(value: object) -> object:
    """Round every number as the wire does, to float32; leave the rest."""
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, dict):
        return {key: as_sent(item) for key, item in value.items()}
    return [as_sent(item) for item in value] if isinstance(value, list | tuple) else value


def test_an_answer_is_what_the_analyzers_compute_from_the_same_file(
    client: Client, computed: list[Explanation]
) -> None:
    answers = client.explain(PICTURES)
    assert len(answers) == 8
    for answer, expected in zip(unsigned(answers), unsigned(computed), strict=True):
        assert as_sent(asdict(answer)) == as_sent(asdict(expected))
        assert answer.parts.parts
        assert len(answer.class_features) == len(NAMES)


def test_an_answer_s_numbers_are_the_file_s_own_outputs(client: Client, tiny_model: bytes) -> None:
    outputs = open_session(tiny_model, threads=1).run({"image": to_model_input(PIXELS)})
    for row, answer in enumerate(client.explain(PICTURES)):
        logits = outputs["logits"][row]
        assert [p.class_index for p in answer.predictions] == np.argsort(-logits).tolist()
        assert [p.logit for p in answer.predictions] == sorted(logits.tolist(), reverse=True)
        assert sum(p.probability for p in answer.predictions) == pytest.approx(1, abs=1e-6)
        fired = {part.filter: part.score for part in answer.parts.parts}
        score = outputs["parts.score"][row]
        assert fired == {number: float(score[number]) for number in range(FILTERS) if score[number] > 0}
        assert list(fired.values()) == sorted(fired.values(), reverse=True)
        for rank, ledger in enumerate(answer.class_features):
            assert ledger.class_index == outputs["class_features.classes"][row, rank]
            assert ledger.rest == outputs["class_features.rest"][row, ledger.class_index]
            assert ledger.bias == outputs["class_features.bias"][row, rank]


def test_a_picture_gets_the_same_bits_alone_and_in_a_batch_of_8(client: Client) -> None:
    together = client.explain(PICTURES)
    alone = [client.explain(picture)[0] for picture in PICTURES]
    assert alone == together
    assert len({answer.predictions for answer in together}) == 8


def test_a_file_its_pixels_and_its_floats_get_the_same_bits(client: Client) -> None:
    encoded = unsigned(client.explain(PICTURES))
    assert unsigned(client.explain(PIXELS)) == encoded
    assert unsigned(client.explain((PIXELS / 255).astype(np.float32))) == encoded


def test_the_order_of_the_answers_is_the_order_of_the_pictures(client: Client) -> None:
    assert client.explain(PICTURES[::-1]) == client.explain(PICTURES)[::-1]


def test_concurrent_requests_get_their_own_rows(client: Client) -> None:
    expected = [client.explain(picture) for picture in PICTURES]

    def ask(number: int) -> list[bool]:
        return [client.explain(PICTURES[number]) == expected[number] for _ in range(20)]

    with ThreadPoolExecutor(8) as threads:
        assert all(all(same) for same in threads.map(ask, range(8)))


def test_only_the_rows_that_were_asked_for_are_answered(client: Client) -> None:
    whole = client.explain(PICTURES)
    assert client.explain(PICTURES, rows=["parts"]) == [
        replace(answer, class_features=None, contrast=None) for answer in whole
    ]
    assert client.explain(PICTURES, rows=["class_features"]) == [replace(answer, parts=None) for answer in whole]
    assert client.explain(PICTURES, rows=["class_features", "parts", "parts"]) == whole


def test_a_known_row_that_the_model_lacks_is_absent_not_an_error(client: Client) -> None:
    for answer in client.explain(PICTURES, rows=["explanatory_graph"]):
        assert answer.predictions
        assert answer.parts is None
        assert answer.class_features is None


@pytest.mark.parametrize(("asked", "answered"), [(0, 3), (1, 1), (2, 2), (3, 3), (4, 3), (2**31 - 1, 3)])
def test_the_best_classes_are_answered_as_many_as_were_asked_for(client: Client, asked: int, answered: int) -> None:
    for answer, whole in zip(client.explain(PICTURES, top_k_classes=asked), client.explain(PICTURES), strict=True):
        assert answer.predictions == whole.predictions[:answered]
        assert answer.class_features == whole.class_features[:answered]
        assert answer.parts == whole.parts


@pytest.mark.parametrize("asked", [1, 2, 3, 2**31 - 1])
def test_reasons_left_out_of_a_ledger_are_in_what_it_omitted(client: Client, asked: int) -> None:
    for answer, whole in zip(client.explain(PICTURES, top_k_reasons=asked), client.explain(PICTURES), strict=True):
        assert answer.parts.parts == whole.parts.parts[:asked]
        for ledger, full in zip(answer.class_features, whole.class_features, strict=True):
            assert ledger.contributions == full.contributions[:asked]
            left_out = [entry.contribution for entry in full.contributions[asked:]]
            assert ledger.omitted == pytest.approx(sum(left_out), abs=1e-6)
            assert full.omitted == 0


@pytest.mark.parametrize("reasons", [0, 1, 2])
def test_every_ledger_adds_up_to_its_logit(client: Client, reasons: int) -> None:
    for answer in client.explain(PICTURES, top_k_reasons=reasons):
        by_class = {p.class_index: p.logit for p in answer.predictions}
        assert [ledger.class_index for ledger in answer.class_features] == list(by_class)
        for ledger in answer.class_features:
            parts = sum(entry.contribution for entry in ledger.contributions)
            assert parts + ledger.omitted + ledger.rest + ledger.bias == pytest.approx(ledger.logit, abs=1e-5)
            assert ledger.logit == by_class[ledger.class_index]
            sizes = [abs(entry.contribution) for entry in ledger.contributions]
            assert sizes == sorted(sizes, reverse=True)


def test_a_contribution_points_at_the_filter_that_fired_and_at_none_that_did_not(client: Client) -> None:
    silent = np.zeros((SIZE, SIZE, 3), np.uint8)  # only filters with a positive bias fire on black
    answers = client.explain(np.concatenate([PIXELS, silent[None]]))
    entries = [
        (answer, entry) for answer in answers for ledger in answer.class_features for entry in ledger.contributions
    ]
    for answer, entry in entries:
        fired: dict[int, Part] = {part.filter: part for part in answer.parts.parts}
        assert entry.part == fired.get(entry.feature)
        assert (entry.part is None) == (entry.activation == 0)
    assert {entry.part is None for _, entry in entries} == {True, False}


def test_positions_lie_inside_the_picture_and_in_their_own_cell(client: Client) -> None:
    for answer in client.explain(PICTURES):
        assert (answer.width, answer.height) == (SIZE, SIZE)
        for part in answer.parts.parts:
            field = part.receptive_field
            assert 0 <= field.left <= part.cell.left <= part.x <= part.cell.right <= field.right <= SIZE
            assert 0 <= field.top <= part.cell.top <= part.y <= part.cell.bottom <= field.bottom <= SIZE


def test_positions_follow_the_spot_that_made_a_filter_fire(client: Client) -> None:
    pictures = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    pictures[0, 6, 2] = pictures[1, 6, 10] = 255  # one white pixel, 8 pixels further to the right
    left, right = ({part.filter: part for part in answer.parts.parts} for answer in client.explain(pictures))
    moved = [number for number in left if number in right and left[number].x != right[number].x]
    assert moved
    for number in moved:
        assert right[number] == replace(
            left[number],
            x=left[number].x + 8,
            cell=shifted(left[number].cell),
            receptive_field=shifted(left[number].receptive_field),
        )
        field = left[number].receptive_field
        assert field.left <= 2.5 <= field.right
        assert field.top <= 6.5 <= field.bottom


def shifted(box: Box) -> Box:
    """Return the box 8 pixels further to the right."""
    return replace(box, left=box.left + 8, right=box.right + 8)


def test_an_answer_says_which_model_and_version_gave_it(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.ExplainServiceStub(channel)
        for asked in (("", ""), ("tiny", ""), ("tiny", "1"), ("", "1")):
            request = pb.ExplainRequest(model=asked[0], version=asked[1], encoded_images=PICTURES[:1])
            answer = stub.Explain(request, timeout=20)
            assert (answer.model, answer.version, len(answer.explanations)) == ("tiny", "1", 1)


def test_every_answer_says_how_exact_it_is_and_what_it_is_about(client: Client, tiny_model: bytes) -> None:
    for answer, picture in zip(client.explain(PICTURES), PICTURES, strict=True):
        proof = answer.proof
        assert proof.completeness_gap == pytest.approx(0, abs=1e-5)
        assert (proof.exact, proof.inexact) == (True, "")
        assert proof.model_sha256 == sha256(tiny_model).hexdigest()
        assert proof.image_sha256 == sha256(picture).hexdigest()
        assert proof.execution_provider == "CPUExecutionProvider"
        assert proof.runtime.startswith("onnxruntime 1.")
    (answer,) = client.explain(PIXELS[:1])
    assert answer.proof.image_sha256 == sha256(PIXELS[0].tobytes()).hexdigest()


def test_the_contrast_adds_up_to_the_margin_over_the_runner_up(client: Client) -> None:
    for answer in client.explain(PICTURES):
        best, other = answer.predictions[:2]
        contrast = answer.contrast
        assert (contrast.class_index, contrast.against_index) == (best.class_index, other.class_index)
        assert contrast.margin == pytest.approx(best.logit - other.logit, abs=1e-6)
        assert contrast.total == pytest.approx(contrast.margin, abs=1e-5)
        assert len(contrast.contributions) == FILTERS
        assert any(entry.part is not None for entry in contrast.contributions)


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-5), ("float16", 1e-2)])
def test_evidence_by_cell_adds_up_to_each_logit_and_comes_only_when_asked_for(
    client: Client, kind: str, tolerance: float
) -> None:
    assert all(ledger.evidence is None for answer in client.explain(PICTURES) for ledger in answer.class_features)
    for answer in client.explain(PICTURES, evidence=kind):
        for ledger in answer.class_features:
            values = np.array(ledger.evidence.values)
            assert values.shape == (8, 8)
            assert values.sum() + ledger.bias == pytest.approx(ledger.logit, abs=tolerance * 10)
            assert ledger.evidence.area == Box(-0.5, -0.5, 15.5, 15.5)
