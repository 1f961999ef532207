"""What metrics and traces cost: servers without, with metrics, and with traces at 1 %, in turns in one run.

    python -m benchmarks.observability --json observability.json

Each server is started once with the same models; then, round by round and in another order each time, each answers the
same load alone. `/ without` is the median over the rounds of each round's ratio; `without, again` is a second server
without anything, so that its distance from 1 is what a difference of that size means. While a server with metrics is
measured it is scraped once a second, fifteen times as often as Prometheus does by default. The collector that traces go
to is one of ours in a process of its own, that reads and forgets them. With several processes a server's rate depends
on how the kernel happens to share out the client's connections, by more than any of this costs.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from analyzers.baseline import Baseline, record
from analyzers.manifest import Manifest
from analyzers.progress import track
from analyzers.runtime import open_session
from benchmarks.record import Line, Record
from benchmarks.serving.load import Job
from benchmarks.serving.measure import Measured, measure_server, medians, ratio
from benchmarks.serving.models import EXPLAINED, SERVED, model_name, write_models
from benchmarks.serving.processes import end_children_too, free_port, running, wait_until_listening
from benchmarks.serving.requests import call_once, write_request

WARM_SECONDS = 0.3
SECONDS = 3.0
CONCURRENCY = 32
CORES = os.cpu_count() or 1
WITHOUT, AGAIN, METRICS, TRACES = "without", "without, again", "metrics", "traces at 1 %"
KINDS = ("explain uint8", "infer uint8")
BASELINE_PICTURES = 256


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """Something to measure: which network, which request, what the server does beside answering."""

    network: str
    kind: str
    server: str


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs: its process, its address, the port of its metrics or 0."""

    process: int
    address: str
    metrics_port: int


def write_baselines(root: Path, networks: list[str]) -> None:
    """Give the explained models a baseline of noise, so that their drift is computed."""
    for network in networks:
        path = root / model_name(network, EXPLAINED) / "1" / "model.onnx"
        session = open_session(path)
        manifest = Manifest.from_metadata(session.metadata)
        shape = (8, 3, manifest.input.height, manifest.input.width)
        noise = np.random.default_rng(0)
        batches = (
            session.run_images(manifest, noise.random(shape, np.float32)) for _ in range(BASELINE_PICTURES // shape[0])
        )
        model = onnx.load(path)
        record(model, Baseline.of(manifest, batches))
        path.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def serving(root: Path, log: Path, processes: int, kind: str) -> Iterator[Server]:
    """Serve a repository, and do what `kind` says."""
    port, other = free_port(), free_port()
    command = [sys.executable, "-m", "server", "--repository", str(root), "--port", str(port), "--log-level", "error"]
    command += ["--processes", str(processes)]
    with ExitStack() as stack:
        if kind == METRICS:
            command += ["--metrics-port", str(other)]
        if kind == TRACES:
            collector = stack.enter_context(running([sys.executable, "-m", "benchmarks.otlp_sink", str(other)], log))
            wait_until_listening(collector, other, 60)
            command += ["--traces-endpoint", f"http://127.0.0.1:{other}", "--traces-sample", "0.01"]
        process = stack.enter_context(running(command, log.with_suffix(f".{port}.log")))
        wait_until_listening(process, port, 120)
        yield Server(process, f"127.0.0.1:{port}", other if kind == METRICS else 0)


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """Scrape once a second while the body runs; nothing where there is no port."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(1.0):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                answer.read()

    scraper = threading.Thread(target=work)
    if port:
        scraper.start()
    try:
        yield
    finally:
        stop.set()
        if port:
            scraper.join()


def run(
    folder: Path, networks: list[str], rounds: int, scale: float, processes: int, concurrency: int
) -> dict[Case, list[Measured]]:
    """Measure everything, in another order each round."""
    root = folder / "repository"
    write_models(root, networks)
    write_baselines(root, networks)
    requests = {
        (network, kind): write_request(folder, kind, model_name(network, EXPLAINED), SERVED[network].size)
        for network in networks
        for kind in KINDS
    }
    results: dict[Case, list[Measured]] = defaultdict(list)
    order = random.Random(0)  # noqa: S311 (an order, not a secret)
    with ExitStack() as stack:
        servers = {
            kind: stack.enter_context(serving(root, folder / f"{place}.log", processes, kind))
            for place, kind in enumerate((WITHOUT, AGAIN, METRICS, TRACES))
        }
        for server in servers.values():
            for request in [*requests.values()] * 4 * processes:  # each process is likely to see each of them
                call_once(server.address, request)
        cases = [Case(network, kind, server) for network, kind in requests for server in servers]
        for _ in track(range(rounds), "rounds", rounds):
            for case in order.sample(cases, len(cases)):
                server, request = servers[case.server], requests[case.network, case.kind]
                job = Job(
                    server.address, request.path, str(request.body), "", concurrency, WARM_SECONDS, SECONDS * scale
                )
                with scraped(server.metrics_port):
                    results[case].append(measure_server(server.process, job))
    return results


def rows(results: dict[Case, list[Measured]]) -> list[Line]:
    """Return the table's lines."""
    return [
        {
            **asdict(case),
            **asdict(medians(measured)),
            "rate_to_without": ratio(measured, results[Case(case.network, case.kind, WITHOUT)]),
        }
        for case, measured in sorted(results.items())
    ]


def show(lines: list[Line]) -> None:
    """Print the table."""
    table = Table(title=f"{CORES} cores")
    for name in ("network", "request", "server"):
        table.add_column(name)
    for name in ("/s", "/ without", "p50 ms", "p99 ms", "CPU ms", "others"):
        table.add_column(name, justify="right")
    columns = {
        "rate": ".1f",
        "rate_to_without": ".3f",
        "p50_ms": ".2f",
        "p99_ms": ".2f",
        "cpu_ms": ".3f",
        "others": ".1%",
    }
    for line in lines:
        cells = (format(line[name], form) for name, form in columns.items())
        table.add_row(str(line["network"]), str(line["kind"]), str(line["server"]), *cells)
    Console(width=140).print(table)


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--folder", type=Path, help="where models and logs are kept; a temporary one if left out")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0, help="how many times as long a measurement takes")
    parser.add_argument("--processes", type=int, default=1, help="of each server (default 1)")
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help=f"calls at a time (default {CONCURRENCY})")
    parser.add_argument("--only", choices=SERVED, nargs="+", default=["resnet20-32"], help="networks")
    options = parser.parse_args()
    end_children_too()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = rows(run(folder, options.only, options.rounds, options.scale, options.processes, options.concurrency))
    show(lines)
    if options.json:
        command = f"python -m benchmarks.observability --rounds {options.rounds} --processes {options.processes}"
        Record(command, lines).write(options.json)


if __name__ == "__main__":
    main()
