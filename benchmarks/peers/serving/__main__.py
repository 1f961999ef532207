"""Our server beside others: requests per second and tails of the same explained file, the same client, in turns.

    python -m benchmarks.peers.serving --environments DIR --json peers.json

`DIR` holds a virtual environment for each peer, `DIR/mlserver` and so on, made from the files in `requirements`. A peer
runs beside ours, both idle but for the one that is measured; each round takes the peer, our Open Inference Protocol
with the same bytes, and our own API with typed reasons, at 8 and at 32 requests at a time. A peer that does not start
or fails is reported and left out.
"""

from __future__ import annotations

import argparse
import http.client
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from analyzers.runtime import RUNTIME
from benchmarks.latency import processor
from benchmarks.peers.serving.peers import PEERS, Peer, check, command, environment, expected_logits, generate
from benchmarks.record import Line, Record
from benchmarks.serving.__main__ import CORES, our_server
from benchmarks.serving.load import Job
from benchmarks.serving.measure import FailedError, Measured, measure_server, medians, ratio, wait_until_quiet
from benchmarks.serving.models import EXPLAINED, SERVED, model_name, write_models
from benchmarks.serving.processes import (
    NotStartedError,
    end_children_too,
    free_port,
    listens,
    running,
    wait_until_listening,
)
from benchmarks.serving.requests import Request, call_once, write_request

START_SECONDS = 90.0
GONE_SECONDS = 5.0  # without anybody who listens
WARM_SECONDS = 0.3
SECONDS = {"resnet20-32": 1.5, "resnet18-128": 2.0}
ATTEMPTS = 3  # a start may fail because others keep the machine busy
CONCURRENCIES = (8, 32)
COMMAND = "python -m benchmarks.peers.serving --environments DIR"
PEER, OURS, TYPED = "peer", "ours, same bytes", "ours, typed reasons"

Results = dict[tuple[str, int], list[Measured]]


@dataclass(frozen=True, slots=True)
class Target:
    """A running server and what to send it."""

    process: int
    address: str
    request: Request
    content_type: str = ""


def call_http(address: str, peer: Peer, body: bytes) -> bytes:
    """Post once and return the answer.

    Raises:
        ConnectionError: it is not answered with 200.
    """
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", peer.path, body, {"Content-Type": peer.content_type})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise ConnectionError(f"HTTP {response.status}: {answer[:200]!r}")
    return answer


def answer_of(peer: Peer, address: str, request: Request) -> bytes:
    """Ask until the peer answers; it may listen before its model is there.

    Raises:
        NotStartedError: it never does, or listens no more; with what it said last.
    """
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            if peer.content_type:
                return call_http(address, peer, request.body.read_bytes())
            return call_once(address, request, 10.0)
        except (grpc.RpcError, OSError, http.client.HTTPException) as error:
            if not listens(int(address.rsplit(":", 1)[1])):
                until = min(until, time.monotonic() + GONE_SECONDS)
            if time.monotonic() > until:
                raise NotStartedError(f"it does not answer: {' '.join(str(error).split())[:300]}") from None
            time.sleep(0.5)


def measure_peer(peer: Peer, network: str, folder: Path, environments: Path, rounds: int) -> Results:
    """Start a peer and ours and measure both in turns.

    Raises:
        NotStartedError: the peer did not start.
        FailedError: it stopped answering.
        ValueError: it answers something else.
    """
    root, size = folder / "repository", SERVED[network].size
    model = model_name(network, EXPLAINED)
    file = root / model / "1" / "model.onnx"
    body = folder / f"{peer.slug}-{network}.bin"
    body.write_bytes(peer.body(model, size))
    port = free_port()
    address = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        started = command(peer, environments, file, model, port)
        theirs = stack.enter_context(
            running(started, folder / f"{peer.slug}-{network}.log", environment(folder / "generated"))
        )
        wait_until_listening(theirs, port, START_SECONDS)
        request = Request(peer.path, body)
        check(peer, answer_of(peer, address, request), expected_logits(file, size))
        process, ours = stack.enter_context(our_server(root, folder / "server.log", CORES))
        targets = {
            PEER: Target(theirs, address, request, peer.content_type),
            OURS: Target(process, ours, write_request(folder, "infer float32", model, size)),
            TYPED: Target(process, ours, write_request(folder, "explain uint8", model, size)),
        }
        wait_until_quiet()
        return in_turns(targets, rounds, SECONDS[network])


