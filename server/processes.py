"""The server as one process, or as several on one port: started, watched, replaced when they die, ended together.

Python runs one thread at a time in a process, so small networks keep one process's lock busier than its cores. The
kernel gives each new connection to one of the processes (SO_REUSEPORT); each has its own copy of the models.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from analyzers import cli
from analyzers.errors import PellucidError
from server.app import serve
from server.authorise import warn_of_open_door
from server.logs import write_log
from server.memory import keep_little_memory
from server.metrics import Scrape, metrics_of
from server.scrape import Other, Own, answer_others
from server.settings import PROGRAM, Settings

log = logging.getLogger("pellucid.processes")

# How long a thread that runs a model waits for a busy event loop to let it go on; Python's own 5 ms are half a run.
SWITCH_SECONDS = 0.0005
STEADY_SECONDS = 10.0  # one that lived shorter died of something that will kill the next one too
LONGEST_PAUSE_SECONDS = 30.0

Announce = Callable[[str], None]


class ProcessesError(PellucidError):
    """The first process did not come up; it has said why itself."""


def serve_alone(settings: Settings, announce: Announce) -> int:
    """Serve in this process until SIGINT or SIGTERM and return the exit code.

    Args:
        settings: all settings.
        announce: called once with "HOST:PORT", when it listens.
    """

    def run() -> None:
        with metrics_of(settings) as scrape:
            publish = None if scrape is None else lambda read: scrape.add(Own(read))
            run_loop(serve(settings, announce, publish))

    _begin_log(settings)
    sys.setswitchinterval(SWITCH_SECONDS)
    return cli.run(PROGRAM, run)


def run_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end on uvloop, which answers a twelfth more small calls; on asyncio's own loop where there is none."""
    try:
        import uvloop
    except ImportError:  # it does not exist for every system
        asyncio.run(work)
    else:
        uvloop.run(work)


def serve_together(settings: Settings, announce: Announce) -> int:
    """Run `settings.processes` servers until SIGINT or SIGTERM, let each finish, and return the exit code.

    Args:
        settings: all settings; of each process, but for the workers, which are shared out.
        announce: called once with "HOST:PORT", when all listen.
    """
    _begin_log(settings)
    return cli.run(PROGRAM, lambda: _claim_and_supervise(settings, announce))


def _begin_log(settings: Settings) -> None:
    write_log(settings.log_level, settings.log_format)
    warn_of_open_door(settings, os.environ)


def _claim_and_supervise(settings: Settings, announce: Announce) -> None:
    with metrics_of(settings) as scrape, _claimed(settings.host, settings.port) as port:
        share = max(1, settings.workers // settings.processes)
        each = settings.model_copy(update={"port": port, "workers": share})
        asyncio.run(_supervise(each, announce, scrape))


@contextmanager
def _claimed(host: str, port: int) -> Iterator[int]:
    """Hold a port without listening on it, so that it stays ours while processes come and go."""
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as alone:  # would share the port with nobody, so it finds out who else is there
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = alone.getsockname()
        with socket.socket(family) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
            yield int(address[1])
    except OSError:
        text = f"cannot listen on {host}:{port}; the port is taken or the address is not this machine's"
        raise OSError(text) from None


async def _supervise(settings: Settings, announce: Announce, scrape: Scrape | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    servers: list[_Server] = []
    try:
        for many in 1, settings.processes - 1:  # what is wrong with all of them is said once
            new = [_Server(len(servers) + place, settings, stop, scrape) for place in range(1, many + 1)]
            servers += new
            if not all(await asyncio.gather(*(server.listening() for server in new))):
                if stop.is_set():
                    return
                raise ProcessesError("a server process ended before it listened; what it said is above")
        announce(f"{settings.host}:{settings.port}")
        await asyncio.gather(*(_keep(servers, place) for place in range(len(servers))))
    finally:
        await asyncio.gather(*(server.end() for server in servers))


async def _keep(servers: list[_Server], place: int) -> None:
    """Put another process in the place of one that ends, until we stop."""
    loop, pause = asyncio.get_running_loop(), 0.0
    while True:
        server, began = servers[place], loop.time()
        how = await server.ended()
        if server.stop.is_set():
            return
        pause = 0.0 if loop.time() - began > STEADY_SECONDS else min(LONGEST_PAUSE_SECONDS, 2 * pause + 0.5)
        log.error("%s %s; starting another in %.3g s", server.name, how, pause)
        with suppress(TimeoutError):
            await asyncio.wait_for(server.stop.wait(), pause)
        if server.stop.is_set():
            return
        servers[place] = server.another()
        if await servers[place].listening():
            log.info("%s listens again", server.name)


class _Server:
    """One process, from its start on."""

    def __init__(self, number: int, settings: Settings, stop: asyncio.Event, scrape: Scrape | None) -> None:
        self.name = f"server {number}"
        self.stop = stop
        self.another = partial(_Server, number, settings, stop, scrape)
        self._patience = settings.lame_duck_seconds + settings.grace_seconds + 5
        context = multiprocessing.get_context("spawn")  # threads and gRPC do not survive a fork
        self._heard, says = context.Pipe(duplex=False)
        asks, asked = context.Pipe()
        self._process = context.Process(target=_run, args=(settings, says, asked), name=self.name)
        self._process.start()
        says.close()
        asked.close()
        self._scrape, self._asks = scrape, asks

    async def listening(self) -> bool:
        """Wait until it listens; return False when it ends instead, or we stop."""
        with self._heard:
            await self._readable(self._heard.fileno())
            if self.stop.is_set():
                return False
            try:
                self._heard.recv()
            except EOFError:
                return False
        if self._scrape is not None:
            self._scrape.add(Other(self._asks))
        return True

    async def ended(self) -> str:
        """Wait until it ends, or we stop, and return how it ended."""
        await self._readable(self._process.sentinel)
        if self.stop.is_set():
            return "is stopping"
        self._process.join()
        code = self._process.exitcode or 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def end(self) -> None:
        """Let it finish, or kill it when that takes longer than it may."""
        if self._process.is_alive():
            self._process.terminate()
        await asyncio.to_thread(self._process.join, self._patience)
        if self._process.is_alive():
            log.error("%s does not stop; it is killed", self.name)
            self._process.kill()
            await asyncio.to_thread(self._process.join)

    async def _readable(self, number: int) -> None:
        """Wait until a file can be read, or we stop."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(number, readable.set)
        waits = [asyncio.create_task(event.wait()) for event in (readable, self.stop)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(number)
            for each in waits:
                each.cancel()


def _run(settings: Settings, says: Connection, asked: Connection) -> None:
    """Serve in a process of its own; stop when whoever started it is gone."""
    keep_little_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process passes it on
    threading.Thread(target=_stop_with_parent, name="parent", daemon=True).start()

    def listening(address: str) -> None:
        says.send(address)
        says.close()

    write_log(settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_SECONDS)
    publish = partial(answer_others, asked) if settings.metrics_port else None
    raise SystemExit(cli.run(PROGRAM, lambda: run_loop(serve(settings, listening, publish))))


def _stop_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
