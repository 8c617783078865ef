"""What was recorded as messages, stretch by stretch: from the event log and from the telemetry.

Both are read in the order in which they become visible, so that a position that was passed is
complete, and who follows needs to keep nothing but it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Generic, Protocol, TypeVar

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_loads

from domain.model import Aggregate
from engine.connections import ThreadedConnection
from engine.event_store import EVENTS
from engine.log import Log
from engine.messages import DeadMessage, IncomingMessage, MessageBatch, RawMessage, Unreadable
from engine.subscription import Place, woken
from engine.telemetry import TelemetryEvent
from projections.integration_events import (
    TELEMETRY,
    Message,
    NotPublishable,
    events_for,
    from_event,
    from_telemetry,
)

EVENTS_HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()
TELEMETRY_HEAD = b"SELECT coalesce(max(seq), 0) FROM public.backlot_telemetry"
READ_TELEMETRY = b"""
SELECT seq, event_id, topic, video_id, user_id, happened_at, details, correlation_id
FROM public.backlot_telemetry WHERE seq > %b AND seq <= %b AND topic = ANY (%b::text[])
ORDER BY seq LIMIT %b
"""


# Where many write, what comes within this time shares a batch.
GATHER_SECONDS = 0.02

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Unpublishable:
    """Something recorded that makes no message, with what is wrong with it."""

    topic: str
    position: int
    error: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """What lies behind a position, up to `until`; `head` is the end as it was seen before."""

    messages: Sequence[Message]
    unreadable: Sequence[Unpublishable]
    until: int
    head: int

    @property
    def oldest(self) -> datetime | None:
        """When the first of it was recorded."""
        return self.messages[0].at if self.messages else None


class Feed(Protocol):
    """Something recorded in order, told as messages."""

    name: str

    def read(self, conn: Connection[TupleRow], after: int) -> Stretch:
        """The next stretch, bounded in events and bytes; empty at the end."""


class EventFeed:
    """Some events of the log, told as they are published or as `tell` does."""

    name = "events"

    def __init__(
        self,
        events: Iterable[type[Aggregate.Event]],
        *,
        batch_events: int,
        tell: Callable[[int, Aggregate.Event], Message] = from_event,
    ) -> None:
        self._log = Log(events, batch_events=batch_events)
        self._tell = tell

    def read(self, conn: Connection[TupleRow], after: int) -> Stretch:
        head = _head(conn, EVENTS_HEAD)
        if head <= after:
            return Stretch((), (), after, head)
        window = self._log.read(conn, after, head)
        messages: list[Message] = []
        unreadable: list[Unpublishable] = []
        for stored in window.events:
            try:
                messages.append(self._tell(*stored.decode()))
            except (MapperDeserialisationError, NotPublishable) as error:
                unreadable.append(Unpublishable(stored.topic, stored.position, str(error)))
        return Stretch(messages, unreadable, window.until, head)


class TelemetryFeed:
    """What viewers do beside deciding, of some of the topics."""

    name = "telemetry"

    def __init__(self, topics: Collection[str], *, batch_events: int) -> None:
        self._topics = sorted(TELEMETRY.intersection(topics))
        self._batch_events = batch_events

    def read(self, conn: Connection[TupleRow], after: int) -> Stretch:
        head = _head(conn, TELEMETRY_HEAD)
        if head <= after:
            return Stretch((), (), after, head)
        limits = (after, head, self._topics, self._batch_events)
        with conn.cursor(binary=True) as cursor:
            set_json_loads(orjson.loads, cursor)
            rows = cursor.execute(READ_TELEMETRY, limits, prepare=True).fetchall()
        messages: list[Message] = []
        unreadable: list[Unpublishable] = []
        for seq, *fields in rows:
            event = TelemetryEvent(*fields)
            try:
                messages.append(from_telemetry(seq, event))
            except NotPublishable as error:
                unreadable.append(Unpublishable(event.topic, seq, str(error)))
        until = rows[-1][0] if len(rows) >= self._batch_events else head
        return Stretch(messages, unreadable, until, head)


@dataclass(frozen=True, slots=True)
class FeedMessages(Generic[M]):
    """A stretch of a feed, and its messages as somebody wants them."""

    stretch: Stretch
    messages: Sequence[M]

    @property
    def unreadable(self) -> Sequence[Unpublishable]:
        return self.stretch.unreadable

    @property
    def until(self) -> int:
        return self.stretch.until


@dataclass(frozen=True, slots=True)
class FeedBatch(Generic[M]):
    """What lay behind the positions in each feed."""

    by_feed: Mapping[str, FeedMessages[M]]

    @property
    def lag(self) -> int:
        """How many positions lie behind it."""
        return sum(each.stretch.head - each.until for each in self.by_feed.values())


class FeedSource(Generic[M]):
    """Follows feeds side by side, by position; `tell` makes of their messages what is wanted."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        *,
        wake: asyncio.Event,
        tell: Callable[[str, Message], M],
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._feeds = {feed.name: feed for feed in feeds}
        self._wake = wake
        self._tell = tell
        self._gather_seconds = gather_seconds
        self._gathers = False
        self._conn: ThreadedConnection | None = None
        self._positions: dict[str, int] = {}

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        self._conn = conn
        self._positions = {name: places.get((name, 0), 0) for name in self._feeds}
        self._gathers = False
        self._wake.set()

    async def fetch(self, at_most_seconds: float) -> FeedBatch[M]:
        if self._gathers:
            await asyncio.sleep(self._gather_seconds)
        await woken(self._wake, at_most_seconds)
        batch = await self._started().do(self._read_all, dict(self._positions))
        reached = {name: each.until for name, each in batch.by_feed.items()}
        self._gathers = batch.lag == 0 and reached != self._positions
        self._positions = reached
        if batch.lag:
            self._wake.set()
        return batch

    async def read(self, feed: str, after: int) -> FeedMessages[M] | None:
        """Return what lies behind a position of a feed; None where that is not followed."""
        if feed not in self._feeds:
            return None
        return await self._started().do(self._read, self._feeds[feed], after)

    async def stop(self) -> None:
        self._conn = None

    def _started(self) -> ThreadedConnection:
        if self._conn is None:
            raise RuntimeError("The source was not started.")
        return self._conn

    def _read_all(self, conn: Connection[TupleRow], positions: Mapping[str, int]) -> FeedBatch[M]:
        read = {name: self._read(conn, self._feeds[name], at) for name, at in positions.items()}
        return FeedBatch(read)

    def _read(self, conn: Connection[TupleRow], feed: Feed, after: int) -> FeedMessages[M]:
        stretch = feed.read(conn, after)
        # Here, in the thread: thousands of messages would hold up whatever else is served.
        return FeedMessages(
            stretch, [self._tell(feed.name, message) for message in stretch.messages]
        )


