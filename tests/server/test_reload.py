"""Real models exchanged while they answer: no answer is lost, none is mixed, and their memory comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from analyzers.files import write_atomically
from server.load import load_model
from server.repository import Repository
from server.vet import TrialLimits, Vetting
from tests.conftest import SIZE, explain_tiny

MIB = 1 << 20


def opened(root: Path, vetting: Vetting) -> Repository:
    return Repository.open(root, partial(load_model, device="cpu", threads=1, vet=vetting), versions="latest")


def logits(repository: Repository) -> np.ndarray:
    model = repository.get("", "")
    return model.session.run_images(model.manifest, np.full((1, 3, SIZE, SIZE), 0.5, np.float32), ["logits"])["logits"]


def rss() -> int:
    """Return the memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.fixture
def two() -> list[bytes]:
    return [explain_tiny(seed)[2].SerializeToString(deterministic=True) for seed in (0, 1)]


@pytest.mark.parametrize("act", [Repository.poll, lambda repository: repository.load("m")])
def test_every_answer_during_reloads_is_one_model_s_own(
    tmp_path: Path, two: list[bytes], act: Callable[[Repository], None]
) -> None:
    path = tmp_path / "m" / "1" / "model.onnx"
    vetting = Vetting(TrialLimits(60, 8 << 30, 1))
    right = []
    for data in two:
        write_atomically(path, data)
        right.append(logits(opened(tmp_path, vetting)))
    repository = opened(tmp_path, vetting)
    done = threading.Event()

    def ask() -> set[int]:
        seen = set()
        while not done.is_set():
            answer = logits(repository)
            seen |= {next(number for number, expected in enumerate(right) if (answer == expected).all())}
        return seen

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        for number in range(8):
            write_atomically(path, two[number % 2])
            act(repository)
            assert (logits(repository) == right[number % 2]).all()
        write_atomically(path, two[0][:1000])
        repository.poll()
        assert (logits(repository) == right[1]).all()
        done.set()
        assert [one.result(60) for one in asking] == [{0, 1}] * 2


@pytest.mark.slow
def test_a_hundred_reloads_leave_no_memory_behind(tmp_path: Path) -> None:
    from benchmarks.latency import CASES, files

    explained = files(CASES[2])[1]  # a ResNet-18 for 224 x 224, 52 MB
    path = tmp_path / "m" / "1" / "model.onnx"
    write_atomically(path, explained)
    repository = opened(tmp_path, Vetting(TrialLimits(60, 8 << 30, 1)))
    after = []
    for _ in range(100):
        repository.load("m")
        after.append(rss())
    assert max(after[5:]) - after[5] < 20 * MIB
