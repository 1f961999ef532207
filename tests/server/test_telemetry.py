"""Nothing is written home and nobody is looked up: ONNX Runtime's telemetry is off before it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

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


def watched(program: str, home: Path, model: Path) -> tuple[set[str], set[str]]:
    """Run a program in an empty home without the switch; return the files it left there and the sockets it opened."""
    home.mkdir()
    quiet = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    sockets: set[str] = set()
    process = subprocess.Popen([sys.executable, "-c", program, str(model)], env=environment, cwd=home)
    while process.poll() is None:
        sockets |= _internet_sockets(process.pid)
        time.sleep(0.005)
    assert process.returncode == 0
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}, sockets


def _internet_sockets(pid: int) -> set[str]:
    """Return the process's sockets that are in the kernel's tables of UDP and TCP."""
    table = set()
    for kind in ("udp", "udp6", "tcp", "tcp6"):
        lines = Path("/proc/net", kind).read_text().splitlines()[1:]
        table |= {line.split()[9] for line in lines}
    try:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # the process has just ended
        return set()
    own = {link[8:-1] for link in links if link.startswith("socket:[")}
    return own & table


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
