"""Single flight inside one process, and reads of all that is wanted at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from infra.cache import BatchLoader, FlightResult, SingleFlight

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Work:
    """Work that ends when it is told to, and knows how often it was begun."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()
        self._error = error

    async def __call__(self) -> int:
        self.begun += 1
        await self.may_end.wait()
        if self._error is not None:
            raise self._error
        return self.begun


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_who_ask_meanwhile_share_the_result() -> None:
    flights, work = SingleFlight[int](), Work()
    asking = [asyncio.create_task(flights.join("a", work)) for _ in range(1000)]
    await settle()
    work.may_end.set()
    landed = await asyncio.gather(*asking)
    assert landed == [FlightResult(1, shared=False)] + 999 * [FlightResult(1, shared=True)]
    # Nothing is kept: the next one begins anew.
    assert await flights.join("a", work) == FlightResult(2, shared=False)


async def test_other_keys_are_other_work() -> None:
    flights, work = SingleFlight[int](), Work()
    work.may_end.set()
    await asyncio.gather(flights.join("a", work), flights.join("b", work))
    assert work.begun == 2


async def test_a_failure_is_shared_and_not_kept() -> None:
    flights, work = SingleFlight[int](), Work(ConnectionError("away"))
    asking = [asyncio.create_task(flights.join("a", work)) for _ in range(1000)]
    await settle()
    work.may_end.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(result, ConnectionError) for result in results)
    assert work.begun == 1
    with pytest.raises(ConnectionError):
        await flights.join("a", work)
    assert work.begun == 2


async def test_when_the_first_one_is_cancelled_one_other_begins_anew() -> None:
    flights, work = SingleFlight[int](), Work()
    first, *others = [asyncio.create_task(flights.join("a", work)) for _ in range(100)]
    await settle()
    first.cancel()
    await settle()
    assert work.begun == 2
    work.may_end.set()
    assert sum(not landed.shared for landed in await asyncio.gather(*others)) == 1


async def test_a_follower_that_is_cancelled_takes_nobody_along() -> None:
    flights, work = SingleFlight[int](), Work()
    first, second, third = [asyncio.create_task(flights.join("a", work)) for _ in range(3)]
    await settle()
    second.cancel()
    await settle()
    work.may_end.set()
    assert [landed.result for landed in await asyncio.gather(first, third)] == [1, 1]
    assert second.cancelled()


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
    first = asyncio.create_task(loader.get(1))
    await settle()
    # The same one again as well: what is being read may be older than the question.
    others = [asyncio.create_task(loader.get(key)) for key in (1, 2, 3, 2)]
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
    asking = [asyncio.create_task(loader.get(key)) for key in range(5)]
    for _ in range(3):
        reads.may_go_on.release()
    assert await asyncio.gather(*asking) == [0, 2, 4, 6, 8]
    assert reads.asked == [[0, 1], [2, 3], [4]]


async def test_a_read_that_fails_fails_those_who_asked_for_it_and_no_other() -> None:
    reads = Reads(ConnectionError("away"))
    loader = BatchLoader(reads)
    asking = [asyncio.create_task(loader.get(key)) for key in (1, 2)]
    await settle()
    later = asyncio.create_task(loader.get(1))
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
    one, other = (asyncio.create_task(loader.get(7)) for _ in range(2))
    await settle()
    one.cancel()
    reads.may_go_on.release()
    assert await other == 14
    assert one.cancelled()
