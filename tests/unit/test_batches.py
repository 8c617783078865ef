"""Questions of many callers that are asked as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from infra.batches import Batches
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
