"""Questions of many callers that are asked as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from infra.batcher import Batches, BatchLoader
from infra.cancellation import cancel

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Database:
    """Doubles numbers when it is told to, and knows which it was asked at once."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.may_answer = asyncio.Event()

    async def double(self, numbers: Sequence[int]) -> list[int]:
        self.asked.append(list(numbers))
        await self.may_answer.wait()
        if 13 in numbers:
            raise ValueError(13)
        return [2 * number for number in numbers]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def asking(batches: Batches[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(batches.ask(number)) for number in numbers]


async def test_who_comes_meanwhile_is_asked_for_next() -> None:
    database = Database()
    batches: Batches[int, int] = Batches(database.double, most=3)
    first = asking(batches, 1, 2)
    await settle()
    later = asking(batches, 3, 4, 5, 6)
    await settle()
    assert database.asked == [[1, 2]]
    database.may_answer.set()
    assert await asyncio.gather(*first, *later) == [2, 4, 6, 8, 10, 12]
    assert database.asked == [[1, 2], [3, 4, 5], [6]]
    assert await batches.ask(7) == 14


async def test_a_failure_is_told_to_all_of_its_batch_and_to_no_other() -> None:
    database = Database()
    batches: Batches[int, int] = Batches(database.double)
    broken = asking(batches, 1, 13)
    await settle()
    later = asking(batches, 2)
    database.may_answer.set()
    found = await asyncio.gather(*broken, *later, return_exceptions=True)
    assert [str(each) for each in found] == ["13", "13", "4"]


async def test_who_goes_away_takes_nobody_along() -> None:
    database = Database()
    batches: Batches[int, int] = Batches(database.double)
    gone, stays = asking(batches, 1, 2)
    await settle()
    await cancel(gone)
    database.may_answer.set()
    assert await stays == 4


class Reads:
    """Reads of numbers, each of which waits until it may go on; they double what is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[list[int]] = []
        self.may_go_on = asyncio.Semaphore(0)
        self.error = error

    async def __call__(self, keys: Sequence[int]) -> dict[int, int]:
        self.asked.append(list(keys))
        await self.may_go_on.acquire()
        if self.error is not None:
            raise self.error
        return {key: 2 * key for key in keys}


async def test_what_is_wanted_meanwhile_is_read_next_and_all_at_once() -> None:
    reads = Reads()
    loader = BatchLoader(reads)
    first = asyncio.create_task(loader.ask(1))
    await settle()
    # The same one again as well: what is being read may be older than the question.
    others = [asyncio.create_task(loader.ask(key)) for key in (1, 2, 3, 2)]
    await settle()
    assert reads.asked == [[1]]
    reads.may_go_on.release()
    assert await first == 2
    await settle()
    assert reads.asked == [[1], [1, 2, 3]]
    reads.may_go_on.release()
    assert await asyncio.gather(*others) == [2, 4, 6, 4]


async def test_not_more_than_so_many_are_read_at_once() -> None:
    reads = Reads()
    loader = BatchLoader(reads, 2)
    asking = [asyncio.create_task(loader.ask(key)) for key in range(5)]
    for _ in range(3):
        reads.may_go_on.release()
    assert await asyncio.gather(*asking) == [0, 2, 4, 6, 8]
    assert reads.asked == [[0, 1], [2, 3], [4]]


async def test_a_read_that_fails_fails_those_who_asked_for_it_and_no_other() -> None:
    reads = Reads(ConnectionError("away"))
    loader = BatchLoader(reads)
    asking = [asyncio.create_task(loader.ask(key)) for key in (1, 2)]
    await settle()
    later = asyncio.create_task(loader.ask(1))
    await settle()
    reads.may_go_on.release()
    failed = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(each) for each in failed] == [ConnectionError, ConnectionError]
    reads.error = None
    reads.may_go_on.release()
    assert await later == 2


async def test_who_goes_away_takes_no_value_along() -> None:
    reads = Reads()
    loader = BatchLoader(reads)
    one, other = (asyncio.create_task(loader.ask(7)) for _ in range(2))
    await settle()
    one.cancel()
    reads.may_go_on.release()
    assert await other == 14
    assert one.cancelled()


async def test_nobody_waits_for_ever_when_the_process_ends() -> None:
    reads = Reads()
    loader = BatchLoader(reads, 1)
    asking_ = [asyncio.create_task(loader.ask(key)) for key in (1, 2)]
    await settle()
    assert loader._task is not None
    loader._task.cancel()
    for each in asking_:
        with pytest.raises(asyncio.CancelledError):
            await each
