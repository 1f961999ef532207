"""Run paths on the CPU, where they gain nothing: each gives the bits of a plain run, from any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from analyzers.errors import ModelError
from analyzers.execution import Execution
from analyzers.manifest import Manifest
from analyzers.placement import RECORD, listed, placed, why_not_captured
from analyzers.run_paths import Bound, Captured
from analyzers.runtime import Run, Session, open_session, ort
from tests.conftest import tiny_plain

HERE = ("cpu", 0)
Open = Callable[[bytes], Session]


def bound(model: bytes) -> Session:
    session = open_session(model, threads=1)
    return replace(session, path=Bound(session.session, HERE))


def captured(model: bytes, sizes: tuple[int, ...] = (1, 2, 4)) -> Session:
    session = open_session(model, threads=1)
    rows = [output.name for output in session.session.get_outputs() if not isinstance(output.shape[0], int)]
    return replace(session, path=Captured(session.session, HERE, sizes, rows))


def shrinking(model: bytes) -> Session:
    session = open_session(model, threads=1, execution=Execution(shrink_arena=True))
    assert session.run_options == {"memory.enable_memory_arena_shrinkage": "cpu:0"}
    return session


PATHS = pytest.mark.parametrize("opened", [bound, captured, shrinking])


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, 16, 16), np.float32)


@PATHS
def test_every_output_has_the_bits_of_a_plain_run_whatever_the_number_of_pictures(
    opened: Open, tiny_model: bytes
) -> None:
    plain, other = open_session(tiny_model, threads=1), opened(tiny_model)
    manifest = Manifest.from_metadata(plain.metadata)
    for count in (1, 3, 2, 4, 3, 7):  # 3 are padded to 4; 7 are more than any size
        wanted, found = (session.run_images(manifest, pictures(count)) for session in (plain, other))
        assert list(wanted) == list(found)
        assert all(np.array_equal(wanted[name], found[name]) for name in wanted)
        assert all(wanted[name].dtype == found[name].dtype for name in wanted)


@PATHS
def test_only_what_is_named_comes_back_and_what_has_no_rows_does_too(opened: Open, tiny_model: bytes) -> None:
    session, head = opened(tiny_model), "class_features.head"
    answer = session.run({"image": pictures(2)}, ["parts.cell", "logits"])
    assert list(answer) == ["parts.cell", "logits"]
    wanted = open_session(tiny_model).run({"image": pictures(1)}, [head])[head]
    assert np.array_equal(session.run({"image": pictures(3)}, [head])[head], wanted)


@PATHS
def test_an_answer_stays_what_it_was_when_others_run(opened: Open, tiny_model: bytes) -> None:
    session = opened(tiny_model)
    first = session.run({"image": pictures(2)}, ["logits"])["logits"]
    kept = first.copy()
    session.run({"image": 1 - pictures(2)}, ["logits"])
    assert np.array_equal(first, kept)


@PATHS
def test_many_threads_share_a_session_and_get_their_own_rows(opened: Open, tiny_model: bytes) -> None:
    plain, session = open_session(tiny_model, threads=1), opened(tiny_model)

    def same(number: int) -> bool:
        images = np.random.default_rng(number).random((1 + number % 5, 3, 16, 16), np.float32)
        wanted, found = (one.run({"image": images}, ["logits", "parts.score"]) for one in (plain, session))
        return all(np.array_equal(wanted[name], found[name]) for name in wanted)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(same, range(100)))


@PATHS
def test_a_run_that_is_ended_says_so_and_the_next_one_runs(opened: Open, tiny_model: bytes) -> None:
    session, run = opened(tiny_model), Run()
    run.end()
    with pytest.raises(ModelError, match=r"^the model failed to run: "):
        session.run({"image": pictures(1)}, ["logits"], run)
    assert session.run({"image": pictures(1)}, ["logits"], Run())["logits"].shape == (1, 3)


@PATHS
@pytest.mark.parametrize("feeds", [{"pixels": pictures(1)}, {"image": pictures(1)[:, :2]}], ids=["name", "channels"])
def test_a_run_that_fails_is_a_model_error_in_one_sentence(
    opened: Open, feeds: dict[str, np.ndarray], tiny_model: bytes
) -> None:
    session = opened(tiny_model)
    with pytest.raises(ModelError, match=r"^the model failed to run: ") as caught:
        session.run(feeds)
    assert "\n" not in str(caught.value)
    assert session.run({"image": pictures(1)}, ["logits"])["logits"].shape == (1, 3)


def test_the_cpu_takes_the_plain_path_and_captures_nothing(tiny_model: bytes) -> None:
    session = open_session(tiny_model, device="auto", execution=Execution(cuda_graphs=(1, 2)))
    assert session.captured == ()
    assert session.on_cpu == ""
    assert captured(tiny_model, (4, 1, 4)).captured == (1, 4)


def test_placement_counts_operators_by_provider_and_says_nothing_where_no_report_was_kept() -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    session = ort.InferenceSession(tiny_plain(), options, providers=["CPUExecutionProvider"])
    nodes = placed(session)["CPUExecutionProvider"]
    assert nodes["Conv"] == nodes["Gemm"] == 1
    assert placed(open_session(tiny_plain()).session) == {}
    assert listed(nodes + nodes).startswith("2 Conv, 2 Flatten, ")


def test_graphs_that_branch_or_touch_the_cpu_cannot_be_captured() -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    nodes = placed(ort.InferenceSession(tiny_plain(), options, providers=["CPUExecutionProvider"]))
    assert "on the CPU (Conv, Flatten" in (why_not_captured(nodes) or "")
    on_gpu = {"CUDAExecutionProvider": nodes["CPUExecutionProvider"]}
    assert why_not_captured(on_gpu) is None
    on_gpu["CUDAExecutionProvider"]["Loop"] += 2
    assert "decides what runs while it runs (2 Loop)" in (why_not_captured(on_gpu) or "")
