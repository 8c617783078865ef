"""What subscriptions follow: the contract of a source, and sources made out of others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import structlog

from engine.connections import ThreadedConnection
from engine.messages import Dead, Fetched, Place, Raw, Received
from engine.notifications import woken
from infra.cancellation import cancel
from infra.errors import describe

log = structlog.get_logger(__name__)

# What is taken at once where more waits: a larger batch costs less per message.
BEHIND_EVENTS = 10_000

B_co = TypeVar("B_co", covariant=True)


class Lagging(Protocol):
    """A batch that says how much lies behind it."""

    @property
    def lag(self) -> int: ...


L = TypeVar("L", bound=Lagging)


class Source(Protocol[B_co]):
    """Where batches come from, in order."""

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        """Begin behind these places; at the beginning where there is none."""

    async def fetch(self, at_most_seconds: float) -> B_co:
        """Return what comes next; empty when nothing came in that time."""

    async def stop(self) -> None:
        """Let go of what `start` opened; safe before it and again."""


class MessageSource(Source[Fetched], Protocol):
    """Where messages come from; one contract for the event log and for Kafka."""

    @property
    def kind(self) -> str: ...

    async def reread(self, raw: Raw) -> Received:
        """Return a message that was dead, read again; raise Unreadable."""

    async def bury(self, consumer: str, dead: Sequence[Dead]) -> None:
        """Publish them where the source is; PostgreSQL stores them in any case."""


class Prefetch(Source[L]):
    """A source that reads on while what it gave is dealt with, wherever more waits.

    The database answers the one and stores the other. Places go with their batch: what was read
    ahead and not yet handed over is in none.
    """

    def __init__(self, source: Source[L]) -> None:
        self._source = source
        self._next: asyncio.Task[L] | None = None

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        await self._source.start(conn, places)

    async def fetch(self, at_most_seconds: float) -> L:
        reading, self._next = self._next, None
        fetched = await (reading or self._source.fetch(at_most_seconds))
        if fetched.lag:
            self._next = asyncio.create_task(self._source.fetch(at_most_seconds))
        return fetched

    async def stop(self) -> None:
        """Forget what was read ahead: the next start begins behind the checkpoint."""
        reading, self._next = self._next, None
        if reading is not None:
            await cancel(reading)
            ended = reading.done() and not reading.cancelled()
            error = reading.exception() if ended else None
            if isinstance(error, Exception):
                log.info("read_ahead_failed", error=describe(error))
        await self._source.stop()


class Wakeups:
    """A source that only says when to look; its handler finds out by itself what there is."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._wake = wake

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        """Look at once: something may have happened before."""
        self._wake.set()

    async def fetch(self, at_most_seconds: float) -> None:
        await woken(self._wake, at_most_seconds)

    async def stop(self) -> None:
        """It holds nothing."""


class Gathered:
    """Messages in batches that are worth a transaction.

    A batch ends with `batch_events` messages, or `flush_seconds` after its first one; at once
    while `hurried` is set, since a query waits for it.
    """

    def __init__(
        self,
        source: Source[Fetched],
        *,
        batch_events: int,
        flush_seconds: float,
        hurried: asyncio.Event,
    ) -> None:
        self._source = source
        self._batch_events = batch_events
        self._flush_seconds = flush_seconds
        self._hurried = hurried

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        await self._source.start(conn, places)

    async def fetch(self, at_most_seconds: float) -> Fetched:
        fetched = await self._source.fetch(at_most_seconds)
        flush_at = time.monotonic() + self._flush_seconds
        while not (fetched.is_empty or self._hurried.is_set()):
            wanted = max(self._batch_events, BEHIND_EVENTS if fetched.lag else 0)
            left = flush_at - time.monotonic()
            if left <= 0 or len(fetched.received) + len(fetched.dead) >= wanted:
                break
            fetched = joined(fetched, await self._source.fetch(min(left, at_most_seconds)))
        return fetched

    async def stop(self) -> None:
        await self._source.stop()


def joined(one: Fetched, more: Fetched) -> Fetched:
    """Return two batches, the second behind the first, as one."""
    places: dict[Place, int] = {**one.places, **more.places}
    return Fetched(
        [*one.received, *more.received],
        [*one.dead, *more.dead],
        places,
        more.lag,
        max(one.lag_seconds, more.lag_seconds),
    )
