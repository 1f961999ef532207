"""The Dockerfile: what hadolint says of it, and what it does not know of: one uid, no torch, what may get in."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.container.dockerfile import Ignore, fill, last, read_stages
from tests.deploy.facts import (
    GRPC_PORT,
    METRICS_PORT,
    USER,
    VARIANTS,
    image_environment,
    image_user,
    set_by_environment,
    settings,
    stages,
)

TEXT = (ROOT / "Dockerfile").read_text()
SECRETS = re.compile(r"password|secret|token|api_?key|credential", re.IGNORECASE)


def runs() -> list[str]:
    return [one.value for stage in read_stages(TEXT) for one in stage.instructions if one.keyword == "RUN"]


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed; it comes with pellucid[dev]")
    said = subprocess.run(
        [program, "--no-color", "--failure-threshold", "style", "Dockerfile"], capture_output=True, text=True, cwd=ROOT
    )
    assert (said.returncode, said.stdout) == (0, "")


def test_every_base_image_has_a_tag_that_says_which_python_and_which_debian() -> None:
    names = {stage.name for stage in read_stages(TEXT)}
    bases = {stage.base for stage in read_stages(TEXT)} - names
    assert bases == {"python:3.11-slim-bookworm"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_image_runs_as_one_number_that_is_not_root_s(variant: str) -> None:
    assert image_user(variant) == f"{USER}:{USER}"
    assert any(f"--gid {USER}" in run and f"--uid {USER}" in run for run in runs())


@pytest.mark.parametrize("variant", VARIANTS)
def test_signals_reach_the_server_itself_and_not_a_shell(variant: str) -> None:
    assert last(stages(variant), "ENTRYPOINT").words() == ["pellucid-serve"]
    assert last(stages(variant), "ENTRYPOINT").value.startswith("[")
    assert last(stages(variant), "STOPSIGNAL").value == "SIGTERM"
    assert not [one for stage in stages(variant) for one in stage.instructions if one.keyword == "CMD"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_environment_names_settings_of_the_server_ports_that_are_exposed_and_no_secret(variant: str) -> None:
    known = image_environment(variant)
    assert set_by_environment(known) <= settings()
    assert known["ORT_DISABLE_TELEMETRY"] == "1"
    ports = {known["PELLUCID_PORT"], known["PELLUCID_METRICS_PORT"]}
    assert ports == {str(GRPC_PORT), str(METRICS_PORT)}
    assert set(last(stages(variant), "EXPOSE").words()) == ports
    assert not [name for name in known if SECRETS.search(name)]


def test_only_the_gpu_s_variant_insists_on_a_gpu_and_asks_the_container_toolkit_for_one() -> None:
    cpu, gpu = (image_environment(variant) for variant in VARIANTS)
    assert gpu.items() - cpu.items() == {
        ("NVIDIA_VISIBLE_DEVICES", "all"),
        ("NVIDIA_DRIVER_CAPABILITIES", "compute,utility"),
        ("PELLUCID_DEVICE", "gpu"),
    }


def test_the_cpu_s_variant_is_what_a_build_without_a_target_makes() -> None:
    assert read_stages(TEXT)[-1].name == "cpu"


def test_pip_keeps_no_cache_and_third_party_packages_come_before_the_code() -> None:
    assert all("--no-cache-dir" in run for run in runs() if "-m pip " in run)
    assert not [run for run in runs() if re.search(r"\bsudo\b|apt-get (?!update)|\bcurl\b|\bwget\b", run)]
    for variant in VARIANTS:
        copies = [
            (one.flags["from"], one.words()[1]) for one in stages(variant)[-1].instructions if one.keyword == "COPY"
        ]
        assert copies == [(f"{variant}-packages", "/opt/pellucid"), ("code", "/opt/pellucid")]


def test_final_stages_add_no_package_of_the_distribution() -> None:
    for variant in VARIANTS:
        final = [one.value for stage in stages(variant) for one in stage.instructions if one.keyword == "RUN"]
        assert not [run for run in final if re.search(r"\b(apt|apt-get|pip|gcc)\b", run)]


@pytest.mark.parametrize(
    ("path", "gets_in"),
    [
        ("pyproject.toml", True),
        ("server/app.py", True),
        ("proto/pellucid/v1/explain.proto", True),
        ("deploy/requirements.py", True),
        ("deploy/compose.yaml", False),
        ("server/__pycache__/app.cpython-311.pyc", False),
        ("proto/pellucid/v1/explain_pb2.py", False),
        (".git/config", False),
        (".env", False),
        ("models/creatures/1/model.onnx", False),
        ("tests/conftest.py", False),
    ],
)
def test_only_what_the_image_is_made_of_gets_into_the_build(path: str, gets_in: bool) -> None:
    assert Ignore((ROOT / ".dockerignore").read_text())(Path(path)) != gets_in


def test_unset_variables_become_empty_as_in_a_shell() -> None:
    assert fill("${A}/$B:$A", {"A": "a"}) == "a/:a"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_packages_of_a_variant_are_pyproject_s_and_never_torch(variant: str) -> None:
    done = subprocess.run(
        [sys.executable, "deploy/requirements.py", "server", variant], capture_output=True, text=True, cwd=ROOT
    )
    lines = done.stdout.split()
    runtime = [line for line in lines if line.startswith("onnxruntime")]
    assert done.returncode == 0
    assert runtime == [line for line in runtime if line.startswith("onnxruntime-gpu") == (variant == "gpu")] != []
    assert any(line.startswith("pydantic-settings") for line in lines)
    assert not [line for line in lines if re.match(r"(torch|onnx)\b(?!runtime)", line)]
