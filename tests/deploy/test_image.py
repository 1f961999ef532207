"""The CPU image, made by the Dockerfile's own steps and run as Kubernetes would run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.container.__main__ import write_explained
from tests.container.box import Limits, running
from tests.container.build import Image, missing
from tests.container.rehearse import MB, Start, added, built, packages, start

pytestmark = pytest.mark.slow

MOST_MB = 400
MOST_CPU_SECONDS = 5.0


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if lacking := missing():
        pytest.skip(f"the image cannot be made here without {lacking}")
    with built(ROOT, "cpu") as made:
        yield made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explained(tmp_path_factory.mktemp("container"))


@pytest.fixture(scope="module")
def started(image: Image, models: Path) -> Start:
    """One life of the container, on a root where nothing can be written, not even /tmp."""
    return start(image, models)


def test_the_image_adds_little_and_neither_torch_nor_pip_s_leavings(image: Image) -> None:
    sizes = added(image)
    assert sum(sizes.values()) <= MOST_MB * MB
    assert packages(sizes).keys() >= {"onnxruntime", "grpc", "server", "analyzers"}
    assert not packages(sizes).keys() & {"torch", "onnx", "pip", "hatchling", "grpc_tools"}
    assert not [path for path in sizes if "/.cache/" in path or path.startswith(("/wheels", "/source", "/installed"))]
    assert not [name for name in ("gcc", "cc", "g++", "make") if (image.root / "usr/bin" / name).exists()]


def test_it_answers_with_reasons_and_stops_without_a_fault_on_a_read_only_root_without_tmp(started: Start) -> None:
    assert started.answer.keys() >= {"predictions", "class_features"}, started.answer
    assert started.stopped == 0
    assert "ERROR" not in started.log
    assert "CPUExecutionProvider" in started.log


def test_the_health_check_is_content(started: Start) -> None:
    assert started.health == 0


def test_it_starts_in_a_few_seconds_of_processor_time(started: Start) -> None:
    assert started.cpu_seconds <= MOST_CPU_SECONDS


def test_it_is_nobody_in_particular_and_can_change_nothing(image: Image, models: Path) -> None:
    with running(image, Limits(models)) as box:
        said = box.run("sh", "-c", "id -u; grep -h Cap /proc/1/status; touch /x /tmp/x /models/x /opt/pellucid/x")
        first, *capabilities = said.stdout.splitlines()
        assert first == "65532"
        assert {line.split()[1] for line in capabilities} == {"0" * 16}
        assert said.stderr.count("Read-only file system") == 4
        assert box.stop() == 0
