"""Dynamic batching: who shares a run, who gets which rows, who is refused, and what happens to the dead."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from analyzers.errors import ModelError
from server.batcher import Batcher, BatchLimits
from server.deadline import within
from server.errors import ExpiredError, OverloadedError
from server.shared_run import Outputs
from server.workers import Workers


class FakeModel:
    """Answers each picture's first number; a run lasts until `go` is set, or is ended."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.batches: list[list[int]] = []
        self.asked: list[list[str]] = []
        self.ended = 0
        self.fail = False

    def __call__(self, images: list[np.ndarray], names: Sequence[str], run: object) -> Outputs:
        self.batches.append([len(part) for part in images])
        self.asked.append(list(names))
        while not self.go.wait(0.001):
            if run.options.terminate:
                self.ended += 1
                raise ModelError("ended")
        if self.fail:
            raise ModelError("broken")
        return {"score": np.concatenate(images)[:, 0]}


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def workers() -> Iterator[Workers]:
    crew = Workers(1)
    yield crew
    crew.stop()


def batcher_of(model: FakeModel, workers: Workers, **limits: float) -> Batcher:
    chosen = {"max_batch": 4, "max_delay_seconds": 0, "max_queue": 100, "instances": 1} | limits
    return Batcher(model, workers, BatchLimits(**chosen))


def pictures(*values: int) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def take(count: int) -> Callable[[Outputs, int], list[float]]:
    return lambda outputs, start: outputs["score"][start : start + count].tolist()


async def ask(batcher: Batcher, *values: int, names: tuple[str, ...] = ("score",)) -> list[float]:
    return await batcher.run(pictures(*values), names, take(len(values)))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def hold(batcher: Batcher, model: FakeModel, value: int = 0) -> asyncio.Task:
    """Keep the one worker busy until `model.go` is set."""
    model.go.clear()
    count = len(model.batches)
    task = asyncio.ensure_future(ask(batcher, value))
    await until(lambda: len(model.batches) > count)
    return task


def test_concurrent_requests_share_a_run_and_get_their_own_rows(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers)
        first = await hold(batcher, model)
        others = [asyncio.ensure_future(ask(batcher, *values)) for values in ((1, 2), (3,), (4,), (5,))]
        await asyncio.sleep(0.01)
        model.go.set()
        assert await first == [0]
        assert [await other for other in others] == [[1, 2], [3], [4], [5]]
        assert model.batches == [[1], [2, 1, 1], [1]]

    asyncio.run(body())


def test_a_request_is_never_split_and_a_large_one_runs_alone(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers)
        first = await hold(batcher, model)
        others = [asyncio.ensure_future(ask(batcher, *range(count))) for count in (3, 2, 9, 1)]
        await asyncio.sleep(0.01)
        model.go.set()
        await asyncio.gather(first, *others)
        assert model.batches == [[1], [3], [2], [9], [1]]

    asyncio.run(body())


def test_different_outputs_share_a_run_that_answers_all_of_them(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers)
        first = await hold(batcher, model)
        others = [asyncio.ensure_future(ask(batcher, 1, names=names)) for names in (("score", "a"), ("b", "score"))]
        await asyncio.sleep(0.01)
        model.go.set()
        await asyncio.gather(first, *others)
        assert model.asked == [["score"], ["score", "a", "b"]]

    asyncio.run(body())


def test_nobody_waits_for_company_while_nothing_runs(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers, max_delay_seconds=30)
        assert await asyncio.wait_for(ask(batcher, 7), 5) == [7]

    asyncio.run(body())


def test_while_another_run_goes_on_pictures_wait_for_company_at_most_the_delay(model: FakeModel) -> None:
    async def body() -> None:
        crew = Workers(2)
        batcher = batcher_of(model, crew, instances=2, max_delay_seconds=0.2)
        first = await hold(batcher, model)
        started = time.monotonic()
        second = asyncio.ensure_future(ask(batcher, 1))
        await asyncio.sleep(0.05)
        third = asyncio.ensure_future(ask(batcher, 2))
        await until(lambda: len(model.batches) == 2)
        assert time.monotonic() - started >= 0.2
        model.go.set()
        assert await asyncio.gather(first, second, third) == [[0], [1], [2]]
        assert model.batches == [[1], [1, 1]]
        crew.stop()

    asyncio.run(body())


def test_a_full_batch_does_not_wait(model: FakeModel) -> None:
    async def body() -> None:
        crew = Workers(2)
        batcher = batcher_of(model, crew, instances=2, max_delay_seconds=30)
        first = await hold(batcher, model)
        others = [asyncio.ensure_future(ask(batcher, n)) for n in range(4)]
        await until(lambda: len(model.batches) == 2)
        model.go.set()
        await asyncio.gather(first, *others)
        assert model.batches == [[1], [1, 1, 1, 1]]
        crew.stop()

    asyncio.run(body())


def test_models_take_turns_so_that_a_busy_one_does_not_starve_another(workers: Workers) -> None:
    async def body() -> None:
        busy, quiet = FakeModel(), FakeModel()
        one, other = batcher_of(busy, workers, max_batch=1), batcher_of(quiet, workers, max_batch=1)
        first = await hold(one, busy)
        many = [asyncio.ensure_future(ask(one, n)) for n in range(20)]
        await asyncio.sleep(0.01)
        single = asyncio.ensure_future(ask(other, 5))
        await asyncio.sleep(0.01)
        done: list[str] = []
        single.add_done_callback(lambda _: done.append("quiet"))
        many[2].add_done_callback(lambda _: done.append("busy"))
        busy.go.set()
        await asyncio.gather(first, single, *many)
        assert done == ["quiet", "busy"]

    asyncio.run(body())


