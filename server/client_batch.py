"""Many pictures as batches: what goes together, what is asked ahead, and whose fault a failure is."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sized,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import grpc

from analyzers.errors import InvalidInputError
from analyzers.explanation import Explanation
from server.channels import check
from server.client_calls import Image
from server.client_errors import FAILURES, ServerError
from server.client_progress import Progress, progress_bar

OnError = Literal["raise", "return"]
Outcome = Explanation | ServerError | InvalidInputError | OSError

Item = TypeVar("Item")
Asked = TypeVar("Asked")

AHEAD = 2  # batches read and asked per connection in use, so that a slow one does not leave the others idle
PICTURE_FIELDS = ("images", "encoded_image", "tensor")


@dataclass(frozen=True, slots=True)
class Plan:
    """How many pictures are asked about.

    Attributes:
        batch: pictures in a request.
        concurrency: requests at a time.
        on_error: whether the error of a picture is raised, or yielded in the place of its answer.
        progress: whether to show a bar.

    Raises:
        InvalidInputError: naming the argument that is out of range.
    """

    batch: int
    concurrency: int
    on_error: OnError
    progress: Progress

    def __post_init__(self) -> None:
        check("batch", self.batch, self.batch >= 1, "1 or more")
        check("concurrency", self.concurrency, self.concurrency >= 1, "1 or more")
        if self.on_error not in ("raise", "return"):
            raise InvalidInputError("on_error", f"is '{self.on_error}'; expected 'raise' or 'return'")
        if self.progress not in (True, False, "auto"):
            raise InvalidInputError("progress", f"is '{self.progress}'; expected True, False or 'auto'")


class UnderWay:
    """Blocking calls that end together.

    Attributes:
        ended: set when they have.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._calls: set[grpc.Future[Any]] = set()
        self._lock = threading.Lock()

    def result(self, call: grpc.Future[Asked]) -> Asked:
        """Wait for a call's result.

        Raises:
            grpc.RpcError: it failed.
            grpc.FutureCancelledError: they have ended.
        """
        with self._lock:
            self._calls.add(call)
            if self.ended.is_set():
                call.cancel()
        try:
            return call.result()
        finally:
            with self._lock:
                self._calls.discard(call)

    def end(self) -> None:
        """Cancel those under way and those to come."""
        with self._lock:
            self.ended.set()
            calls = list(self._calls)
        for call in calls:
            call.cancel()


def answers(
    pictures: Iterable[Image], plan: Plan, ask: Callable[[list[Image]], list[Explanation]], under_way: UnderWay
) -> Iterator[Outcome]:
    """Yield the outcome of each picture in order.

    Args:
        pictures: where they come from.
        plan: how they are asked about.
        ask: asks about a batch; called in several threads.
        under_way: the calls that it makes.
    """

    def outcomes(images: list[Image]) -> list[Outcome]:
        try:
            return [*ask(images)]
        except FAILURES as error:
            if not concerns_pictures(error):
                raise
            if len(images) == 1:
                return [error]
        return [outcome for image in images for outcome in outcomes([image])]

    def start(images: list[Image]) -> tuple[list[Image], Future[list[Outcome]]]:
        return images, pool.submit(outcomes, images)

    pool = ThreadPoolExecutor(plan.concurrency, "explain")
    try:
        with progress_bar(plan.progress, _count(pictures)) as advance:
            number = itertools.count()
            for images, answer in in_order(in_batches(pictures, plan.batch), start, AHEAD * plan.concurrency):
                for image, outcome in zip(images, answer.result(), strict=True):
                    yield _settle(outcome, next(number), image, plan.on_error)
                    advance()
    finally:
        under_way.end()
        pool.shutdown(cancel_futures=True)


async def answers_async(
    pictures: AsyncIterable[Image] | Iterable[Image],
    plan: Plan,
    ask: Callable[[list[Image]], Awaitable[list[Explanation]]],
) -> AsyncIterator[Outcome]:
    """Yield the outcome of each picture in order, as `answers` does."""
    free = asyncio.Semaphore(plan.concurrency)
    asking: set[asyncio.Task[list[Outcome]]] = set()

    async def outcomes(images: list[Image]) -> list[Outcome]:
        try:
            return [*await ask(images)]
        except FAILURES as error:
            if not concerns_pictures(error):
                raise
            if len(images) == 1:
                return [error]
        return [outcome for image in images for outcome in await outcomes([image])]

    async def when_free(images: list[Image]) -> list[Outcome]:
        async with free:
            return await outcomes(images)

    def start(images: list[Image]) -> tuple[list[Image], asyncio.Task[list[Outcome]]]:
        task = asyncio.create_task(when_free(images))
        asking.add(task)
        return images, task

    try:
        with progress_bar(plan.progress, _count(pictures)) as advance:
            number, batches = itertools.count(), in_batches_async(pictures, plan.batch)
            async with aclosing(in_order_async(batches, start, AHEAD * plan.concurrency)) as started:
                async for images, task in started:
                    answer = await task
                    asking.discard(task)
                    for image, outcome in zip(images, answer, strict=True):
                        yield _settle(outcome, next(number), image, plan.on_error)
                        advance()
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one shorter; what came before an error of the source comes first."""
    batch: list[Item] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


async def in_batches_async(items: AsyncIterable[Item] | Iterable[Item], size: int) -> AsyncIterator[list[Item]]:
    """Yield as `in_batches` does, from either kind of source."""
    if isinstance(items, Iterable):
        for batch in in_batches(items, size):
            yield batch
        return
    batch = []
    try:
        async for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def in_order(items: Iterable[Item], start: Callable[[Item], Asked], window: int) -> Iterator[Asked]:
    """Start something for each item, at most `window` ahead of the one that is yielded, and yield it in order."""
    started: deque[Asked] = deque()
    try:
        for item in items:
            started.append(start(item))
            if len(started) == window:
                yield started.popleft()
    except Exception:  # of the source; what it gave is answered first
        yield from started
        raise
    yield from started


async def in_order_async(
    items: AsyncIterable[Item], start: Callable[[Item], Asked], window: int
) -> AsyncGenerator[Asked, None]:
    """Do as `in_order` does."""
    started: deque[Asked] = deque()
    try:
        async for item in items:
            started.append(start(item))
            if len(started) == window:
                yield started.popleft()
    except Exception:
        for one in started:
            yield one
        raise
    for one in started:
        yield one


def concerns_pictures(error: ServerError | InvalidInputError | OSError) -> bool:
    """Return whether other pictures may fare better: an unknown model or a server that is away concerns them all."""
    if isinstance(error, ServerError):
        if error.code is grpc.StatusCode.INVALID_ARGUMENT:
            return error.field.startswith(PICTURE_FIELDS)
        too_large = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_seconds is None
        return too_large or error.code is grpc.StatusCode.INTERNAL
    return isinstance(error, OSError) or error.field.startswith(PICTURE_FIELDS)


def _settle(outcome: Outcome, number: int, picture: object, on_error: OnError) -> Outcome:
    """Return an outcome, or raise it if it is an error and errors are to be raised.

    Args:
        outcome: an Explanation or an error.
        number: of the picture, from 0.
        picture: what was asked about.
        on_error: what to do about errors.
    """
    if not isinstance(outcome, Explanation):
        outcome.add_note(f"picture {number}" + (f" ({picture})" if isinstance(picture, str | Path) else ""))
        if on_error == "raise":
            raise outcome
    return outcome


def _count(items: object) -> int | None:
    """Return how many there are, if that is known before the end."""
    return len(items) if isinstance(items, Sized) else None
