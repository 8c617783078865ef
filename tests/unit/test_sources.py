"""How long a source of messages lets them gather before it looks again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import pytest

from engine.connections import ThreadedConnection
from projections.feeds import EventFeed, Stretch
from projections.integration_events import Message
from workers.sources import FeedSource

pytestmark = pytest.mark.anyio
WANTED, UNWANTED = 1.0, 2.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Here:
    """A connection without a thread or a database."""

    async def do(self, work: Any, *args: Any) -> Any:
        return work(self, *args)


class Script:
    """A feed that gives these stretches in turn."""

    name = "events"

    def __init__(self, *stretches: Stretch) -> None:
        self._stretches = list(stretches)

    def read(self, conn: object, after: int) -> Stretch:
        return self._stretches.pop(0)


def message(position: int) -> Message:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    return Message("topic", uuid4(), "key", b"{}", position, at, b"source", None)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []

    async def pause(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("workers.sources.asyncio.sleep", pause)
    return found


async def test_it_looks_later_where_nothing_was_wanted(pauses: list[float]) -> None:
    feed = Script(
        Stretch([message(1)], [], 1, head=9),
        Stretch([message(9)], [], 9, head=9),
        Stretch([], [], 12, head=12),
        Stretch([], [], 12, head=12),
        Stretch([message(13)], [], 13, head=13),
    )
    wake = asyncio.Event()
    source = FeedSource(
        [cast("EventFeed", feed)],
        wake=wake,
        form=lambda _, each: each,
        gather_seconds=WANTED,
        gather_unwanted_seconds=UNWANTED,
    )
    await source.start(cast("ThreadedConnection", Here()), {})
    found = []
    for _ in range(5):
        wake.set()
        before = len(pauses)
        await source.fetch(1.0)
        found.append(pauses[before:])
    # Behind, at the end, with something of others, with nothing at all.
    assert found == [[], [], [WANTED], [UNWANTED], []]
