"""The batcher: order, shared batches, one outcome for each, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from infra.batcher import AGAIN, Again, Batcher, NotBegun, QueueFull
from tests.support import DEADLINE_SECONDS


class Refused(Exception):
    """What one item gets."""


class Worker:
    """Doubles numbers, refuses negative ones, and breaks on zero; `gate` holds it back.

    Those of `losing` it wants to see again, once for each time that they are there; the next batch
    is held back then if `holds`.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.losing: list[int] = []
        self.holds = False

    def __call__(self, items: Sequence[int]) -> Sequence[int | BaseException | Again]:
        self.entered.set()
        self.gate.wait(DEADLINE_SECONDS)
        self.batches.append(list(items))
        self.threads.add(threading.current_thread().name)
        if 0 in items:
            raise ZeroDivisionError
        return [self._result(item) for item in items]

    def _result(self, item: int) -> int | BaseException | Again:
        if item in self.losing:
            self.losing.remove(item)
            if self.holds:
                self.gate.clear()
            return AGAIN
        return 2 * item if item > 0 else Refused(item)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch waits longer than a test for those who were just answered."""
    for name in ("GATHER_SECONDS_EACH", "MOST_GATHER_SECONDS"):
        monkeypatch.setattr(f"infra.batcher.{name}", 10 * DEADLINE_SECONDS)


def batcher(worker: Worker, max_batch: int = 4, max_waiting: int = 100) -> Batcher[int, int]:
    return Batcher(worker, name="test", max_batch=max_batch, max_waiting=max_waiting)


async def submit(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Submitted in this order, each by its own task."""
    tasks = [asyncio.create_task(batcher.submit(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


def test_what_arrives_together_shares_batches_in_order(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        results = await asyncio.gather(*await submit(batches, *range(1, 11)))
        assert results == [2 * item for item in range(1, 11)]
        assert worker.batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
        assert len(worker.threads) == 1
        await batches.close()

    asyncio.run(scenario())


def test_what_arrives_during_a_batch_makes_the_next(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        worker.gate.clear()
        first = await submit(batches, 1)
        await asyncio.sleep(0.01)
        others = await submit(batches, 2, 3)
        assert len(batches) == 2
        worker.gate.set()
        assert await asyncio.gather(*first, *others) == [2, 4, 6]
        assert worker.batches == [[1], [2, 3]]
        assert await batches.submit(5) == 10
        await batches.close()

    asyncio.run(scenario())


def test_what_is_wanted_again_begins_the_next_batch_and_keeps_nobody_waiting(
    worker: Worker,
) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        worker.losing, worker.holds = [1, 3], True
        one, two, three = await submit(batches, 1, 2, 3)
        assert await two == 4
        (four,) = await submit(batches, 4)
        assert not one.done()
        worker.gate.set()
        assert [*await asyncio.gather(one, three, four)] == [2, 6, 8]
        assert [item for batch in worker.batches for item in batch] == [1, 2, 3, 1, 3, 4]
        assert worker.batches[0] == [1, 2, 3]
        await batches.close()

    asyncio.run(scenario())


def test_closing_finishes_what_is_wanted_again(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        worker.losing = [1, 1]
        (one,) = await submit(batches, 1)
        await batches.close()
        assert one.result() == 2
        assert worker.batches == [[1]] * 3

    asyncio.run(scenario())


def test_what_one_submits_on_its_answer_shares_the_next_batch(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)

        async def client(item: int) -> int:
            return await batches.submit(await batches.submit(item))

        assert [*await asyncio.gather(client(1), client(2), client(3))] == [4, 8, 12]
        assert worker.batches == [[1, 2, 3], [2, 4, 6]]
        await batches.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("patient")
def test_nobody_is_waited_for_once_all_are_back(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)

        async def client(item: int) -> int:
            return await batches.submit(await batches.submit(item))

        async with asyncio.timeout(DEADLINE_SECONDS):
            assert [*await asyncio.gather(*map(client, (1, 2, 3)))] == [4, 8, 12]
            assert worker.batches == [[1, 2, 3], [2, 4, 6]]
            # Nor is anybody when no one can come any more.
            await batches.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("patient")
def test_closing_waits_for_nobody_who_was_answered(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        worker.gate.clear()
        tasks = await submit(batches, 1, 2)
        await asyncio.to_thread(worker.entered.wait)
        closing = asyncio.create_task(batches.close())
        await asyncio.sleep(0)
        worker.gate.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await asyncio.gather(*tasks) == [2, 4]
            await closing

    asyncio.run(scenario())


@pytest.mark.usefixtures("patient")
def test_a_full_batch_waits_for_nobody(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker, max_batch=2)
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await asyncio.gather(*await submit(batches, 1, 2, 3, 4)) == [2, 4, 6, 8]
            assert worker.batches == [[1, 2], [3, 4]]
            await batches.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("patient")
def test_who_went_away_is_not_waited_for(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        worker.gate.clear()
        stays, gone = await submit(batches, 1, 2)
        await asyncio.to_thread(worker.entered.wait)
        gone.cancel()
        worker.gate.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await stays == 2
            # Who was answered is back, who went away will not be.
            assert await batches.submit(3) == 6
            await batches.close()

    asyncio.run(scenario())


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for, but batches begin longer one after the other than a test takes."""
    for name in ("GATHER_SECONDS_EACH", "MOST_GATHER_SECONDS"):
        monkeypatch.setattr(f"infra.batcher.{name}", 0.0)
    monkeypatch.setattr("infra.batcher.PACE_SECONDS", 10 * DEADLINE_SECONDS)


@pytest.mark.usefixtures("slow")
def test_after_a_batch_of_several_others_gather_until_as_many_wait_again(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        assert await asyncio.gather(*await submit(batches, 1, 2)) == [2, 4]
        (first,) = await submit(batches, 3)
        # Longer than a turn of the loop, and than a timer of no seconds.
        await asyncio.sleep(0.01)
        assert len(batches) == 1
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await asyncio.gather(first, *await submit(batches, 4)) == [6, 8]
        assert worker.batches == [[1, 2], [3, 4]]
        await batches.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("slow")
def test_who_comes_after_one_alone_is_not_held_up(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        worker.gate.clear()
        (first,) = await submit(batches, 1)
        await asyncio.to_thread(worker.entered.wait)
        (second,) = await submit(batches, 2)
        worker.gate.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert (await first, await second) == (2, 4)
            assert await batches.submit(3) == 6
        await batches.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("slow")
def test_closing_ends_the_gathering(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        await asyncio.gather(*await submit(batches, 1, 2))
        (last,) = await submit(batches, 3)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await batches.close()
            assert await last == 6

    asyncio.run(scenario())


def test_an_exception_in_the_results_is_one_submitters(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        tasks = await submit(batches, 1, -2, 3)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [int, Refused, int]
        await batches.close()

    asyncio.run(scenario())


def test_an_exception_of_the_worker_is_the_whole_batchs(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker, max_batch=2)
        tasks = await submit(batches, 1, 0, 3)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError, ZeroDivisionError, int]
        await batches.close()

    asyncio.run(scenario())


def test_too_many_waiting_is_refused_at_once(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker, max_batch=1, max_waiting=2)
        worker.gate.clear()
        first = await submit(batches, 1)
        await asyncio.sleep(0.01)
        waiting = await submit(batches, 2, 3)
        with pytest.raises(QueueFull):
            await batches.submit(4)
        worker.gate.set()
        assert await asyncio.gather(*first, *waiting) == [2, 4, 6]
        assert await batches.submit(5) == 10
        await batches.close()

    asyncio.run(scenario())


def test_closing_finishes_what_was_accepted_and_takes_nothing_more(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker, max_batch=1)
        tasks = await submit(batches, 1, 2, 3)
        closing = asyncio.create_task(batches.close())
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await batches.submit(4)
        await closing
        assert [task.result() for task in tasks] == [2, 4, 6]
        assert not [thread for thread in threading.enumerate() if thread.name in worker.threads]
        await batches.close()

    asyncio.run(scenario())


def test_work_is_done_even_when_the_submitter_goes_away(worker: Worker) -> None:
    async def scenario() -> None:
        batches = batcher(worker)
        worker.gate.clear()
        gone, stays = await submit(batches, 1, 2)
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        worker.gate.set()
        assert await stays == 4
        assert worker.batches == [[1, 2]]
        await batches.close()

    asyncio.run(scenario())


class Away(Exception):
    """Nothing can be done for anybody."""


def test_an_outage_sends_away_who_already_waits(worker: Worker) -> None:
    def process(items: Sequence[int]) -> Sequence[int | BaseException]:
        worker(items)
        return [Away() if item == 7 else item for item in items]

    async def scenario() -> None:
        batches = Batcher(process, name="test", max_batch=2, max_waiting=100, outages=(Away,))
        worker.gate.clear()
        first = await submit(batches, 6, 7)
        await asyncio.to_thread(worker.entered.wait)
        later = await submit(batches, 8, 9, 10)
        worker.gate.set()
        told = await asyncio.gather(*first, *later, return_exceptions=True)
        assert [type(each) for each in told] == [int, Away, NotBegun, NotBegun, NotBegun]
        assert worker.batches == [[6, 7]]
        assert await batches.submit(11) == 11
        await batches.close()

    asyncio.run(scenario())
