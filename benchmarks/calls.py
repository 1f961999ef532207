"""What a call pays for its name, its authorisation and its line in the log: CPU time of client and server together.

Servers that differ in nothing else are asked for the same empty answer in turns, by one client, one call at a time, all
in one process; the table has microseconds of CPU time for a call, the least and the median of the rounds, and how much
more the least is than without any of it. Whatever else runs on the machine only adds, which is why the least counts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TextIO

import grpc
import grpc.aio

from pellucid.v1 import explain_pb2 as pb
from server.authorise import Access, Authoriser
from server.calls import Calls, unwatched
from server.edge import Gate, GateLimits, unary
from server.logs import AccessLog, JsonLines, TextLines

SERVICE, METHOD, TOKEN = "bench.Service", "Ask", "a" * 43
Ask = Callable[[], Awaitable[bytes]]


def watch(*, tokens: int = 0, level: int = logging.DEBUG) -> Calls:
    """Return what stands before each call, with so many tokens, the client's the last."""
    if not tokens:
        return Calls(None, AccessLog(level))
    names = [f"other-{number}" for number in range(tokens - 1)] + [TOKEN]
    entries = {
        f"t{number}": {"sha256": hashlib.sha256(name.encode()).hexdigest(), "scopes": ["read"]}
        for number, name in enumerate(names)
    }
    access = Access.model_validate({"tokens": entries})
    return Calls(Authoriser(lambda: access), AccessLog(level))


CASES: dict[str, tuple[Callable[[], Calls | None], logging.Formatter | None]] = {
    "nothing": (lambda: None, None),
    "nothing again": (lambda: None, None),
    "request id": (watch, None),
    "and a token, of 1": (lambda: watch(tokens=1), None),
    "and a token, of 100": (lambda: watch(tokens=100), None),
    "request id, a line of text": (lambda: watch(level=logging.INFO), TextLines()),
    "request id, a line of JSON": (lambda: watch(level=logging.INFO), JsonLines()),
}


async def _answer(request: pb.ListModelsRequest) -> pb.ListModelsResponse:
    return pb.ListModelsResponse()


async def _opened(stack: AsyncExitStack, made: Calls | None) -> Ask:
    """Start a server and return what asks it once."""
    server = grpc.aio.server()
    watched = unwatched if made is None else made.watched
    handler = unary(pb.ListModelsRequest, _answer, Gate(GateLimits(100, 1 << 30, 60, 1)))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, watched(SERVICE, {METHOD: handler})),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
    method = channel.unary_unary(f"/{SERVICE}/{METHOD}")
    return lambda: method(b"", metadata=(("authorization", f"Bearer {TOKEN}"),))


async def measure(rounds: int, calls: int, sink: TextIO) -> dict[str, list[float]]:
    """Return the microseconds of CPU time for a call, of each case and round."""
    found: dict[str, list[float]] = {name: [] for name in CASES}
    log = logging.getLogger("pellucid.access")
    async with AsyncExitStack() as stack:
        asks = {name: await _opened(stack, make()) for name, (make, _) in CASES.items()}
        for turn in range(rounds + 1):
            for name, ask in asks.items():
                form = CASES[name][1]
                handler = logging.StreamHandler(sink)
                handler.setFormatter(form)
                log.handlers, log.propagate = [handler], False
                log.setLevel(logging.INFO)
                began = time.process_time()
                for _ in range(calls):
                    await ask()
                if turn:  # the first warms up
                    found[name].append(1e6 * (time.process_time() - began) / calls)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=500, help="of each case in a round")
    options = parser.parse_args()
    with Path(os.devnull).open("w") as sink:
        found = asyncio.run(measure(options.rounds, options.calls, sink))
    base = min(found["nothing"])
    print(f"{'us a call':28} {'median':>8} {'least':>8} {'more':>8}")
    for name, values in found.items():
        print(f"{name:28} {statistics.median(values):8.1f} {min(values):8.1f} {min(values) - base:+8.1f}")


if __name__ == "__main__":
    main()
