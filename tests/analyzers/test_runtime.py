"""The one place that loads ONNX Runtime: one wheel, the device that was asked for, errors in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analyzers.errors import ModelError, PellucidError
from analyzers.execution import CPU, CUDA
from analyzers.manifest import METADATA_KEY
from analyzers.probe import PROBE_KEY
from analyzers.runtime import RuntimeNotReadyError, open_session, ort
from analyzers.wheel import WHEELS, check_wheels
from tests.conftest import ROOT, tiny_plain

IMAGES = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
without_cuda = pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this ONNX Runtime has CUDA")


@pytest.mark.parametrize("wheel", WHEELS)
def test_one_wheel_is_right_whichever_it_is(wheel: str) -> None:
    check_wheels([wheel])


def test_no_wheel_says_what_to_install() -> None:
    with pytest.raises(RuntimeNotReadyError, match=r"is not installed; install pellucid\[cpu\], or pellucid\[gpu\]"):
        check_wheels([])


@pytest.mark.parametrize("installed", [WHEELS[:2], WHEELS[1::-1]])
def test_two_wheels_are_refused_since_they_overwrite_each_other(installed: tuple[str, ...]) -> None:
    with pytest.raises(RuntimeNotReadyError, match=r"onnxruntime and onnxruntime-gpu are both installed .* uninstall"):
        check_wheels(iter(installed))


def test_openvinos_wheel_beside_another_is_refused_too() -> None:
    with pytest.raises(RuntimeNotReadyError, match=r"^onnxruntime and onnxruntime-openvino are both installed"):
        check_wheels([WHEELS[2], WHEELS[0]])
    with pytest.raises(RuntimeNotReadyError, match=r"^onnxruntime, onnxruntime-gpu and onnxruntime-openvino are all"):
        check_wheels(WHEELS)


def test_a_runtime_that_is_not_ready_is_an_error_of_ours() -> None:
    assert issubclass(RuntimeNotReadyError, PellucidError)
    assert not issubclass(RuntimeNotReadyError, ModelError)  # no file is to blame


@without_cuda
def test_auto_takes_the_cpu_where_there_is_no_cuda() -> None:
    assert open_session(tiny_plain(), device="auto").provider == CPU


@without_cuda
def test_the_gpu_is_refused_where_there_is_no_cuda_and_nothing_falls_back() -> None:
    sentence = (
        r"^the GPU was asked for, but this ONNX Runtime has no CUDA provider; install pellucid\[gpu\] or use the CPU$"
    )
    with pytest.raises(RuntimeNotReadyError, match=sentence):
        open_session(tiny_plain(), device="gpu")


def test_a_file_and_its_bytes_are_the_same_session(tmp_path: Path, tiny_model: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_model)
    file, data = open_session(tmp_path / "model.onnx"), open_session(tiny_model)
    assert file.provider == data.provider == CPU
    assert file.metadata == data.metadata
    assert set(file.metadata) == {METADATA_KEY, PROBE_KEY}
    assert file.inputs == data.inputs == {"image": ["batch", 3, 16, 16]}
    assert file.outputs[0] == "logits"
    first, second = file.run({"image": IMAGES}), data.run({"image": IMAGES})
    assert tuple(first) == file.outputs
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot load the file"),
        (b"not a model", "cannot load the file"),
        (tiny_plain()[:200], "cannot load the file"),
        (tiny_plain().replace(b"Conv", b"Co\xffv"), "cannot load the file"),
    ],
    ids=["empty", "no model", "truncated", "names that are no text"],
)
def test_bytes_that_are_no_model_are_refused_in_one_sentence_and_nothing_is_printed(
    data: bytes, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        open_session(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^the file cannot be read: No such file or directory$"):
        open_session(tmp_path / "model.onnx")


def test_metadata_that_is_no_text_is_a_model_error(tiny_model: bytes) -> None:
    with pytest.raises(ModelError, match="metadata is not UTF-8"):
        _ = open_session(tiny_model.replace(b"unnamed", b"unn\xffmed")).metadata


@pytest.mark.parametrize(
    "feeds",
    [{}, {"pixels": IMAGES}, {"image": IMAGES[:, :2]}, {"image": IMAGES[:, :, :8]}, {"image": IMAGES.astype(float)}],
    ids=["nothing", "name", "channels", "height", "type"],
)
def test_a_run_that_fails_says_so_in_one_sentence(
    feeds: dict[str, np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=r"^the model failed to run: ") as caught:
        open_session(tiny_plain()).run(feeds)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert capfd.readouterr() == ("", "")


def test_telemetry_is_switched_off_at_import_whatever_the_environment_says() -> None:
    program = "import os, analyzers.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "0"},
    )
    assert run.stdout == "1\n"