def feeds(topics: Collection[str], *, batch_events: int) -> list[Feed]:
    """What has to be followed for all these topics."""
    found: list[Feed] = []
    if events := events_for(topics):
        found.append(EventFeed(events, batch_events=batch_events))
    if TELEMETRY.intersection(topics):
        found.append(TelemetryFeed(topics, batch_events=batch_events))
    return found


def _head(conn: Connection[TupleRow], query: bytes) -> int:
    row = conn.execute(query, prepare=True).fetchone()
    return int(row[0]) if row else 0


BATCH_EVENTS = 500


class LogSource:
    """Follows the log, and the telemetry where a topic comes from it, by position."""

    kind = "log"

    def __init__(
        self,
        topics: frozenset[str],
        *,
        wake: asyncio.Event,
        batch_events: int = BATCH_EVENTS,
        following: Sequence[Feed] | None = None,
    ) -> None:
        """`following` is what it reads where that is not what the topics tell."""
        of_topics = following or feeds(topics, batch_events=batch_events)
        self._feeds = FeedSource(of_topics, wake=wake, tell=received)

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        await self._feeds.start(conn, places)

    async def fetch(self, at_most_seconds: float) -> MessageBatch:
        found = await self._feeds.fetch(at_most_seconds)
        return MessageBatch(
            [message for each in found.by_feed.values() for message in each.messages],
            [_dead(name, item) for name, each in found.by_feed.items() for item in each.unreadable],
            {(name, 0): each.until for name, each in found.by_feed.items()},
            found.lag,
            max([0.0, *map(_age, found.by_feed.values())]),
        )

    async def reread(self, raw: RawMessage) -> IncomingMessage:
        found = await self._feeds.read(raw.place[0], raw.offset - 1)
        if found is None:
            raise Unreadable(f"This consumer does not follow {raw.place[0]}.")
        for message in found.messages:
            if message.position == raw.offset:
                return message
        told = [each.error for each in found.unreadable if each.position == raw.offset]
        raise Unreadable(told[0] if told else "It is not there any more.")

    async def bury(self, consumer: str, dead: Sequence[DeadMessage]) -> None:
        """Nobody else watches the log."""

    async def stop(self) -> None:
        await self._feeds.stop()


def received(feed: str, message: Message) -> IncomingMessage:
    """A message as its consumer gets it."""
    return IncomingMessage(
        message.id,
        message.topic,
        message.key,
        orjson.loads(message.value),
        message.position,
        message.correlation_id,
        partial(_raw, feed, message),
    )


def _raw(feed: str, message: Message) -> RawMessage:
    headers = {name: value.decode() for name, value in message.headers()}
    return RawMessage(
        message.topic, (feed, 0), message.position, message.key, message.value, headers
    )


def _age(found: FeedMessages[IncomingMessage]) -> float:
    oldest = found.stretch.oldest
    return (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0


def _dead(feed: str, item: Unpublishable) -> DeadMessage:
    return DeadMessage(RawMessage(item.topic, (feed, 0), item.position), item.error)
