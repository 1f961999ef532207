"""Two replicas of Ray Serve against the plain server as one process and as two, in turns; and killed replicas.

    python -m benchmarks.ray_serve --json ray_serve.json

About six minutes on two cores. All three serve the same explained files and wait while another is asked; a replica
has one worker, as each of two processes has. Medians over the rounds; ratios are medians of each round's ratio.
`others` is what foreign programs, idle servers included, took of the cores meanwhile. Then replicas are killed one
after the other while eight clients ask, with their retries on: `lost` counts the calls that failed all the same.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from analyzers.progress import track
from analyzers.runtime import RUNTIME
from benchmarks.latency import processor
from benchmarks.record import Line, Record
from benchmarks.serving.__main__ import our_server
from benchmarks.serving.load import Job
from benchmarks.serving.measure import Measured, measure_server, medians, ratio
from benchmarks.serving.models import EXPLAINED, SERVED, model_name, write_models
from benchmarks.serving.processes import end_children_too, family, free_port, running, wait_until_listening
from benchmarks.serving.requests import call_once, write_request
from server.client import Client, ServerError

ONE, TWO, RAY = "plain, 1 process", "plain, 2 processes", "Ray, 2 replicas"
NETWORKS = ("resnet20-32", "resnet18-128")
KIND = "explain uint8"
CALLERS = (8, 32)
SECONDS = 3.0
WARM_SECONDS = 0.5
START_SECONDS = 180.0
KILL_CALLERS = 8

Results = dict[tuple[str, int, str], list[Measured]]
Server = tuple[int, str]


@contextmanager
def ray_server(root: Path, folder: Path) -> Iterator[Server]:
    """Serve a repository by two replicas on a Ray of our own; yield its process id and address."""
    port, log = free_port(), folder / "ray.log"
    command = [sys.executable, "-m", "server.ray_app", "--repository", str(root), "--replicas", "2"]
    command += ["--port", str(port), "--http-port", str(free_port()), "--log-level", "error"]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short:
        command += ["--ray-folder", f"{short}/ray", "--object-store-bytes", str(256 << 20)]
        with running(command, log, {"RAY_USAGE_STATS_ENABLED": "0"}) as process:
            wait_until_listening(process, port, START_SECONDS)
            with Client(f"127.0.0.1:{port}") as client:
                client.wait_until_ready(START_SECONDS)
            yield process, f"127.0.0.1:{port}"


def replicas_of(process: int) -> set[int]:
    """Return the process ids of the replicas below a process."""
    return {pid for pid in family(process) if "ray::ServeReplica" in _command(pid)}


def measure(folder: Path, root: Path, servers: dict[str, Server], rounds: int, scale: float) -> Results:
    """Measure everybody, in another order each round."""
    order, results = random.Random(0), defaultdict(list)  # noqa: S311 (an order, not a secret)
    requests = {name: write_request(folder, KIND, model_name(name, EXPLAINED), SERVED[name].size) for name in NETWORKS}
    for request in requests.values():
        for _, address in servers.values():
            for _ in range(8):  # each process is likely to see each of them
                call_once(address, request)
    turns = [(network, callers) for _ in range(rounds) for network in NETWORKS for callers in CALLERS]
    for network, callers in track(turns, "rounds", len(turns)):
        for name in order.sample(list(servers), len(servers)):
            process, address = servers[name]
            request = requests[network]
            job = Job(address, request.path, str(request.body), "", callers, WARM_SECONDS, SECONDS * scale)
            results[network, callers, name].append(measure_server(process, job))
    return results


def rows(results: Results) -> list[Line]:
    """Return the table's lines."""
    lines = []
    for (network, callers, name), measured in results.items():
        line: Line = {"network": network, "callers": callers, "server": name, **asdict(medians(measured))}
        for key, other in (("rate_to_one", ONE), ("rate_to_two", TWO)):
            line[key] = ratio(measured, results[network, callers, other])
        lines.append(line)
    return sorted(lines, key=lambda line: (str(line["network"]), int(line["callers"]), str(line["server"])))


def kill_replicas(server: Server, kills: int) -> Line:
    """Kill replicas one after the other under load, and count what the clients lost."""
    process, address = server
    stop, took, lost = threading.Event(), [], []
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)

    def ask() -> None:
        with Client(address, timeout_seconds=120) as client:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    client.explain(picture, model=model_name("resnet20-32", EXPLAINED))
                except ServerError as error:
                    lost.append(error)
                took.append(time.monotonic() - began)

    callers = [threading.Thread(target=ask) for _ in range(KILL_CALLERS)]
    for caller in callers:
        caller.start()
    try:
        for number in track(range(kills), "killed replicas", kills):
            time.sleep(1)
            before = replicas_of(process)
            os.kill(sorted(before)[number % len(before)], signal.SIGKILL)
            until = time.monotonic() + START_SECONDS
            while len(replicas_of(process) - before) < 1 and time.monotonic() < until:
                time.sleep(0.1)
            time.sleep(4)  # until it has loaded its models
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    return {"server": RAY, "kills": kills, "calls": len(took), "lost": len(lost), "longest_seconds": max(took)}


def show(lines: list[Line], killed: Line) -> None:
    """Print the table."""
    table = Table(title=f"{processor()}, {os.cpu_count()} cores, {RUNTIME}")
    for title in ("network", "at a time", "server", "/s", "/ 1 process", "/ 2 processes", "p50 ms", "p99 ms"):
        table.add_column(title, justify="left" if title in ("network", "server") else "right")
    for title in ("CPU ms", "others"):
        table.add_column(title, justify="right")
    for line in lines:
        figures = [format(line[name], ".2f") for name in ("rate_to_one", "rate_to_two", "p50_ms", "p99_ms", "cpu_ms")]
        rate, others = format(line["rate"], ".1f"), format(line["others"], ".1%")
        table.add_row(str(line["network"]), str(line["callers"]), str(line["server"]), rate, *figures, others)
    console = Console(width=140)
    console.print(table)
    console.print(
        f"{killed['kills']} replicas killed: {killed['lost']} of {killed['calls']} calls lost, "
        f"the longest took {killed['longest_seconds']:.2f} s"
    )


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="how many times as long a measurement takes")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    end_children_too()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        root = folder / "repository"
        write_models(root, list(NETWORKS))
        servers = {
            ONE: stack.enter_context(our_server(root, folder / "one.log", 1)),
            TWO: stack.enter_context(our_server(root, folder / "two.log", 2)),
            RAY: stack.enter_context(ray_server(root, folder)),
        }
        lines = rows(measure(folder, root, servers, options.rounds, options.scale))
        killed = kill_replicas(servers[RAY], options.kills)
    show(lines, killed)
    if options.json:
        command = f"python -m benchmarks.ray_serve --rounds {options.rounds} --kills {options.kills}"
        Record(command, [*lines, killed]).write(options.json)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has just ended
        return ""


if __name__ == "__main__":
    main()
