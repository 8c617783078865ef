"""When messages that gather are read: not more often than it takes, unless somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from engine.connections import ThreadedConnection
from engine.messages import DeadMessage, GatheredMessages, MessageBatch, RawMessage
from engine.subscription import Place, Source
from tests.support import until

pytestmark = pytest.mark.anyio
LONG = 3600.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Messages(Source[MessageBatch]):
    """Gives a message at each read; so many more lie behind the first ones."""

    def __init__(self, *lags: int) -> None:
        self.lags = list(lags)
        self.reads = 0

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        """There is nothing to open."""

    async def fetch(self, at_most_seconds: float) -> MessageBatch:
        self.reads += 1
        raw = RawMessage("topic", ("events", 0), self.reads)
        lag = self.lags.pop(0) if self.lags else 0
        return MessageBatch([], [DeadMessage(raw, "test")], {("events", 0): self.reads}, lag)

    async def stop(self) -> None:
        """There is nothing to close."""


def gathered(source: Messages, hurried: asyncio.Event, batch_events: int = 1) -> GatheredMessages:
    return GatheredMessages(source, batch_events=batch_events, flush_seconds=LONG, hurried=hurried)


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.messages.PACE_SECONDS", LONG)


async def test_the_next_read_waits_until_a_query_does() -> None:
    source, hurried = Messages(), asyncio.Event()
    messages = gathered(source, hurried)
    assert len((await messages.fetch(LONG)).dead) == 1
    reading = asyncio.create_task(messages.fetch(LONG))
    for _ in range(10):
        await asyncio.sleep(0)
    assert source.reads == 1
    hurried.set()
    assert len((await reading).dead) == 1


async def test_a_batch_that_gathers_ends_when_a_query_waits() -> None:
    source, hurried = Messages(), asyncio.Event()
    reading = asyncio.create_task(gathered(source, hurried, batch_events=100).fetch(LONG))
    await until(lambda: source.reads == 1)
    assert not reading.done()
    hurried.set()
    assert len((await reading).dead) == 2


async def test_what_lies_behind_is_read_at_once() -> None:
    source, hurried = Messages(2, 1), asyncio.Event()
    messages = gathered(source, hurried, batch_events=3)
    reading = asyncio.create_task(messages.fetch(LONG))
    await until(lambda: source.reads == 3)
    assert len((await reading).dead) == 3
    await messages.stop()