def test_a_full_queue_refuses_with_the_time_of_another_try(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers, max_queue=3)
        await ask(batcher, 0)
        first = await hold(batcher, model)
        others = [asyncio.ensure_future(ask(batcher, n)) for n in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError, match="3 pictures wait for this model already") as refused:
            await ask(batcher, 9)
        assert refused.value.retry_seconds > 0
        model.go.set()
        await asyncio.gather(first, *others)

    asyncio.run(body())


def test_what_cannot_be_done_before_its_deadline_is_refused_at_once(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers, max_batch=1)
        slow = await hold(batcher, model)
        await asyncio.sleep(0.2)
        model.go.set()
        await slow  # now a picture is known to take 0.2 s
        slow = await hold(batcher, model)
        waiting = [asyncio.ensure_future(ask(batcher, n)) for n in range(3)]
        await asyncio.sleep(0.01)
        started = time.monotonic()
        with pytest.raises(OverloadedError, match=r"those who wait already take 0\.6"):
            async with within(0.5):
                await ask(batcher, 9)
        assert time.monotonic() - started < 0.2
        model.go.set()
        await asyncio.gather(slow, *waiting)

    asyncio.run(body())


def test_a_wrong_estimate_does_not_keep_the_model_idle_for_ever(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers, max_batch=1)
        slow = await hold(batcher, model)
        await asyncio.sleep(0.3)
        model.go.set()
        await slow
        async with within(0.1):  # by the estimate hopeless
            assert await ask(batcher, 4) == [4]

    asyncio.run(body())


def test_a_cancelled_request_that_waits_is_not_run(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers)
        first = await hold(batcher, model)
        dead, alive = (asyncio.ensure_future(ask(batcher, n, n)) for n in (1, 2))
        await asyncio.sleep(0.01)
        dead.cancel()
        await asyncio.sleep(0.01)
        model.go.set()
        assert (await first, await alive) == ([0], [2, 2])
        assert model.batches == [[1], [2]]

    asyncio.run(body())


def test_a_run_ends_only_when_every_caller_of_its_batch_has_gone(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers)
        first = await hold(batcher, model)
        pair = [asyncio.ensure_future(ask(batcher, n)) for n in (1, 2)]
        await asyncio.sleep(0.01)
        first.cancel()
        await until(lambda: model.ended == 1)
        await until(lambda: len(model.batches) == 2)
        pair[0].cancel()
        await asyncio.sleep(0.05)
        assert model.ended == 1
        pair[1].cancel()
        await until(lambda: model.ended == 2)
        model.go.set()
        assert await ask(batcher, 3) == [3]

    asyncio.run(body())


def test_a_deadline_ends_the_run(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers)
        model.go.clear()
        with pytest.raises(ExpiredError, match=r"was not ready within 0\.1 s"):
            async with within(0.1):
                await ask(batcher, 1)
        await until(lambda: model.ended == 1)

    asyncio.run(body())


def test_a_failed_run_fails_its_own_callers_alone(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers)
        model.fail = True
        with pytest.raises(ModelError, match="broken"):
            await ask(batcher, 1)
        model.fail = False
        assert await ask(batcher, 2) == [2]

    asyncio.run(body())


def test_what_one_caller_makes_of_its_rows_does_not_harm_the_others(model: FakeModel, workers: Workers) -> None:
    def explode(outputs: Outputs, start: int) -> None:
        raise ZeroDivisionError

    async def body() -> None:
        batcher = batcher_of(model, workers)
        first = await hold(batcher, model)
        bad = asyncio.ensure_future(batcher.run(pictures(1), ["score"], explode))
        good = asyncio.ensure_future(ask(batcher, 2))
        await asyncio.sleep(0.01)
        model.go.set()
        with pytest.raises(ZeroDivisionError):
            await bad
        assert await good == [2]
        await first

    asyncio.run(body())


def test_statistics_count_what_was_answered_and_in_which_batches(model: FakeModel, workers: Workers) -> None:
    async def body() -> None:
        batcher = batcher_of(model, workers)
        first = await hold(batcher, model)
        pair = [asyncio.ensure_future(ask(batcher, n)) for n in (1, 2)]
        await asyncio.sleep(0.01)
        model.go.set()
        await asyncio.gather(first, *pair)
        model.fail = True
        with pytest.raises(ModelError):
            await ask(batcher, 1)
        counts = batcher.statistics.snapshot()
        assert (counts.pictures, counts.runs, counts.success.count, counts.fail.count) == (3, 2, 3, 1)
        assert {size: infer.count for size, (infer, _) in counts.batches.items()} == {1: 1, 2: 1}

    asyncio.run(body())


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_request_held_is_let_go_of_at_once_whether_it_was_answered_or_not(
    model: FakeModel, workers: Workers, fails: bool
) -> None:
    model.fail = fails
    batcher = batcher_of(model, workers)

    async def ask() -> weakref.ref[np.ndarray]:
        images = pictures(1, 2)
        try:
            await batcher.run(images, ["score"], lambda outputs, start: float(outputs["score"][start]))
        except ModelError:
            assert fails
        return weakref.ref(images)

    async def held() -> bool:
        left = await ask()
        for _ in range(100):  # the worker may be about to let go of it
            if left() is None:
                return False
            await asyncio.sleep(0.01)
        return True

    gc.disable()
    try:
        assert not asyncio.run(held())
    finally:
        gc.enable()
