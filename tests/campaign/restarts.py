"""Rolling restarts: two replicas, one of them restarted at a time, under the load of ordinary clients."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from server.client import Client, ServerError
from tests.campaign import requests
from tests.campaign.models import tiny
from tests.campaign.outcome import Outcome, outcome
from tests.campaign.serving import Served, put, start
from tests.campaign.wire import percentile

SETTLED_SECONDS = 1.5  # between two restarts, for clients to find the new replica
KILLED_SECONDS = 6.0  # between two kills: a client waits longer and longer before it tries a dead address again


@dataclass
class Asked:
    """What the clients saw; guarded by the interpreter's lock alone, since lists and counters only grow."""

    seconds: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    wrong: int = 0


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def asking(client: Client, asked: Asked, threads: int) -> Iterator[None]:
    """Let threads share a client and ask until the body is through."""
    picture, stop = requests.PICTURES[0], threading.Event()
    expected = client.explain(picture)

    def ask() -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                asked.wrong += client.explain(picture) != expected
            except ServerError as error:
                asked.lost[str(error)[:150]] += 1
            asked.seconds.append(time.monotonic() - began)

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)


def restarts(count: int = 6, threads: int = 4, *, kill: bool = False) -> Outcome:
    """Restart two replicas in turn while clients ask both.

    Args:
        count: of restarts.
        threads: of one ordinary client, which knows both addresses.
        kill: end replicas with SIGKILL, as a machine that fails, rather than SIGTERM.
    """
    ports, codes, asked, problems = free_ports(2), [], Asked(), []
    with TemporaryDirectory(prefix="campaign-") as temporary, ExitStack() as stack:
        folder = Path(temporary) / "models"
        put(folder, {"tiny": tiny()})

        def replica(number: int) -> Served:
            return start(folder, Path(temporary) / f"log{number}", port=ports[number])

        replicas = [replica(0), replica(1)]
        stack.callback(lambda: [one.stop() for one in replicas])
        client = stack.enter_context(Client([f"127.0.0.1:{port}" for port in ports]))
        with asking(client, asked, threads):
            for number in range(count):
                time.sleep(KILLED_SECONDS if kill else SETTLED_SECONDS)
                if kill:
                    replicas[number % 2].process.kill()
                codes.append(replicas[number % 2].stop())
                problems += [] if kill else replicas[number % 2].faults()
                replicas[number % 2] = replica(number % 2)
            time.sleep(SETTLED_SECONDS)
        problems += [fault for one in replicas for fault in one.faults()]
    problems += [f"{number} lost: {sentence}" for sentence, number in asked.lost.items()]
    problems += [f"{asked.wrong} answers are not those of before"] if asked.wrong else []
    problems += [f"exit codes {codes}"] if any(codes) and not kill else []
    return outcome(
        "kills" if kill else "restarts",
        {"restarts": count, "calls": len(asked.seconds), "lost": asked.lost.total()},
        {"p99_ms": 1000 * percentile(asked.seconds, 0.99), "worst_ms": 1000 * max(asked.seconds)},
        "none lost",
        problems,
    )
