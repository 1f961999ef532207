"""Names, versions and states: what is served changes whole, at once, and never for the worse."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from analyzers.errors import ModelError
from analyzers.files import write_atomically
from server.errors import RefusedModelError, UnknownModelError
from server.repository import Repository, RepositoryError


class Queue:
    """Stands for a model's queue, which lives for as long as somebody holds the model."""


class Loader:
    """Makes models of files that do not begin with "bad", counts how often, and waits where it is told to."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.begun = threading.Event()

    def __call__(self, path: Path, name: str, version: str) -> SimpleNamespace:
        self.loads.append(f"{name}/{version}")
        self.begun.set()
        if (gate := self.gates.get(name)) is not None:
            assert gate.wait(20)
        text = path.read_text()
        if text.startswith("bad"):
            raise ModelError(f"its text is '{text}'")
        session = SimpleNamespace(provider="none")
        return SimpleNamespace(
            name=name,
            version=version,
            text=text,
            batcher=Queue(),
            session=session,
            manifest=SimpleNamespace(rows=()),
        )


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str, str], Path]:
    def write(name: str, version: str, text: str) -> Path:
        path = tmp_path / name / version / "model.onnx"
        write_atomically(path, text.encode())
        return path

    return write


def states(repository: Repository) -> dict[str, str]:
    return {f"{entry.name}/{entry.version}": entry.state for entry in repository.index()}


def reason(repository: Repository, version: str) -> str:
    return next(entry.reason for entry in repository.index() if entry.version == version)


def test_the_newest_good_version_is_served_and_the_bad_one_says_why(
    tmp_path: Path, loader: Loader, put: Callable
) -> None:
    for version, text in (("2", "two"), ("9", "nine"), ("10", "bad ten")):
        put("m", version, text)
    repository = Repository.open(tmp_path, loader, versions="latest")
    assert repository.get("m", "").text == "nine"
    assert states(repository) == {"m/2": "UNAVAILABLE", "m/9": "READY", "m/10": "UNAVAILABLE"}
    assert reason(repository, "10") == "its text is 'bad ten'"
    with pytest.raises(RefusedModelError, match="version 10 was refused"):
        repository.get("m", "10")
    with pytest.raises(UnknownModelError, match="version 2 is not loaded"):
        repository.get("m", "2")
    assert loader.loads == ["m/10", "m/9"]


@pytest.mark.parametrize(("versions", "served"), [("all", "1 2 3"), (2, "2 3"), (9, "1 2 3"), ("latest", "3")])
def test_as_many_versions_are_served_as_the_policy_says(
    tmp_path: Path, loader: Loader, put: Callable, versions: str | int, served: str
) -> None:
    for version in "123":
        put("m", version, version)
    repository = Repository.open(tmp_path, loader, versions=versions)
    assert [entry.version for entry in repository.entries if entry.model is not None] == served.split()
    assert [repository.get("m", version).text for version in served.split()] == served.split()


def test_polling_takes_up_what_is_new_and_lets_go_of_what_is_gone(
    tmp_path: Path, loader: Loader, put: Callable
) -> None:
    first = put("m", "1", "one")
    repository = Repository.open(tmp_path, loader, versions="latest")
    second = put("m", "2", "two")
    put("n", "1", "other")
    repository.poll()
    assert (repository.get("m", "").text, repository.get("n", "").text) == ("two", "other")
    assert states(repository) == {"m/1": "UNAVAILABLE", "m/2": "READY", "n/1": "READY"}
    second.unlink()
    repository.poll()
    assert repository.get("m", "").text == "one"
    first.unlink()
    first.parent.rmdir()
    second.parent.rmdir()
    repository.poll()
    with pytest.raises(UnknownModelError, match="there is no model 'm'; there are n"):
        repository.get("m", "")


def test_a_refused_file_is_tried_again_only_when_it_has_changed(tmp_path: Path, loader: Loader, put: Callable) -> None:
    path = put("m", "1", "bad")
    repository = Repository.open(tmp_path, loader, versions="latest")
    for _ in range(3):
        repository.poll()
    assert loader.loads == ["m/1"]
    path.write_text("bad, but longer")  # copied in place, and still not whole
    repository.poll()
    path.write_text("good at last")
    repository.poll()
    repository.poll()
    assert loader.loads == ["m/1"] * 3
    assert repository.get("m", "").text == "good at last"


def test_a_good_version_outlives_a_bad_file_in_its_place(tmp_path: Path, loader: Loader, put: Callable) -> None:
    put("m", "1", "one")
    repository = Repository.open(tmp_path, loader, versions="latest")
    put("m", "1", "bad one")
    repository.poll()
    assert repository.get("m", "1").text == "one"
    assert states(repository) == {"m/1": "READY"}
    assert "the one before still answers: its text is 'bad one'" in reason(repository, "1")
    with pytest.raises(RefusedModelError, match="still answers"):
        repository.load("m")
    put("m", "1", "better")
    repository.poll()
    assert (repository.get("m", "1").text, reason(repository, "1")) == ("better", "")


def test_a_bad_newer_version_leaves_the_older_one_in_place(tmp_path: Path, loader: Loader, put: Callable) -> None:
    put("m", "1", "one")
    repository = Repository.open(tmp_path, loader, versions="latest")
    model = repository.get("m", "")
    put("m", "2", "bad two")
    with pytest.raises(RefusedModelError, match="version 2 was refused"):
        repository.load("m")
    repository.poll()
    assert repository.get("m", "").text == "one"
    put("m", "2", "two")
    repository.poll()
    assert (repository.get("m", "").text, model.text) == ("two", "one")


def test_the_old_one_answers_until_the_new_one_is_ready(tmp_path: Path, loader: Loader, put: Callable) -> None:
    put("m", "1", "one")
    repository = Repository.open(tmp_path, loader, versions="latest")
    gate = loader.gates["m"] = threading.Event()
    loader.begun.clear()
    put("m", "2", "two")
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(repository.load, "m")
        assert loader.begun.wait(20)
        assert repository.get("m", "").text == "one"
        assert states(repository) == {"m/1": "READY", "m/2": "LOADING"}
        with pytest.raises(UnknownModelError, match="version 2 is being loaded"):
            repository.get("m", "2")
        gate.set()
        loading.result(20)
    assert repository.get("m", "").text == "two"


def test_work_on_one_name_waits_for_its_turn_and_other_names_do_not(
    tmp_path: Path, loader: Loader, put: Callable
) -> None:
    put("slow", "1", "one")
    put("other", "1", "one")
    repository = Repository.open(tmp_path, loader, versions="latest")
    gate = loader.gates["slow"] = threading.Event()
    loader.begun.clear()
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(repository.load, "slow")
        assert loader.begun.wait(20)
        unloading = threads.submit(repository.unload, "slow")
        repository.poll()  # leaves the busy name alone
        repository.load("other")
        assert not unloading.done()
        assert repository.get("slow", "").text == "one"
        gate.set()
        loading.result(20)
        unloading.result(20)
    assert states(repository)["slow/1"] == "UNAVAILABLE"


def test_what_was_unloaded_stays_away_until_it_is_loaded(tmp_path: Path, loader: Loader, put: Callable) -> None:
    put("m", "1", "one")
    repository = Repository.open(tmp_path, loader, versions="latest")
    repository.unload("m")
    put("m", "2", "two")
    repository.poll()
    for version in ("", "1"):
        with pytest.raises(UnknownModelError, match="was unloaded"):
            repository.get("m", version)
    repository.unload("m")
    repository.load("m")
    assert repository.get("m", "").text == "two"


def test_a_model_in_use_is_unloading_until_its_last_request_is_done(
    tmp_path: Path, loader: Loader, put: Callable
) -> None:
    put("m", "1", "one")
    repository = Repository.open(tmp_path, loader, versions="latest")
    model = repository.get("m", "")
    repository.unload("m")
    assert states(repository) == {"m/1": "UNLOADING"}
    assert model.text == "one"
    del model
    assert states(repository) == {"m/1": "UNAVAILABLE"}


def test_nobody_ever_finds_a_model_missing_while_it_is_replaced(tmp_path: Path, loader: Loader, put: Callable) -> None:
    put("m", "1", "1")
    repository = Repository.open(tmp_path, loader, versions="latest")
    done = threading.Event()

    def read() -> int:
        last = 0
        while not done.is_set():
            now = int(repository.get("m", "").text)
            assert now >= last
            last = now
        return int(repository.get("m", "").text)

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        for number in range(2, 30):
            put("m", str(number // 10 + 1), str(number))  # in place nine times out of ten
            repository.load("m") if number % 2 else repository.poll()
        done.set()
        assert [reader.result(20) for reader in readers] == [29] * 2


@pytest.mark.parametrize("name", ["../m", "..", ".", "m/1", "/etc", "m\x00", "m\n", "", "x" * 5000, "\udcff", "C:\\m"])
def test_names_that_lead_elsewhere_are_unknown(tmp_path: Path, loader: Loader, put: Callable, name: str) -> None:
    put("root/m", "1", "one")
    put("m", "1", "outside")
    repository = Repository.open(tmp_path / "root", loader, versions="latest")
    for act in (repository.load, repository.unload):
        with pytest.raises(UnknownModelError, match="there is no model") as caught:
            act(name)
        assert len(str(caught.value)) < 300
        assert len(caught.value.name) <= 80
    assert loader.loads == ["m/1"]


def test_folders_that_are_no_models_are_left_out(tmp_path: Path, loader: Loader, put: Callable) -> None:
    for name, version in (
        ("m", "1"),
        (".git", "1"),
        ("new\nline", "1"),
        (" padded ", "1"),
        ("x" * 200, "1"),
        ("m", "01"),
        ("m", "-1"),
        ("m", "2.0"),
        ("m", "\u0663"),
        ("m", "9" * 30),
        ("m", "latest"),
        (os.fsdecode(b"\xff"), "1"),
    ):
        put(name, version, "one")
    (tmp_path / "a file").write_text("")
    repository = Repository.open(tmp_path, loader, versions="all")
    assert states(repository) == {"m/1": "READY"}


def test_a_swap_of_links_within_the_repository_is_a_new_file(tmp_path: Path, loader: Loader) -> None:
    for number in "12":
        write_atomically(tmp_path / "m" / "1" / f"..2026_0{number}" / "model.onnx", number.encode())
    folder = tmp_path / "m" / "1"
    (folder / "..data").symlink_to("..2026_01")
    (folder / "model.onnx").symlink_to("..data/model.onnx")
    repository = Repository.open(tmp_path, loader, versions="latest")
    assert repository.get("", "").text == "1"
    (folder / "..new").symlink_to("..2026_02")
    (folder / "..new").rename(folder / "..data")
    repository.poll()
    assert repository.get("", "").text == "2"


def test_links_out_of_the_repository_are_refused(tmp_path: Path, loader: Loader, put: Callable) -> None:
    outside = put("outside/m", "1", "secret")
    root = tmp_path / "root"
    (root / "file" / "1").mkdir(parents=True)
    (root / "file" / "1" / "model.onnx").symlink_to(outside)
    (root / "version").mkdir()
    (root / "version" / "1").symlink_to(outside.parent)
    (root / "name").symlink_to(outside.parent.parent)
    (root / "circle" / "1").mkdir(parents=True)
    (root / "circle" / "1" / "model.onnx").symlink_to("model.onnx")
    repository = Repository.open(root, loader, versions="all")
    assert loader.loads == []
    for name in ("file", "version", "name"):
        with pytest.raises(RefusedModelError, match="leads out of the repository") as caught:
            repository.get(name, "")
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(RefusedModelError):
        repository.get("circle", "")


def test_a_repository_that_is_away_for_a_while_stops_nothing(tmp_path: Path, loader: Loader, put: Callable) -> None:
    put("root/m", "1", "one")
    repository = Repository.open(tmp_path / "root", loader, versions="latest")
    (tmp_path / "root").rename(tmp_path / "away")
    repository.poll()
    assert repository.get("m", "").text == "one"
    assert states(repository) == {"m/1": "READY"}
    with pytest.raises(RepositoryError, match="there is no folder"):
        Repository.open(tmp_path / "root", loader, versions="latest")


def test_a_loader_that_breaks_refuses_that_file_alone_and_keeps_its_secrets(tmp_path: Path, put: Callable) -> None:
    def loader(path: Path, name: str, version: str) -> SimpleNamespace:
        if name == "m":
            raise ValueError(f"something about {path}")
        return Loader()(path, name, version)

    put("m", "1", "one")
    put("n", "1", "one")
    repository = Repository.open(tmp_path, loader, versions="latest")
    assert repository.get("n", "").text == "one"
    with pytest.raises(RefusedModelError) as caught:
        repository.get("m", "")
    assert str(tmp_path) not in str(caught.value)
