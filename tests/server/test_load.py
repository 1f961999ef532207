"""What a server finds out about a file by running it, and reading a file that is not one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import onnx
import pytest

from analyzers.errors import ModelError
from analyzers.probe import PROBE_KEY
from server.load import load_model, read_file


def test_a_file_without_a_probe_is_served_and_the_log_says_so(
    tmp_path: Path, tiny_model: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    model = onnx.load_model_from_string(tiny_model)
    kept = [entry for entry in model.metadata_props if entry.key != PROBE_KEY]
    assert len(kept) < len(model.metadata_props)
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    path = tmp_path / "model.onnx"
    with caplog.at_level(logging.INFO):
        path.write_bytes(tiny_model)
        load_model(path, "tiny", "1", device="cpu", threads=1)
        assert "no probe" not in caplog.text
        path.write_bytes(model.SerializeToString())
        load_model(path, "tiny", "1", device="cpu", threads=1)
        assert "no probe" in caplog.text


def test_the_bytes_that_were_tried_are_those_that_are_loaded(tmp_path: Path, tiny_model: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model)

    def vet(data: bytes) -> None:
        assert data == tiny_model
        path.write_bytes(b"swapped while it was tried")

    assert load_model(path, "tiny", "1", device="cpu", threads=1, vet=vet).name == "tiny"


def test_a_file_that_fails_its_trial_is_not_opened(tmp_path: Path) -> None:
    def vet(data: bytes) -> None:
        raise ModelError("it failed its trial")

    path = tmp_path / "model.onnx"
    path.write_bytes(b"never looked at")
    with pytest.raises(ModelError, match="it failed its trial"):
        load_model(path, "tiny", "1", device="cpu", threads=1, vet=vet)


def test_what_is_no_ordinary_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "pipe is not an ordinary file"),
        (tmp_path, "is not an ordinary file"),
        (Path("/dev/zero"), "zero is not an ordinary file"),
        (tmp_path / "nothing", "there is no nothing"),
    ):
        with pytest.raises(ModelError, match=words):
            read_file(path)
