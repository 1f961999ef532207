"""Nothing is written home and nobody is looked up: ONNX Runtime's telemetry is off before it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from analyzers.files import write_atomically
from server.client import Client
from tests.conftest import ROOT, random_pictures

RUN = """
import sys, time
import numpy as np
from pathlib import Path
from analyzers.runtime import open_session
session = open_session(Path(sys.argv[1]))
session.run({"image": np.zeros((1, 3, 16, 16), np.float32)})
time.sleep(2)
"""
BARE = """
import sys, time
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
time.sleep(2)
"""
SOCKET = """
import socket, time
opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
opened.connect(("127.0.0.1", 53))
time.sleep(1)
"""

# The switch, and the marks of a build machine, on which ONNX Runtime keeps quiet of its own accord.
SILENCING = {
    *("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS", "TF_BUILD", "BUILDKITE"),
    *("JENKINS_URL", "BITBUCKET_BUILD_NUMBER", "CODEBUILD_BUILD_ID"),
}


def watched(program: str, home: Path, model: Path) -> tuple[set[str], set[str]]:
    """Run a program in an empty home without the switch; return the files it left there and the sockets it opened."""
    process = subprocess.Popen([sys.executable, "-c", program, str(model)], env=_talkative(home), cwd=home)
    sockets = _sockets_until_it_ends(process)
    assert process.returncode == 0
    return _files(home), sockets


def _talkative(home: Path) -> dict[str, str]:
    """Make an empty home and return an environment in which nothing keeps ONNX Runtime from its telemetry."""
    (home / "cache").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in SILENCING}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    return environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}


def _files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


def _sockets_until_it_ends(process: subprocess.Popen) -> set[str]:
    sockets: set[str] = set()
    while process.poll() is None:
        sockets |= _internet_sockets(process.pid)
        time.sleep(0.005)
    return sockets


def _internet_sockets(pid: int) -> set[str]:
    """Return the local "ADDRESS:PORT", hexadecimal, of the process's UDP and TCP sockets."""
    table = {}
    for kind in ("udp", "udp6", "tcp", "tcp6"):
        fields = (line.split() for line in Path("/proc/net", kind).read_text().splitlines()[1:])
        table |= {field[9]: f"{kind} {field[1]}" for field in fields}
    try:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # the process has just ended
        return set()
    own = {link[8:-1] for link in links if link.startswith("socket:[")}
    return {table[inode] for inode in own & table.keys()}


@pytest.fixture
def model(tmp_path: Path, tiny_model: bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model)
    return path


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="sockets are watched through /proc")
def test_a_run_leaves_the_home_empty_and_opens_no_socket(tmp_path: Path, model: Path) -> None:
    assert watched(RUN, tmp_path / "home", model) == (set(), set())


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="sockets are watched through /proc")
def test_the_watcher_sees_a_socket(tmp_path: Path, model: Path) -> None:
    assert watched(SOCKET, tmp_path / "home", model)[1]


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="sockets are watched through /proc")
def test_without_the_switch_the_runtime_would_write_home(tmp_path: Path, model: Path) -> None:
    files, _ = watched(BARE, tmp_path / "home", model)
    if not files:
        pytest.skip("this ONNX Runtime writes nothing even without the switch")
    assert any("onnxruntime" in name for name in files)


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="sockets are watched through /proc")
def test_a_server_that_answers_leaves_the_home_empty_and_opens_only_its_own_port(
    tmp_path: Path, tiny_model: bytes
) -> None:
    write_atomically(tmp_path / "models" / "tiny" / "1" / "model.onnx", tiny_model)
    home = tmp_path / "home"
    command = [sys.executable, "-m", "server", "--port=0", f"--repository={tmp_path / 'models'}", "--log-level=error"]
    with (
        subprocess.Popen(command, env=_talkative(home), cwd=home, stdout=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        watching = pool.submit(_sockets_until_it_ends, process)
        try:
            address = process.stdout.readline().removeprefix("listening on ").strip()
            with Client(address) as client:
                assert len(client.explain(random_pictures(2).encoded)) == 2
            time.sleep(2)
        finally:
            process.terminate()
        sockets = watching.result(30)
    assert _files(home) == set()
    loopback, port = "0100007F", f"{int(address.rsplit(':', 1)[1]):04X}"
    assert sockets
    assert all(socket.startswith("tcp") and socket.endswith(f"{loopback}:{port}") for socket in sockets), sockets
