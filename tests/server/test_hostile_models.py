"""Every hostile file is refused with a sentence that gives nothing away, and the good model beside them answers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from analyzers.files import write_atomically
from server.entry import Entry
from server.load import load_model
from server.repository import Repository
from server.vet import TrialLimits, Vetting
from tests.conftest import SIZE
from tests.hostile import CONTENTS, PLACES, SLOW

SECONDS = 20.0
LIMITS = TrialLimits(SECONDS, 2 << 30, 8)


def opened(root: Path) -> Repository:
    loader = partial(load_model, device="cpu", threads=1, vet=Vetting(LIMITS))
    return Repository.open(root, loader, versions="latest")


def answers(repository: Repository) -> bool:
    model = repository.get("good", "")
    outputs = model.session.run_images(model.manifest, np.zeros((2, 3, SIZE, SIZE), np.float32))
    return bool(np.isfinite(outputs["logits"]).all())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, tiny_model: bytes) -> Iterator[Repository]:
    root = tmp_path_factory.mktemp("hostile") / "models"
    write_atomically(root / "good" / "1" / "model.onnx", tiny_model)
    for name, make in CONTENTS.items():
        write_atomically(root / name / "1" / "model.onnx", make(tiny_model))
    for name, put in PLACES.items():
        path = root / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        put(path, tiny_model)
    return opened(root)


def refused(entry: Entry, root: str) -> None:
    assert entry.model is None, "it is served"
    assert entry.refused
    problem = entry.problem
    assert 10 < len(problem) <= 300, problem
    assert "\n" not in problem
    assert not re.search(r"Traceback|\.py|\.cc\b|log says more|trial failed|/onnxruntime", problem), problem
    assert root not in problem


@pytest.mark.parametrize("name", [*CONTENTS, *PLACES])
def test_a_hostile_file_is_refused_with_a_sentence(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    entry = next(entry for entry in repository.entries if entry.name == name)
    refused(entry, str(tmp_path_factory.getbasetemp()))


def test_there_are_enough_of_them_and_the_good_one_answers(repository: Repository) -> None:
    assert len(CONTENTS) + len(PLACES) >= 100
    assert [entry.name for entry in repository.entries if entry.model is not None] == ["good"]
    assert answers(repository)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_what_takes_too_much_is_ended_in_time(tmp_path: Path, tiny_model: bytes, name: str) -> None:
    write_atomically(tmp_path / "good" / "1" / "model.onnx", tiny_model)
    write_atomically(tmp_path / name / "1" / "model.onnx", SLOW[name](tiny_model))
    started = time.monotonic()
    repository = opened(tmp_path)
    assert time.monotonic() - started < 1.5 * SECONDS
    refused(next(entry for entry in repository.entries if entry.name == name), str(tmp_path))
    assert answers(repository)
