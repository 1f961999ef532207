"""Ranks: the processes that share a run, started by `torchrun` or `accelerate launch`; one where nobody started more.

They meet as the environment says (WORLD_SIZE, RANK, MASTER_ADDR, ...). What they exchange here is exchanged in one
order, so that results do not depend on who was faster. `docs/distributed-training.md` says what is shared, and how.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from analyzers.cli import INTERRUPTED
from analyzers.errors import PellucidError

T = TypeVar("T")
R = TypeVar("R")

_STORE_SECONDS = 3.0
_GONE = (
    "another process of this run is gone, or the launcher ends it, and this one ends with it; what is whole was kept,"
    " and the same command with --resume goes on from there"
)
_LOST = ("gloo", "closed by peer", "reset by peer", "broken pipe", "timed out waiting", "nccl")


class RanksError(PellucidError):
    """The processes of a run cannot meet, or one of them is gone."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        number: this one's, from 0 on.
        count: how many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files, logs and bars."""
        return self.number == 0

    def share(self, items: int) -> slice:
        """Return which of so many items, in their order, are this process's; shares differ by one at most."""
        return self.share_of(self.number, items)

    def share_of(self, number: int, items: int) -> slice:
        """Return the share of another process."""
        return slice(items * number // self.count, items * (number + 1) // self.count)

    def gather(self, value: T) -> list[T]:
        """Return every process's value, by number, in each of them."""
        if self.count == 1:
            return [value]
        values: list[T] = [value] * self.count
        dist.all_gather_object(values, value)
        return values

    def told(self, value: T) -> T:
        """Return the first process's value in each of them."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def in_turns(self, items: Sequence[T], compute: Callable[[T], R]) -> Iterator[R]:
        """Yield what is computed of each item, in the items' order; process n computes the items n, n + count, ...

        Each item is computed whole by one process, so that what is yielded does not depend on how many there are.
        """
        for start in range(0, len(items), self.count):
            own = start + self.number
            value = compute(items[own]) if own < len(items) else None
            yield from self.gather(value)[: len(items) - start]  # type: ignore[misc] # those behind the last are None


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes of a run until the block ends; of all their errors, the first alone is told.

    Raises:
        RanksError: the environment is incomplete, nobody is there, or another process has ended.
        SystemExit: something else went wrong here, after another process had told of its error.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield ALONE
        return
    before = signal.signal(signal.SIGTERM, _ended)
    try:
        yield _meet()
        dist.destroy_process_group()
    except (PellucidError, OSError):
        _leave_to_others(1)
        raise
    except KeyboardInterrupt:
        _leave_to_others(INTERRUPTED)
        raise
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        _leave_to_others(1)
        raise RanksError(f"{_GONE} ({_line(error)})") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended(number: int, frame: FrameType | None) -> None:
    """Stop where the launcher says so, as after an error, so that files are left whole."""
    raise RanksError(_GONE)


def _meet() -> Ranks:
    try:
        state = PartialState(cpu=not torch.cuda.is_available())
    except (ValueError, RuntimeError, OSError) as error:
        raise RanksError(
            f"the processes of this run cannot meet: {_line(error)}; start it with torchrun or accelerate launch, or"
            " unset WORLD_SIZE to run in one process"
        ) from None
    if state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise RanksError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {state.num_processes} process was found: LOCAL_RANK is not"
            " set; start the run with torchrun or accelerate launch, or unset WORLD_SIZE to run in one process"
        )
    return Ranks(state.process_index, state.num_processes)


def _is_loss(error: RuntimeError) -> bool:
    """Whether an error says that another process cannot be reached; gloo has no class for that."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _LOST)


def _leave_to_others(code: int) -> None:
    """End the process silently if another one has told of an error already."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends as it is
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not address or not port:
        return
    key = f"pellucid/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        wait = timedelta(seconds=_STORE_SECONDS)
        store = dist.TCPStore(address, int(port), is_master=False, timeout=wait, wait_for_workers=False)  # type: ignore[attr-defined] # torch exports it unsaid
        told = store.add(key, 1)
    except (ValueError, RuntimeError):
        return  # nobody there to agree with
    if told > 1:
        raise SystemExit(code) from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).partition("\n")[0].split())[:200]
