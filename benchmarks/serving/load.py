"""A closed loop: as many calls under way as were asked for, the next one sent as soon as one is answered.

Run as a process of its own: a JSON object with the fields of `Job` on standard input, one of `Figures` on standard
output.
"""

from __future__ import annotations

import json
import resource
import select
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving.http1 import Http1
from benchmarks.serving.http2 import Http2

MAX_CONNECTIONS = 8  # where one takes more than one call: some callers share one, as in real clients
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to send, and for how long.

    Attributes:
        address: HOST:PORT.
        path: of the call.
        body: file with the request's bytes.
        content_type: of an HTTP/1.1 request; empty for gRPC.
        concurrency: calls under way.
        warm_seconds: before anything counts.
        seconds: during which answers count.
    """

    address: str
    path: str
    body: str
    content_type: str
    concurrency: int
    warm_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of it.

    Attributes:
        rate: answers per second.
        p50_ms: half of the answers took at most so long.
        p99_ms: 99 % of them took at most so long.
        answers: of the whole run, warming up included.
        client_ms: CPU time of this process per answer.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    answers: int
    client_ms: float


def run(job: Job) -> Figures:
    """Keep a server busy and say how it did.

    Raises:
        ConnectionError: the server closed a connection, answered an error or nothing at all.
    """
    connections = _connect(job)
    by_number = {connection.socket.fileno(): connection for connection in connections}
    poll = select.epoll()
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    cpu, clock = time.process_time(), time.perf_counter
    began = clock()
    counts_from, counts_to = began + job.warm_seconds, began + job.warm_seconds + job.seconds
    for number in range(job.concurrency):
        connections[number % len(connections)].start(clock())
    for number, connection in by_number.items():
        connection.flush()
        poll.modify(number, select.EPOLLIN | (select.EPOLLOUT if connection.waiting else 0))
    under_way, answers, took = job.concurrency, 0, []
    while under_way:
        events = poll.poll(PATIENCE_SECONDS)
        if not events:
            raise ConnectionError(f"no answer for {PATIENCE_SECONDS} s, {under_way} calls under way")
        for number, event in events:
            connection, waited = by_number[number], by_number[number].waiting
            if event & ~select.EPOLLOUT:
                for start in connection.receive():
                    now = clock()
                    answers += 1
                    if counts_from <= now < counts_to:
                        took.append(now - start)
                    if now < counts_to:
                        connection.start(now)
                    else:
                        under_way -= 1
            connection.flush()
            if waited != connection.waiting:
                poll.modify(number, select.EPOLLIN | (select.EPOLLOUT if connection.waiting else 0))
    failed = sum(connection.failed for connection in connections)
    if failed or not took:
        raise ConnectionError(f"{failed} of {answers} calls failed, {len(took)} counted")
    took.sort()
    return Figures(
        rate=len(took) / job.seconds,
        p50_ms=1e3 * took[len(took) // 2],
        p99_ms=1e3 * took[min(len(took) - 1, len(took) * 99 // 100)],
        answers=answers,
        client_ms=1e3 * (time.process_time() - cpu) / answers,
    )


def _connect(job: Job) -> list[Http1] | list[Http2]:
    body = Path(job.body).read_bytes()
    if job.content_type:
        return [Http1(job.address, job.path, body, job.content_type) for _ in range(job.concurrency)]
    return [Http2(job.address, job.path, body) for _ in range(min(job.concurrency, MAX_CONNECTIONS))]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(asdict(run(Job(**json.load(sys.stdin))))))
