"""The direction of imports, in fresh interpreters: what a module must not load, it does not load."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import analyzers
import server
import training
from tests.conftest import ROOT

OFFLINE = {"__main__", "attach", "evaluate", "graph", "plain", "prove", "runtime", "progress", "figure"} | {
    "attach_command",
    "attach_graph",
    "conv_maps",
    "fingerprint",
    "gallery",
    "graph_evaluate",
    "graph_inference",
    "graph_page",
    "page",
    "find_head",
    "replay_head",
    "smaller",
    "inspect_plain",
    "quality",
    "randomise",
    "feature_table",
    "disentangle",
    "sweep",
    "sweep_command",
    "replace_head",
    "certify",
    "certify_command",
    "baseline_command",
    "body",
    "half",
    "eight_bits",
    "optimise",
    "optimise_command",
    "preprocessing",
    "placement",
    "run_paths",
    "wheel",
}
KERNEL = sorted({m.name for m in pkgutil.iter_modules(analyzers.__path__)} - OFFLINE)
CLIENT = (
    "client",
    "async_client",
    "channels",
    "client_batch",
    "client_calls",
    "client_environment",
    "client_tls",
    "command_connection",
    "client_errors",
    "client_progress",
    "client_retry",
    "command",
    "picture_files",
    "convert",
    "answer_file",
)


def loaded_by(*modules: str) -> set[str]:
    """Import modules in a fresh interpreter and return the top-level names of everything that came with them."""
    program = f"import sys; import {', '.join(modules)}; print('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


def test_the_kernel_loads_no_runtime_no_framework_and_no_transport() -> None:
    loaded = loaded_by(*(f"analyzers.{name}" for name in KERNEL))
    assert not loaded & {"torch", "onnx", "onnxruntime", "grpc", "server", "training", "pellucid"}


def test_the_offline_edge_loads_neither_torch_nor_grpc() -> None:
    loaded = loaded_by(*(f"analyzers.{name}" for name in OFFLINE - {"__main__"}), "analyzers.__main__")
    assert {"onnx", "onnxruntime"} <= loaded
    assert not loaded & {"torch", "grpc", "server", "training", "pellucid"}


def test_the_server_loads_neither_torch_nor_onnx_nor_training() -> None:
    loaded = loaded_by(*(f"server.{m.name}" for m in pkgutil.iter_modules(server.__path__)))
    assert {"grpc", "onnxruntime", "analyzers"} <= loaded
    assert not loaded & {"torch", "onnx", "training"}


def test_the_client_loads_neither_a_runtime_nor_an_image_decoder() -> None:
    loaded = loaded_by(*(f"server.{name}" for name in CLIENT))
    assert not loaded & {"onnxruntime", "PIL", "torch", "onnx", "matplotlib"}


def test_reading_settings_loads_neither_grpc_nor_a_runtime() -> None:
    assert not loaded_by("server.__main__") & {"grpc", "onnxruntime", "PIL", "numpy"}


def test_training_loads_neither_grpc_nor_the_server_nor_the_stubs() -> None:
    loaded = loaded_by(*(f"training.{m.name}" for m in pkgutil.iter_modules(training.__path__)))
    assert "torch" in loaded
    assert not loaded & {"grpc", "server", "pellucid", "torchvision"}


@pytest.mark.parametrize("package", [analyzers, server, training])
def test_every_module_says_what_it_is_for(package: object) -> None:
    for module in pkgutil.iter_modules(package.__path__):
        source = (ROOT / package.__name__ / f"{module.name}.py").read_text()
        assert source.startswith('"""'), f"{package.__name__}.{module.name} has no docstring"
