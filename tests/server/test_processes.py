"""`--processes`: several server processes behind one port behave like one server that is hard to kill."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from analyzers.files import write_atomically
from server.client import Client
from server.client_calls import explain_request
from server.settings import Settings
from tests.conftest import SIZE, running_server

PICTURE = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
REQUEST = explain_request(PICTURE).SerializeToString()

Pair = tuple[str, subprocess.Popen]


def servers_of(parent: int) -> list[int]:
    """Process ids of the servers that a parent has started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def ready(client: Client) -> set[str]:
    """Versions that the processes behind its channels serve."""
    return {status.version for _ in range(16) for status in client.list_models() if status.ready}


def served(pid: int) -> float:
    return sum(map(float, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))


@pytest.fixture
def pair(repository: Path) -> Iterator[Pair]:
    with running_server("--repository", str(repository), "--processes", "2", "--lame-duck-seconds", "1") as running:
        yield running


def test_connections_are_shared_out_and_every_process_gives_the_same_answer(pair: Pair) -> None:
    address, process = pair
    before = {pid: served(pid) for pid in servers_of(process.pid)}
    assert len(before) == 2
    answers = set()
    with Client(address, channels=12) as client:
        for _ in range(12 * 40):
            answers.add(repr(client.explain(PICTURE)))
    assert len(answers) == 1
    assert all(served(pid) > ticks for pid, ticks in before.items())


def test_a_process_that_is_killed_under_load_is_replaced_and_no_call_is_lost(pair: Pair) -> None:
    address, process = pair
    stop, answered, lost = threading.Event(), [], []

    def ask() -> None:
        with Client(address, channels=2) as client:
            while not stop.is_set():
                try:
                    answered.append(client.explain(PICTURE)[0])
                except Exception as error:
                    lost.append(error)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        first = servers_of(process.pid)
        wait_until(lambda: len(answered) > 20)
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(set(servers_of(process.pid)) - set(first)) == 1 and len(servers_of(process.pid)) == 2)
        count = len(answered)
        wait_until(lambda: len(answered) > count + 20)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert not lost
    process.terminate()
    assert process.wait(30) == 0
    assert "server 1 was ended by SIGKILL; starting another" in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_they_answer_what_is_under_way_and_exit_with_0(pair: Pair, number: int) -> None:
    address, process = pair
    children = servers_of(process.pid)
    with Client(address, channels=8, retries=0) as client:
        client.explain(PICTURE)
        channels = [grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
        calls = [
            channel.unary_unary("/pellucid.v1.ExplainService/Explain").future(REQUEST)
            for channel in channels
            for _ in range(8)
        ]
        wait_until(lambda: any(call.done() for call in calls))
        process.send_signal(number)
        assert all(call.result(30) for call in calls)
        for channel in channels:
            channel.close()
    assert process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_when_the_first_process_is_killed_the_others_stop_too(pair: Pair) -> None:
    _, process = pair
    children = servers_of(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


def test_a_second_server_on_the_port_is_refused(pair: Pair, repository: Path) -> None:
    address, _ = pair
    for processes in "1", "2":
        command = [sys.executable, "-m", "server", "--repository", str(repository), "--processes", processes]
        done = subprocess.run(
            [*command, "--port", address.rpartition(":")[2]], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert f"cannot listen on {address}; the port is taken" in done.stderr


def test_what_keeps_them_from_starting_is_said_once(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "server",
        "--repository",
        str(tmp_path / "none"),
        "--processes",
        "3",
        "--port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 2
    assert str(tmp_path / "none") in done.stderr
    assert "a server process ended before it listened; what it said is above" in done.stderr


def test_each_process_follows_the_repository(tmp_path: Path, tiny_model: bytes) -> None:
    write_atomically(tmp_path / "tiny" / "1" / "model.onnx", tiny_model)
    with (
        running_server("--repository", str(tmp_path), "--processes", "2", "--poll-seconds", "0.2") as (address, _),
        Client(address, channels=8) as client,
    ):
        assert ready(client) == {"1"}
        write_atomically(tmp_path / "tiny" / "2" / "model.onnx", tiny_model)
        wait_until(lambda: ready(client) == {"2"})


def test_clients_cannot_load_models_into_one_of_several(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use --poll-seconds instead"):
        Settings(repository=tmp_path, processes=2, model_control=True)
