"""The GPU runtime: placement, provider options and captured runs, by ONNX Runtime's own word.

Without a GPU: PELLUCID_GPU_PYTHON names the interpreter of an environment with onnxruntime-gpu, numpy, pydantic and
onnx; stub libraries stand in for CUDA. With one, the same on the device.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzers.execution import CPU, CUDA, TensorrtOptions
from analyzers.runtime import open_session, ort
from benchmarks.placement.__main__ import place, run_there
from benchmarks.placement.models import every_kind
from tests.conftest import tiny_plain

TENSORRT = TensorrtOptions(
    fp16=True,
    int8=True,
    workspace_bytes=2**30,
    engine_cache=Path("/cache"),
    timing_cache=True,
    min_shapes="image:1x3x16x16",
    opt_shapes="image:4x3x16x16",
    max_shapes="image:8x3x16x16",
)
on_device = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA"),
]
REAL = pytest.param(True, marks=on_device, id="GPU")
STUBS = pytest.param(False, marks=pytest.mark.slow, id="stubs")


@pytest.fixture
def gpu_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with onnxruntime-gpu: this one where it has a GPU."""
    if request.getfixturevalue("real"):
        return Path(sys.executable)
    if not (named := os.environ.get("PELLUCID_GPU_PYTHON")):
        pytest.skip("PELLUCID_GPU_PYTHON names no environment with onnxruntime-gpu")
    return Path(named)


@pytest.fixture
def checks(gpu_python: Path, real: bool) -> dict[str, Any]:
    """What `tests.gpu_checks` found out there."""
    arguments = [*TENSORRT.options(device=0), "trt_no_such_option", *(["--real"] if real else [])]
    found: dict[str, Any] = json.loads(run_there(gpu_python, "tests.gpu_checks", arguments, real=real)[-1])
    return found


@pytest.mark.parametrize("real", [STUBS, REAL])
def test_no_node_of_an_explained_graph_is_on_the_cpu(gpu_python: Path, real: bool, tmp_path: Path) -> None:
    files = {}
    for name, model in every_kind():
        files[name] = tmp_path / f"{len(files)}.onnx"
        files[name].write_bytes(model.SerializeToString())
    found = dict(zip(files, place(gpu_python, list(files.values()), real=real), strict=True))
    assert {name: placement[CPU] for name, placement in found.items() if CPU in placement} == {}
    assert all(sum(placement[CUDA].values()) > 20 for placement in found.values())


@pytest.mark.parametrize("real", [STUBS, REAL])
def test_the_gpu_does_what_it_is_told_and_says_why_where_it_cannot(checks: dict[str, Any], real: bool) -> None:
    assert checks["told"] == checks["reported"]
    assert checks["tensorrt"].pop("trt_no_such_option") is False
    assert all(checks["tensorrt"].values())
    assert checks["path"] == checks["default"] == "Bound"
    assert "decides what runs while it runs (If)" in checks["branch"]
    assert "cannot be captured as CUDA graphs: ONNX Runtime runs nodes of it on the CPU (Celu)" in checks["on_cpu"]
    assert "the CPU would run nodes of the model (Celu); device auto allows it" in checks["strict"]
    assert checks["allowed"] == "Celu"
    assert checks["junk"].startswith("ONNX Runtime cannot load the file: ")


@pytest.mark.parametrize("real", [STUBS, REAL])
def test_a_size_is_captured_once_and_only_replayed_from_then_on(checks: dict[str, Any], real: bool) -> None:
    captured = checks["captured"]
    assert captured["sizes"] == [1, 4]
    assert captured["shapes"] == [[[n, 8], [n]] for n in (3, 3, 4, 1, 2, 5)]
    assert captured["ended"] == "the model failed to run: the run was ended before it began"
    assert captured["fixed"] == 0
    if real:
        assert max(captured["gaps"]) < 1e-4
        return
    # 3 pictures go into a graph of 4, and so do 3, 4 and 2 after them; 5 are more than any and run as they are.
    assert [(step["captures"], step["replays"]) for step in captured["steps"]] == [
        (1, 1),
        (0, 1),
        (0, 1),
        (1, 1),
        (0, 1),
        (0, 0),
    ]
    assert [step["kernels"] for step in captured["steps"][1:3]] == [0, 0]
    assert captured["steps"][5]["kernels"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="this ONNX Runtime has no CUDA")
def test_the_gpu_runs_the_model_where_there_is_one_and_answers_as_the_cpu_does() -> None:
    images = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
    session = open_session(tiny_plain(), device="gpu")
    assert session.provider == CUDA
    here, there = (one.run({"image": images})["logits"] for one in (open_session(tiny_plain()), session))
    assert abs(here - there).max() < 1e-5
