"""Messages straight from the event store: the shape without Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from infra.codec import EventMapper
from infra.integration import Message
from workers import following
from workers.consuming.messages import Dead, Fetched, Place, Raw, Received, Unreadable
from workers.following import Feed, Stretch, feeds
from workers.leading import Lead
from workers.waking import woken

BATCH_EVENTS = 500
# Where many write, what comes within this time shares a batch.
GATHER_SECONDS = 0.02


_Found = tuple[Stretch, Sequence[Received]]
"""A stretch, and what consumers get of it."""


class LogSource:
    """Follows the log, and the telemetry where a topic comes from it, by position."""

    kind = "log"

    def __init__(
        self,
        topics: frozenset[str],
        *,
        wake: asyncio.Event,
        mapper: EventMapper,
        batch_events: int = BATCH_EVENTS,
        following: Sequence[Feed] | None = None,
    ) -> None:
        """`following` is what it reads where that is not what the topics tell."""
        self._feeds = following or feeds(topics, mapper=mapper, batch_events=batch_events)
        self._wake = wake
        self._lead: Lead | None = None
        self._positions: dict[str, int] = {}

    async def start(self, lead: Lead, places: Mapping[Place, int]) -> None:
        self._lead = lead
        self._positions = {feed.name: places.get((feed.name, 0), 0) for feed in self._feeds}
        self._wake.set()

    async def fetch(self, at_most_seconds: float) -> Fetched:
        await woken(self._wake, at_most_seconds)
        found = {feed.name: await self._read(feed) for feed in self._feeds}
        stretches = {name: stretch for name, (stretch, _) in found.items()}
        self._positions |= {name: stretch.until for name, stretch in stretches.items()}
        if any(stretch.until < stretch.head for stretch in stretches.values()):
            self._wake.set()
        else:
            await asyncio.sleep(GATHER_SECONDS)
        return _fetched(stretches, [each for _, told in found.values() for each in told])

    async def reread(self, raw: Raw) -> Received:
        feed = next((feed for feed in self._feeds if feed.name == raw.place[0]), None)
        if feed is None:
            raise Unreadable(f"This consumer does not follow {raw.place[0]}.")
        stretch, found = await self._read_from(feed, raw.offset - 1)
        for message in found:
            if message.position == raw.offset:
                return message
        told = [each.error for each in stretch.unreadable if each.position == raw.offset]
        raise Unreadable(told[0] if told else "It is not there any more.")

    async def bury(self, consumer: str, dead: Sequence[Dead]) -> None:
        """Nobody else watches the log."""

    async def stop(self) -> None:
        self._lead = None

    async def _read(self, feed: Feed) -> _Found:
        return await self._read_from(feed, self._positions[feed.name])

    async def _read_from(self, feed: Feed, after: int) -> _Found:
        if self._lead is None:
            raise RuntimeError("It has not been started.")

        def read(conn: Connection[TupleRow]) -> _Found:
            stretch = feed.read(conn, after)
            # Here, in the thread: thousands of messages would hold up whatever else is served.
            return stretch, [received(feed.name, message) for message in stretch.messages]

        return await self._lead.do(read)


def received(feed: str, message: Message) -> Received:
    """A message as its consumer gets it."""
    return Received(
        message.id,
        message.topic,
        message.key,
        orjson.loads(message.value),
        message.position,
        message.correlation_id,
        partial(_raw, feed, message),
    )


def _raw(feed: str, message: Message) -> Raw:
    headers = {name: value.decode() for name, value in message.headers()}
    return Raw(message.topic, (feed, 0), message.position, message.key, message.value, headers)


def _fetched(found: Mapping[str, Stretch], messages: Sequence[Received]) -> Fetched:
    now = datetime.now(UTC)
    ages = [(now - stretch.oldest).total_seconds() for stretch in found.values() if stretch.oldest]
    return Fetched(
        messages,
        [_dead(name, item) for name, each in found.items() for item in each.unreadable],
        {(name, 0): each.until for name, each in found.items()},
        sum(each.head - each.until for each in found.values()),
        max([0.0, *ages]),
    )


def _dead(feed: str, item: following.UnreadableRecord) -> Dead:
    return Dead(Raw(item.topic, (feed, 0), item.position), item.error)
