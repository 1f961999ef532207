"""Drift: what a server's gauges say when pictures are as they were, and when they are not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from analyzers.__main__ import main as analyze
from analyzers.attach_graph import attach_graph
from analyzers.baseline import Baseline, shift
from analyzers.baseline_command import record_baseline
from analyzers.files import write_atomically
from analyzers.geometry import Frame
from analyzers.manifest import Manifest
from analyzers.plain import manifest_of
from analyzers.read_pictures import read_pictures
from analyzers.runtime import open_session
from analyzers.what_if import Change
from benchmarks.drift import answers as run
from benchmarks.drift import cases, shifts
from server.batcher import BatchLimits
from server.client import Client
from server.drift import MAX_NUMBERS, WINDOW, Drift
from server.load import load_model
from server.metrics import Scrape
from server.readings import ModelReading, Reading
from server.scrape import Own
from server.workers import Workers
from tests.conftest import NAMES, SIZE, explain_tiny, random_pictures, tiny_graph
from tests.server.test_metrics import infer, infer_request, measured, samples, value
from training.__main__ import main as train

Outputs = dict[str, np.ndarray]


def scores_only() -> Manifest:
    return manifest_of(explain_tiny()[2]).model_copy(update={"class_features": None, "parts": None})


def answers(classes: list[int], margin: float = 1.0) -> Outputs:
    """Outputs that say these classes, each with this margin."""
    logits = np.zeros((len(classes), len(NAMES)), np.float32)
    logits[np.arange(len(classes)), classes] = margin
    return {"logits": logits}


def counts(drift: Drift, what: str = "classes") -> list[int]:
    return drift.window().recent[what][0].tolist()


@pytest.fixture
def baseline() -> Baseline:
    random = np.random.default_rng(1)
    return Baseline.of(scores_only(), [{"logits": random.normal(0, 1, (60, len(NAMES))).astype(np.float32)}])


def test_the_window_holds_the_last_pictures_whatever_the_size_of_the_runs(baseline: Baseline) -> None:
    drift = Drift(baseline, scores_only(), pictures=5)
    assert drift.window().recent == {}
    drift.watch(answers([0, 0, 0]))
    assert counts(drift) == [3, 0, 0]
    drift.watch(answers([1, 1, 2]))
    assert counts(drift) == [2, 2, 1]
    drift.watch(answers([2]))
    assert counts(drift) == [1, 2, 2]
    drift.watch(answers([0, 0, 1, 1, 1, 1, 1]))
    assert counts(drift) == [0, 5, 0]


def test_a_window_takes_bounded_memory_however_many_classes_there_are(baseline: Baseline) -> None:
    many = baseline.model_copy(update={"classes": (60, *[0] * 49_999)})
    drift = Drift(many, scores_only())
    for _ in range(3):
        drift.watch({"logits": np.eye(1, 50_000, dtype=np.float32).repeat(64, 0)})
    assert counts(drift)[0] == MAX_NUMBERS // 50_000 < WINDOW


def test_runs_that_answer_part_of_the_outputs_count_for_what_they_answer() -> None:
    model = attach_graph(explain_tiny()[2], tiny_graph(explain_tiny()[2]))
    drift = Drift(record_baseline(model, random_pictures()), manifest_of(model))
    session, manifest = open_session(model.SerializeToString()), manifest_of(model)
    images = np.random.default_rng(0).random((4, 3, SIZE, SIZE), np.float32)
    whole = session.run_images(manifest, images)
    drift.watch(whole)
    lower = manifest.explanatory_graph.layers[1].percentile
    drift.watch({"logits": whole["logits"], lower: whole[lower]})
    sizes = {what: int(recent[0].sum()) for what, recent in drift.window().recent.items()}
    assert sizes == {"classes": 8, "confidence": 8, "features": 4, "nodes": 4}


def test_windows_of_several_processes_are_one_but_not_those_of_another_file(baseline: Baseline) -> None:
    first, second = Drift(baseline, scores_only()), Drift(baseline, scores_only())
    first.watch(answers([0, 0, 1]))
    second.watch(answers([1, 2]))
    joined = first.window().joined(second.window())
    assert joined.recent["classes"].tolist() == [[2, 2, 1]]
    assert joined.recent["confidence"].sum() == 5
    other = baseline.model_copy(update={"classes": (60, 0, 0)})
    assert first.window().joined(Drift(other, scores_only()).window()).recent["classes"].tolist() == [[2, 1, 0]]


def test_an_alarm_of_a_multiple_of_chance_is_silent_on_the_same_and_rings_on_others(baseline: Baseline) -> None:
    random = np.random.default_rng(2)

    def gauges(spread: float) -> dict[str, float]:
        drift = Drift(baseline, scores_only())
        drift.watch({"logits": random.normal(0, spread, (500, len(NAMES))).astype(np.float32)})
        scrape = Scrape()
        model = ModelReading(True, "CPU", 1, None, 0, drift.window())
        scrape.add(Own(lambda: Reading(models={("m", "1"): model})))
        found = {(s.name, s.labels.get("what", "")): s.value for family in scrape.collect() for s in family.samples}
        assert found["pellucid_drift_pictures", "classes"] == 500
        return {
            what: found["pellucid_drift", what] / found["pellucid_drift_by_chance", what]
            for what in ("classes", "confidence")
        }

    assert max(gauges(1).values()) < 4
    changed = gauges(4)
    assert changed["confidence"] > 5
    assert changed["classes"] < 4  # each is the best as often as before


def test_a_server_has_gauges_of_files_with_a_baseline_alone(tmp_path: Path, tiny_model: bytes) -> None:
    model = explain_tiny()[2]
    record_baseline(model, random_pictures())
    write_atomically(tmp_path / "known" / "1" / "model.onnx", model.SerializeToString())
    write_atomically(tmp_path / "unknown" / "1" / "model.onnx", tiny_model)
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    with measured(tmp_path) as (address, port, _):
        assert not value(samples(port), "pellucid_drift_pictures")
        with Client(address) as client:
            for name in "known", "unknown":
                client.explain([picture] * 40, model=name)
        request = infer_request(model_name="known")
        request.outputs.add(name="logits")
        infer(address, request)
        found = samples(port)
    assert {dict(own)["model"] for name, own in found if name.startswith("pellucid_drift")} == {"known"}
    sizes = {what: value(found, "pellucid_drift_pictures", what=what) for what in ("classes", "confidence", "features")}
    assert sizes == {"classes": 42, "confidence": 42, "features": 40}
    for what in sizes:
        drift, chance = (value(found, f"pellucid_drift{by}", what=what) for by in ("", "_by_chance"))
        assert 3 * chance < drift <= 1  # forty times the same picture


def test_pictures_that_we_have_painted_over_are_not_what_clients_send(tmp_path: Path) -> None:
    model = explain_tiny()[2]
    record_baseline(model, random_pictures())
    write_atomically(tmp_path / "model.onnx", model.SerializeToString())
    workers = Workers(1)
    limits = BatchLimits(max_batch=4, max_delay_seconds=0, max_queue=8, instances=1)
    loaded = load_model(
        tmp_path / "model.onnx", "m", "1", device="cpu", threads=1, workers=workers, limits=limits, drift=True
    )
    images = np.random.default_rng(3).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
    answer = loaded.what_if(images, Frame(1, 1, SIZE, SIZE), "", [Change("feature", 0, 0.0)], flip=False, occlude=True)
    assert asyncio.run(answer).occlusion is not None
    workers.stop()
    assert int(loaded.drift.window().recent["classes"].sum()) == 1
    assert load_model(tmp_path / "model.onnx", "m", "1", device="cpu", threads=1).drift is None


@pytest.mark.slow
def test_on_real_pictures_the_gauges_stay_near_chance_until_the_pictures_change(
    tmp_path: Path, shared_data: Path
) -> None:
    """A ResNet-20 on CIFAR-10; every second test picture is the baseline, the others are what is served."""
    weights, pack = shared_data / "resnet20-12fca82f.safetensors", shared_data / "cifar10-lossless.npz"
    plain, file = tmp_path / "plain.onnx", tmp_path / "model.onnx"
    assert train(f"export --backbone resnet20 --weights {weights} --data {pack} --output {plain}".split()) == 0
    assert analyze(f"attach {plain} --data {pack} --k1 10 --k2 10 --output {file}".split()) == 0
    session = open_session(file)
    manifest = Manifest.from_metadata(session.metadata)
    pictures = read_pictures(pack).of_split("test")
    pixels = pictures.decoded(32, 32)
    known = Baseline.of(manifest, run(session, manifest, pixels[::2]))
    windows = cases(pixels[1::2], pictures.label[1::2])

    def times(name: str) -> dict[str, float]:
        found = shifts(session, manifest, known, windows[name])
        return {what: each.found / each.by_chance for what, each in found.items()}

    assert max(times("as they are").values()) < 2
    assert max(times("mirrored").values()) < 2  # a change that does not matter to it
    assert min(times("blurred by 1 pixel").values()) > 5
    assert times("inverted")["confidence"] > 5
    assert times("inverted")["features"] > 3
    assert times("half of the classes")["classes"] > 5


def test_a_shift_says_both_what_is_and_what_chance_makes_of_it() -> None:
    same = shift(np.array([[50, 50]]), np.array([[50, 50]]))
    assert same.found == 0
    assert 0 < same.by_chance < 0.02
