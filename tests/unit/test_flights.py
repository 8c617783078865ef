"""Single flight inside one process."""

from __future__ import annotations

import asyncio

import pytest

from infra.cache import FlightResult, SingleFlight

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