def in_turns(targets: dict[str, Target], rounds: int, seconds: float) -> Results:
    """Measure each server at each concurrency, in rounds, each beginning with another one."""
    results: Results = defaultdict(list)
    names = list(targets)
    for number in range(rounds):
        for concurrency in CONCURRENCIES:
            for turn in range(len(names)):
                name = names[(number + turn) % len(names)]
                target = targets[name]
                path, body = target.request.path, str(target.request.body)
                job = Job(target.address, path, body, target.content_type, concurrency, WARM_SECONDS, seconds)
                results[name, concurrency].append(measure_server(target.process, job))
    return results


def rows(peer: Peer, network: str, results: Results) -> list[Line]:
    """Return the table's lines for one peer."""
    lines = []
    for concurrency in CONCURRENCIES:
        theirs = results[PEER, concurrency]
        for name in (PEER, OURS, TYPED):
            measured = results[name, concurrency]
            line: Line = {
                "peer": peer.title,
                "network": network,
                "concurrency": concurrency,
                "server": name,
                **asdict(medians(measured)),
            }
            if name != PEER:
                line["rate_to_peer"] = ratio(measured, theirs)
                line["cpu_peer_to_us"] = medians(theirs).cpu_ms / medians(measured).cpu_ms
            lines.append(line)
    return lines


def show(lines: list[Line], failures: dict[str, str]) -> None:
    """Print the table and who is not in it."""
    table = Table(title=f"{processor()}, {RUNTIME}, explained files, all outputs")
    for title in ("peer", "network", "at a time", "server"):
        table.add_column(title)
    columns = {
        "rate": ".1f",
        "rate_to_peer": ".2f",
        "p50_ms": ".2f",
        "p99_ms": ".2f",
        "cpu_ms": ".2f",
        "cpu_peer_to_us": ".2f",
        "others": ".1%",
    }
    for title in ("/s", "/ peer", "p50 ms", "p99 ms", "CPU ms", "peer / CPU", "others"):
        table.add_column(title, justify="right")
    for line in lines:
        cells = [format(line[name], form) if name in line else "" for name, form in columns.items()]
        table.add_row(*(str(line[name]) for name in ("peer", "network", "concurrency", "server")), *cells)
    console = Console(width=150)
    console.print(table)
    for name, reason in failures.items():
        console.print(f"left out: {name}: {reason}", markup=False)


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, required=True, help="folder with a virtual environment per peer")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--folder", type=Path, help="where models and logs are kept; a temporary one if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[peer.name for peer in PEERS], help="names of peers")
    parser.add_argument("--networks", nargs="+", choices=SECONDS, default=list(SECONDS))
    options = parser.parse_args()
    end_children_too()
    lines: list[Line] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_models(folder / "repository", options.networks)
        generate(folder / "generated")
        for peer in (peer for peer in PEERS if peer.name in options.only):
            for network in options.networks:
                print(f"{peer.title}, {network}", flush=True)
                for _ in range(ATTEMPTS):
                    try:
                        results = measure_peer(peer, network, folder, options.environments, options.rounds)
                    except (NotStartedError, FailedError, ValueError, OSError) as error:
                        failures[f"{peer.title}, {network}"] = str(error)
                        print(f"  {error}", flush=True)
                    else:
                        failures.pop(f"{peer.title}, {network}", None)
                        lines += rows(peer, network, results)
                        break
                if options.json:
                    Record(f"{COMMAND} --rounds {options.rounds}", lines, failures).write(options.json)
    show(lines, failures)


if __name__ == "__main__":
    main()
