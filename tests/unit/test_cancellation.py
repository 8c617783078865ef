"""Whatever is asked to stop stops, also where the wish is lost on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

import pytest
from structlog.testing import capture_logs

from engine.schedule import in_background
from infra import cancellation
from infra.cancellation import alongside, cancel, join, to_the_end, together
from infra.metrics import REGISTRY

T = TypeVar("T")

LOSSES = [0, 1, 2, 5]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "AGAIN_SECONDS", 0.01)


class Loser:
    """A coroutine that loses so many cancellations, as `asyncio.wait_for` of Python 3.11 does."""

    made: ClassVar[WeakSet[Loser]] = WeakSet()

    def __init__(self, losses: float) -> None:
        self.made.add(self)
        self.losses = losses
        self.lost = 0
        self.ended = False
        self.began = asyncio.Event()

    async def run(self) -> None:
        try:
            while True:
                self.began.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if self.lost >= self.losses:
                        raise
                    self.lost += 1
        finally:
            self.ended = True

    async def started(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.run())
        await self.began.wait()
        return task


def overdue(kind: str) -> float:
    return REGISTRY.get_sample_value("backlot_stops_overdue_total", {"kind": kind}) or 0.0


def played(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def guarded() -> T:
        try:
            return await scenario()
        finally:
            # A test that fails must not wait for them for ever.
            for loser in Loser.made:
                loser.losses = 0

    return asyncio.run(guarded())


@pytest.mark.parametrize("losses", LOSSES)
def test_a_task_that_loses_cancellations_is_cancelled_until_it_is_done(losses: int) -> None:
    async def scenario() -> None:
        loser = Loser(losses)
        task = await loser.started()
        assert await cancel(task)
        assert task.cancelled()
        assert (loser.lost, loser.ended) == (losses, True)

    played(scenario)


@pytest.mark.parametrize("losses", LOSSES)
def test_work_alongside_a_block_ends_with_it(losses: int) -> None:
    async def scenario() -> None:
        loser = Loser(losses)
        async with alongside(loser.run()):
            await loser.began.wait()
        assert (loser.lost, loser.ended) == (losses, True)

    played(scenario)


@pytest.mark.parametrize("losses", LOSSES)
def test_a_wait_that_ends_as_it_is_cancelled_loses_nothing(losses: int) -> None:
    """The case of Python 3.11 itself: the inner wait is over when the cancellation comes."""

    async def scenario() -> None:
        ticks: asyncio.Queue[None] = asyncio.Queue()

        async def consume() -> None:
            while True:
                await asyncio.wait_for(ticks.get(), 60)

        task = asyncio.create_task(consume())
        for _ in range(losses + 1):
            await asyncio.sleep(0)
            ticks.put_nowait(None)
        assert await cancel(task)
        assert task.cancelled()

    played(scenario)


def test_one_that_never_ends_is_told_of_and_left_at_the_deadline() -> None:
    async def scenario() -> None:
        loser, other = Loser(float("inf")), Loser(1)
        tasks = await loser.started(), await other.started()
        before = overdue("task")
        with capture_logs() as logs:
            assert not await cancel(*tasks, seconds=0.1)
        assert tasks[1].cancelled()
        assert not tasks[0].done()
        assert overdue("task") == before + 1
        (told,) = logs
        assert (told["event"], told["name"]) == ("stop_overdue", "Loser.run")
        loser.losses = 0
        assert await cancel(tasks[0])

    played(scenario)


def test_how_a_task_ended_is_not_raised_by_its_end() -> None:
    async def scenario() -> None:
        async def broken() -> None:
            raise ValueError("broken")

        async def returned() -> int:
            return 7

        tasks = asyncio.create_task(broken()), asyncio.create_task(returned())
        await asyncio.wait(tasks)
        assert await cancel(*tasks)
        assert tasks[1].result() == 7
        with pytest.raises(ValueError, match="broken"):
            tasks[0].result()
        assert await cancel()

    played(scenario)


def test_a_caller_that_is_cancelled_meanwhile_goes_on_until_the_task_is_done() -> None:
    async def scenario() -> None:
        loser = Loser(5)
        task = await loser.started()
        ending = asyncio.create_task(cancel(task))
        await asyncio.sleep(0)
        assert await cancel(ending)
        assert ending.cancelled()
        assert task.cancelled()

    played(scenario)


@pytest.mark.parametrize("losses", LOSSES)
def test_those_that_run_together_end_together(losses: int) -> None:
    async def scenario() -> None:
        losers = [Loser(losses), Loser(0), Loser(losses)]
        both = asyncio.create_task(_all(losers))
        await asyncio.gather(*(each.began.wait() for each in losers))
        assert await cancel(both)
        assert both.cancelled()
        assert all(each.ended for each in losers)

    async def _all(losers: list[Loser]) -> None:
        await together(*(each.run() for each in losers))

    played(scenario)


def test_together_gives_the_results_in_order_or_the_first_failure() -> None:
    async def scenario() -> None:
        async def after(pause: float, answer: int) -> int:
            await asyncio.sleep(pause)
            if answer < 0:
                raise ValueError(answer)
            return answer

        assert await together(after(0.02, 1), after(0, 2)) == [1, 2]
        assert await together() == []
        loser = Loser(2)
        with pytest.raises(ValueError, match="-3"):
            await together(loser.run(), after(0, -3))
        assert loser.ended

    played(scenario)


def test_work_to_the_end_is_finished_however_often_it_is_cancelled() -> None:
    async def scenario() -> None:
        may, done = asyncio.Event(), []

        async def work() -> None:
            await may.wait()
            done.append(1)

        caller = asyncio.create_task(to_the_end(work()))
        for _ in range(3):
            await asyncio.sleep(0)
            caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
        may.set()
        await asyncio.wait([caller])
        assert caller.cancelled()
        assert done == [1]

    played(scenario)


def test_a_failure_does_not_replace_a_cancellation_and_is_told() -> None:
    async def scenario() -> None:
        may = asyncio.Event()

        async def work() -> None:
            await may.wait()
            raise ValueError("broken")

        caller = asyncio.create_task(to_the_end(work()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        may.set()
        with capture_logs() as logs:
            await asyncio.wait([caller])
        assert caller.cancelled()
        assert [each["event"] for each in logs] == ["cancelled_work_failed"]

    played(scenario)


@pytest.mark.parametrize("losses", LOSSES)
def test_background_jobs_end_with_their_stack(losses: int) -> None:
    async def scenario() -> None:
        loser = Loser(losses)
        async with AsyncExitStack() as stack:
            in_background(loser.run(), stack)
            await loser.began.wait()
        assert loser.ended

    played(scenario)


def test_a_background_job_that_breaks_is_told_of_at_once() -> None:
    async def scenario() -> None:
        async def broken() -> None:
            raise ValueError("broken")

        async with AsyncExitStack() as stack:
            in_background(broken(), stack)
            await asyncio.sleep(0.01)
            assert [each["event"] for each in logs] == ["job_broke"]

    before = REGISTRY.get_sample_value("backlot_jobs_broken_total") or 0.0
    with capture_logs() as logs:
        played(scenario)
    assert REGISTRY.get_sample_value("backlot_jobs_broken_total") == before + 1


def test_a_thread_that_does_not_end_is_told_of_and_left() -> None:
    may = threading.Event()
    thread = threading.Thread(target=may.wait, name="slow", daemon=True)
    assert join(thread)
    thread.start()
    before = overdue("thread")
    with capture_logs() as logs:
        assert not join(thread, 0.01)
    assert (logs[0]["event"], logs[0]["name"]) == ("stop_overdue", "slow")
    assert overdue("thread") == before + 1
    may.set()
    assert join(thread)
