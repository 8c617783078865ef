"""A source that reads on while what it gave is dealt with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from engine.connections import ThreadedConnection
from engine.messages import DeadMessage, IncomingMessage, MessageBatch, RawMessage
from engine.subscription import Place, Prefetch
from tests.support import DEADLINE_SECONDS

PLACE = ("telemetry", 0)


class Counting:
    """A source of stretches that only move its place; it ends at `head`, and fails at `bad`."""

    kind = "counting"

    def __init__(self, head: int, bad: int | None = None) -> None:
        self.head = head
        self.bad = bad
        self.at = 0
        self.stopped = False

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        self.at = places.get(PLACE, 0)

    async def fetch(self, at_most_seconds: float) -> MessageBatch:
        if self.at == self.head:
            await asyncio.sleep(at_most_seconds)
        if self.at + 1 == self.bad:
            raise OSError("away")
        self.at = min(self.at + 1, self.head)
        return MessageBatch((), (), {PLACE: self.at}, self.head - self.at)

    async def reread(self, raw: RawMessage) -> IncomingMessage:
        raise NotImplementedError

    async def bury(self, consumer: str, dead: Sequence[DeadMessage]) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self.stopped = True


async def started(
    source: Counting, places: Mapping[Place, int] | None = None
) -> Prefetch[MessageBatch]:
    ahead = Prefetch(source)
    # What it reads with is the source's affair.
    await ahead.start(cast("ThreadedConnection", None), places or {})
    return ahead


async def rest() -> None:
    """Time for what goes on beside the test."""
    for _ in range(3):
        await asyncio.sleep(0)


async def read(ahead: Prefetch[MessageBatch]) -> int:
    return (await ahead.fetch(60.0)).places[PLACE]


def test_it_is_one_stretch_ahead_while_more_waits() -> None:
    async def scenario() -> None:
        source = Counting(3)
        ahead = await started(source)
        assert await read(ahead) == 1
        await rest()
        assert source.at == 2
        assert [await read(ahead), await read(ahead)] == [2, 3]
        await ahead.stop()

    asyncio.run(scenario())


def test_at_the_end_nothing_is_read_that_was_not_asked_for() -> None:
    async def scenario() -> None:
        source = Counting(1)
        ahead = await started(source)
        assert await read(ahead) == 1
        source.head = 2
        await rest()
        assert source.at == 1
        await ahead.stop()

    asyncio.run(scenario())


def test_what_was_read_ahead_is_forgotten_at_the_stop() -> None:
    async def scenario() -> None:
        source = Counting(5)
        ahead = await started(source)
        assert await read(ahead) == 1
        await rest()
        await ahead.stop()
        assert source.stopped
        # Nothing of it was stored.
        await ahead.start(cast("ThreadedConnection", None), {})
        assert await read(ahead) == 1
        await ahead.stop()

    asyncio.run(scenario())


def test_a_failure_ahead_shows_behind_what_was_read_before_it() -> None:
    async def scenario() -> None:
        ahead = await started(Counting(5, bad=2))
        assert await read(ahead) == 1
        await rest()
        with pytest.raises(OSError, match="away"):
            await read(ahead)
        await ahead.stop()

    asyncio.run(scenario())


def test_a_failure_that_nobody_waited_for_does_not_hold_up_the_stop() -> None:
    async def scenario() -> None:
        source = Counting(5, bad=2)
        ahead = await started(source)
        assert await read(ahead) == 1
        await rest()
        await ahead.stop()
        assert source.stopped

    asyncio.run(scenario())


def test_it_stops_in_the_middle_of_reading() -> None:
    async def scenario() -> None:
        source = Counting(2)
        ahead = await started(source)
        assert await read(ahead) == 1
        source.at = source.head
        await rest()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await ahead.stop()
        assert source.stopped

    asyncio.run(scenario())
