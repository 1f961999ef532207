"""The server against a bare loop of ONNX Runtime, explained files against plain ones, all in turns in one run.

    python -m benchmarks.serving --json serving.json

The bare loop runs the same file with the same session options from as many threads as there are cores (from one, beside
a single client), on tensors that are there already. `empty` is a server of gRPC for Python that answers as many bytes
without doing anything; its `/ bare` is what the bare loop would reach if each run came with such a call, the most that
any server made of it can answer on these cores. Client and server share the cores. Medians over the rounds; ratios are
medians of each round's ratio. `others` is what foreign programs took of the cores meanwhile: repeat the run where it is
more than a few percent.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from analyzers.progress import track
from analyzers.runtime import RUNTIME
from benchmarks.latency import processor
from benchmarks.record import Line, Record
from benchmarks.serving.load import Job
from benchmarks.serving.measure import Measured, measure_bare, measure_server, medians, ratio, wait_until_quiet
from benchmarks.serving.models import EXPLAINED, PLAIN, SERVED, model_name, write_models
from benchmarks.serving.processes import end_children_too, free_port, running, wait_until_listening
from benchmarks.serving.requests import KINDS, call_once, write_request

SECONDS = {"resnet20-32": 1.5, "resnet18-128": 2.0, "resnet18-224": 3.0}
WARM_SECONDS = 0.3
CORES = os.cpu_count() or 1
BARE, EMPTY = "bare", "empty"
LIKE = "infer uint8"  # whose requests and answers the empty server's are as long as


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """Something to measure.

    Attributes:
        network: which one.
        file: explained or plain.
        kind: of the request; `BARE` for the bare loop, `EMPTY` for a server that does nothing.
        concurrency: calls under way, or threads of the bare loop.
    """

    network: str
    file: str
    kind: str
    concurrency: int


Results = dict[Case, list[Measured]]


def cases(network: str) -> list[Case]:
    """List what is measured of a network."""
    bare = [Case(network, EXPLAINED, BARE, 1), Case(network, EXPLAINED, BARE, CORES), Case(network, PLAIN, BARE, CORES)]
    served = [Case(network, EXPLAINED, kind, number) for kind in (EMPTY, *KINDS) for number in (1, 8, 32)]
    return bare + served + [Case(network, PLAIN, kind, 32) for kind in ("explain uint8", "infer uint8")]


@contextmanager
def empty_server(log: Path, processes: int) -> Iterator[tuple[int, str]]:
    """Run a server that does nothing; yield its process id and address."""
    port = free_port()
    with running([sys.executable, "-m", "benchmarks.serving.empty", str(port), str(processes)], log) as process:
        wait_until_listening(process, port, 30)
        yield process, f"127.0.0.1:{port}"


@contextmanager
def our_server(root: Path, log: Path, processes: int) -> Iterator[tuple[int, str]]:
    """Serve a repository, otherwise with default settings; yield the server's process id and address."""
    port = free_port()
    command = [sys.executable, "-m", "server", "--repository", str(root), "--port", str(port), "--log-level", "error"]
    command += ["--processes", str(processes)]
    with running(command, log) as process:
        wait_until_listening(process, port, 120)
        yield process, f"127.0.0.1:{port}"


