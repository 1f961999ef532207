"""A shared run: requests whose pictures run together, and how each gets its own rows back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from analyzers.runtime import Run
from server.call import Call
from server.request import Images

Outputs = dict[str, npt.NDArray[Any]]
Finish = Callable[[Outputs, int], Any]


@dataclass(eq=False, slots=True)
class Work:
    """One request's pictures, waiting or running.

    Attributes:
        images: uint8 (n, height, width, 3), or float32 (n, 3, height, width) in 0..1.
        names: which outputs are wanted.
        finish: makes the answer of all outputs and the first row that is ours, in a worker's thread.
        deadline: in seconds of `time.monotonic`, as are all times here.
        arrived: when.
        loop: where somebody waits for the answer.
        future: the answer.
        call: whose it is; None where it is not traced.
        made_up: whether we changed the pictures.
        dead: whether nobody waits any more.
        shared: the run that it is in.
        encoding: when its answer began to be made.
        encoded: when it was.
    """

    images: Images
    names: Sequence[str]
    finish: Finish
    deadline: float
    arrived: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    call: Call | None
    made_up: bool
    dead: bool = False
    shared: SharedRun | None = None
    encoding: float = 0.0
    encoded: float = 0.0


Settled = list[tuple[Work, Any, Exception | None]]


@dataclass(eq=False, slots=True)
class SharedRun:
    """Requests that run together.

    Attributes:
        works: the requests, in the order of their rows.
        run: ends them.
    """

    works: list[Work]
    run: Run = field(default_factory=Run)

    @property
    def pictures(self) -> int:
        """How many pictures they have together."""
        return sum(len(work.images) for work in self.works)

    @property
    def names(self) -> Sequence[str]:
        """Which outputs any of them wants."""
        wanted = [work.names for work in self.works]
        if all(names == wanted[0] for names in wanted):
            return wanted[0]
        return list(dict.fromkeys(name for names in wanted for name in names))

    def finish(self, outputs: Outputs) -> Settled:
        """Let each request make its answer of its rows; what one of them raises is its own."""
        settled: Settled = []
        start, now = 0, time.monotonic()
        for work in self.works:
            work.encoding = now
            try:
                settled.append((work, None if work.dead else work.finish(outputs, start), None))
            except Exception as error:
                settled.append((work, None, error))
            work.encoded = now = time.monotonic()
            start += len(work.images)
        return settled

    def note(self, started: float, ended: float) -> None:
        """Tell the calls that are traced what became of their pictures."""
        for work in self.works:
            if work.call is None:
                continue
            work.call.stage("queue", work.arrived, started)
            work.call.stage("run", started, ended, batch_pictures=self.pictures, batch_requests=len(self.works))
            if work.encoded:
                work.call.stage("encode", work.encoding, work.encoded)


def settle(settled: Settled) -> None:
    """Hand answers to their event loops, each loop woken once."""
    for loop in {work.loop for work, _, _ in settled}:
        mine = [one for one in settled if one[0].loop is loop]
        try:
            loop.call_soon_threadsafe(_set, mine)
        except RuntimeError:  # the loop is closed: the server has gone, nobody waits
            continue


def _set(settled: Settled) -> None:
    for work, answer, error in settled:
        if work.future.done():
            continue
        if error is None:
            work.future.set_result(answer)
        else:
            work.future.set_exception(error)
