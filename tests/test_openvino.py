"""OpenVINO's provider gives the CPU provider's answers; needs an environment with onnxruntime-openvino."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from analyzers.attach_graph import attach_graph
from analyzers.execution import Execution, OpenvinoOptions
from benchmarks.openvino import Worker, difference
from tests.conftest import explain_tiny, tiny_graph


@pytest.mark.slow
def test_openvino_answers_as_the_cpu_provider_does_with_nothing_left_to_that(tmp_path: Path) -> None:
    if not (python := os.environ.get("PELLUCID_OPENVINO_PYTHON")):
        pytest.skip("PELLUCID_OPENVINO_PYTHON names no environment with onnxruntime-openvino")
    model = explain_tiny()[2]
    file = tmp_path / "model.onnx"
    file.write_bytes(attach_graph(model, tiny_graph(model)).SerializeToString())
    found = {}
    for name, execution in (
        ("cpu", Execution(provider="cpu")),
        ("f32", Execution(provider="openvino")),
        ("bf16", Execution(provider="openvino", openvino=OpenvinoOptions(precision="bf16"))),
    ):
        worker = Worker(Path(python), file, execution, 4, tmp_path / f"{name}.npz")
        assert worker.name.endswith("CPUExecutionProvider" if name == "cpu" else "OpenVINOExecutionProvider")
        worker.run()
        worker.end()
        found[name] = difference(tmp_path / "cpu.npz", tmp_path / f"{name}.npz")
    assert found["f32"]["logits_off"] < 1e-5
    assert found["f32"]["parts_moved"] == found["f32"]["class_features_moved"] == 0
    assert found["f32"]["explanatory_graph_moved"] == 0