def run(folder: Path, networks: list[str], rounds: int, scale: float, processes: int) -> Results:
    """Measure everything, in another order each round."""
    root = folder / "repository"
    write_models(root, networks)
    requests = {
        case: write_request(folder, case.kind, model_name(network, case.file), SERVED[network].size)
        for network in networks
        for case in cases(network)
        if case.kind in KINDS
    }
    order = random.Random(0)  # noqa: S311 (an order, not a secret)
    results: Results = defaultdict(list)
    with (
        our_server(root, folder / "server.log", processes) as (process, address),
        empty_server(folder / "empty.log", processes) as (empty, empty_address),
    ):
        wait_until_quiet()
        for request in [*requests.values()] * 4 * processes:  # each process is likely to see each of them
            call_once(address, request)
        turns = [(number, network) for number in range(rounds) for network in networks]
        for _, network in track(turns, "rounds", len(turns)):
            seconds = SECONDS[network] * scale
            for case in order.sample(cases(network), len(cases(network))):
                if case.kind == EMPTY:
                    like = requests[replace(case, kind=LIKE)]
                    path = f"/empty.Empty/{len(call_once(address, like))}"
                    job = Job(empty_address, path, str(like.body), "", case.concurrency, WARM_SECONDS, seconds)
                    results[case].append(measure_server(empty, job))
                elif case.kind == BARE:
                    file = root / model_name(network, case.file) / "1" / "model.onnx"
                    results[case].append(measure_bare(file, case.concurrency, WARM_SECONDS, seconds))
                else:
                    path, body = requests[case].path, str(requests[case].body)
                    job = Job(address, path, body, "", case.concurrency, WARM_SECONDS, seconds)
                    results[case].append(measure_server(process, job))
    return results


def bare_of(case: Case) -> Case:
    """Return the bare loop that a case is held against."""
    return Case(case.network, case.file, BARE, 1 if case.concurrency == 1 else CORES)


def rows(results: Results) -> list[Line]:
    """Return the table's lines."""
    lines = []
    for case, measured in sorted(results.items()):
        line: Line = {**asdict(case), **asdict(medians(measured))}
        bare = medians(results[bare_of(case)])
        if case.kind == EMPTY:
            line["rate_to_bare"] = bare.cpu_ms / (bare.cpu_ms + line["cpu_ms"] + line["client_ms"])
        elif case.kind != BARE:
            line["rate_to_bare"] = ratio(measured, results[bare_of(case)])
            line["cpu_added_ms"] = medians(measured).cpu_ms - bare.cpu_ms
            line["p50_added_ms"] = medians(measured).p50_ms - bare.p50_ms
            if case.file == EXPLAINED and case.concurrency == 32 and case.kind != "infer float32":
                plain = Case(case.network, PLAIN, case.kind, 32)
                line["rate_to_plain"] = ratio(measured, results[plain])
        lines.append(line)
    return lines


COLUMNS = {
    "rate": ("/s", ".1f"),
    "rate_to_bare": ("/ bare", ".3f"),
    "rate_to_plain": ("/ plain", ".3f"),
    "p50_ms": ("p50 ms", ".2f"),
    "p99_ms": ("p99 ms", ".2f"),
    "p50_added_ms": ("p50 added", ".2f"),
    "cpu_ms": ("CPU ms", ".3f"),
    "cpu_added_ms": ("CPU added", ".3f"),
    "client_ms": ("client CPU", ".3f"),
    "others": ("others", ".1%"),
}


def show(lines: list[Line]) -> None:
    """Print the table."""
    table = Table(title=f"{processor()}, {CORES} cores, {RUNTIME}")
    for name in ("network", "file", "request", "at a time"):
        table.add_column(name)
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right")
    for line in lines:
        cells = [format(line[name], form) if name in line else "" for name, (_, form) in COLUMNS.items()]
        table.add_row(*(str(line[name]) for name in ("network", "file", "kind", "concurrency")), *cells)
    Console(width=160).print(table)


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--folder", type=Path, help="where models and logs are kept; a temporary one if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="how many times as long a measurement takes")
    parser.add_argument("--processes", type=int, default=CORES, help="of the server (default: as many as cores)")
    parser.add_argument("--only", choices=SERVED, nargs="+", default=list(SERVED), help="networks")
    options = parser.parse_args()
    end_children_too()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = rows(run(folder, options.only, options.rounds, options.scale, options.processes))
    show(lines)
    if options.json:
        Record(f"python -m benchmarks.serving --rounds {options.rounds} --processes {options.processes}", lines).write(
            options.json
        )


if __name__ == "__main__":
    main()
