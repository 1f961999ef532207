"""Settings of single models: what a model has of its own, of everybody's, and of the server's."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from pydantic import ValidationError

from analyzers.execution import CPU
from server.app import limits_of_model
from server.client import Client
from server.load import load_model
from server.model_settings import ModelSettings, settings_of
from server.settings import Settings
from tests.conftest import ROOT, running_server


def test_a_model_has_its_own_settings_then_everybodys_then_the_servers() -> None:
    models = {
        "*": ModelSettings(max_batch=4, threads=2, cuda={"tf32": True}),
        "fox": ModelSettings(max_batch=2, cuda={"memory_limit_bytes": 2**30}),
    }
    settings = Settings(repository=Path(), models=models, max_batch=8, max_delay_ms=3, instances=5)
    fox, owl = settings_of(models, "fox"), settings_of(models, "owl")
    assert (fox.max_batch, owl.max_batch) == (2, 4)
    assert (fox.threads, owl.threads) == (2, 2)
    assert (fox.cuda.tf32, owl.cuda.tf32) == (False, True)  # a table stays whole
    assert fox.cuda.memory_limit_bytes == 2**30
    assert fox.device is None
    limits = limits_of_model(settings, fox)
    assert (limits.max_batch, limits.max_delay_seconds, limits.instances) == (2, 0.003, 5)
    limits = limits_of_model(settings, ModelSettings(max_delay_ms=0, instances=1))
    assert (limits.max_batch, limits.max_delay_seconds, limits.instances) == (8, 0, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fox": {"max_bach": 2}}, "Extra inputs are not permitted"),
        ({"fox": {"cuda": {"memory": 1}}}, "Extra inputs are not permitted"),
        ({"fox": {"provider": "rocm"}}, "Input should be 'auto', 'cpu', 'cuda', 'tensorrt' or 'openvino'"),
    ],
)
def test_a_misspelt_setting_of_a_model_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings.model_validate({"repository": ".", "models": settings})


def test_a_model_is_served_with_its_own_settings_and_says_what_runs_it(repository: Path, tmp_path: Path) -> None:
    for name in ("fox", "owl"):
        shutil.copytree(repository / "tiny", tmp_path / name)
    models = {"fox": {"max_batch": 3, "max_delay_ms": 2, "provider": "cpu", "shrink_arena": True}}
    with running_server("--repository", str(tmp_path), environment={"PELLUCID_MODELS": json.dumps(models)}) as (
        address,
        process,
    ):
        with triton.InferenceServerClient(address) as client:
            fox, owl = (client.get_model_config(name, as_json=True)["config"] for name in ("fox", "owl"))
        assert fox["dynamic_batching"] == {"preferred_batch_size": [3], "max_queue_delay_microseconds": "2000"}
        assert owl["dynamic_batching"]["preferred_batch_size"] == [8]
        assert fox["parameters"]["pellucid.execution_provider"] == {"string_value": CPU}
        assert fox["parameters"]["pellucid.provider_options"] == {"string_value": "{}"}
        with Client(address) as client:
            assert client.get_model("fox").execution_provider == CPU
        process.terminate()
        assert f"fox/1 runs on {CPU}" in process.communicate()[1]


def test_a_provider_that_is_not_there_keeps_the_server_from_starting(repository: Path) -> None:
    models = json.dumps({"tiny": {"provider": "openvino"}})
    run = subprocess.run(
        [sys.executable, "-m", "server", "--repository", str(repository), "--port", "0", "--models", models],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.returncode != 0
    assert "the provider openvino was asked for, but this ONNX Runtime has no OpenVINOExecutionProvider" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_log_says_what_runs_a_model(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_model(repository / "tiny" / "1" / "model.onnx", "tiny", "1", device="cpu", threads=1)
    assert "tiny/1 runs on CPUExecutionProvider" in caplog.messages
