"""Messages: what a consumer is given, what it may say about it, and where it comes from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import ThreadedConnection
from engine.subscription import Place, Prefetch, Source, happened

log = structlog.get_logger(__name__)

# What is taken at once where more waits: a larger batch costs less per message.
BEHIND_EVENTS = 10_000
# How often messages are looked for that gather anyway: each look costs as much as some messages.
PACE_SECONDS = 0.25


class IncomingMessage(NamedTuple):
    """A message as it is handled; `value` is its JSON, `id` is the same however often it comes.

    `position` counts in the event log (or in the telemetry's order), whatever brought the message.
    """

    id: UUID
    topic: str
    key: str
    value: Mapping[str, Any]
    position: int
    correlation_id: str | None
    # Made when it is asked for: few are ever looked at again.
    came: Callable[[], RawMessage]

    @property
    def raw(self) -> RawMessage:
        """The message as it came, to be read again later."""
        return self.came()


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message before anybody has read it: where it lay, and its bytes.

    Without a value it has to be read again where it lies.
    """

    topic: str
    place: Place
    offset: int
    key: str | None = None
    value: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A message that can't be read, or that its consumer can't handle, and why."""

    raw: RawMessage
    reason: str
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class MessageBatch:
    """What a source has found, and what to write down as read when all of it is dealt with.

    `lag` is how many positions (or messages, with Kafka) lie behind it; `lag_seconds` the age of
    its oldest message.
    """

    received: Sequence[IncomingMessage]
    dead: Sequence[DeadMessage]
    places: Mapping[Place, int]
    lag: int
    lag_seconds: float = 0.0

    @property
    def is_empty(self) -> bool:
        return not self.received and not self.dead


class Poison(Exception):
    """A consumer can't handle a message, and never will; it is set aside with the reason."""

    def __init__(self, message: IncomingMessage, reason: str) -> None:
        super().__init__(reason)
        self.message = message
        self.reason = reason

    @property
    def letter(self) -> DeadMessage:
        return DeadMessage(self.message.raw, self.reason, self.message.id)


class Unreadable(Exception):
    """A message that was to be read again still can't be."""


class Subscriber(Protocol):
    """Whoever gets the messages of topics; `name` is that of its checkpoint, and never changes."""

    @property
    def name(self) -> str: ...

    @property
    def topics(self) -> frozenset[str]: ...


class Consumer(Subscriber, Protocol):
    """What is done about messages.

    `handle` is given messages in order per topic and key (Kafka keeps no order between topics), and
    may be given them again after a crash: what it starts has to be safe to repeat. It raises Poison
    for a message that can't be handled; with anything else it is asked again later, for the whole
    batch.
    """

    async def handle(self, batch: Sequence[IncomingMessage]) -> None: ...


class Sink(Subscriber, Protocol):
    """A consumer whose work is rows, beside which its places lie: both change or neither does.

    `store` runs in the transaction that moves the places, and may be given again what it has
    stored. It raises Poison for a message that can't be stored.
    """

    def prepare(self, conn: Connection[TupleRow]) -> None:
        """Make the tables where they are missing; called each time before it begins."""

    def store(self, conn: Connection[TupleRow], batch: Sequence[IncomingMessage]) -> None: ...

    async def stored(self, conn: ThreadedConnection) -> None:
        """What is to be done once it is committed; a crash may leave it out."""


class MessageSource(Source[MessageBatch], Protocol):
    """Where messages come from; one contract for the event log and for Kafka."""

    @property
    def kind(self) -> str: ...

    async def reread(self, raw: RawMessage) -> IncomingMessage:
        """Return a message that was dead, read again; raise Unreadable."""

    async def bury(self, consumer: str, dead: Sequence[DeadMessage]) -> None:
        """Publish them where the source is; PostgreSQL stores them in any case."""


class GatheredMessages(Prefetch[MessageBatch]):
    """Messages in batches that are worth a transaction, read ahead.

    A batch ends with `batch_events` messages, or `flush_seconds` after its first one; at once
    while `hurried` is set, since a query waits for it. Where no more waits, the source is read
    every PACE_SECONDS at most.
    """

    def __init__(
        self,
        source: Source[MessageBatch],
        *,
        batch_events: int,
        flush_seconds: float,
        hurried: asyncio.Event,
    ) -> None:
        super().__init__(source)
        self._batch_events = batch_events
        self._flush_seconds = flush_seconds
        self._hurried = hurried
        self._next_at = 0.0

    async def fetch(self, at_most_seconds: float) -> MessageBatch:
        fetched = await self._read(at_most_seconds, PACE_SECONDS)
        flush_at = time.monotonic() + self._flush_seconds
        while not (fetched.is_empty or self._hurried.is_set()):
            wanted = max(self._batch_events, BEHIND_EVENTS if fetched.lag else 0)
            left = flush_at - time.monotonic()
            if left <= 0 or len(fetched.received) + len(fetched.dead) >= wanted:
                break
            more = await self._read(min(left, at_most_seconds), left)
            fetched = MessageBatch(
                [*fetched.received, *more.received],
                [*fetched.dead, *more.dead],
                {**fetched.places, **more.places},
                more.lag,
                max(fetched.lag_seconds, more.lag_seconds),
            )
        return fetched

    async def _read(self, at_most_seconds: float, longest_pause: float) -> MessageBatch:
        pause = min(self._next_at - time.monotonic(), longest_pause)
        if pause > 0:
            await happened(self._hurried, pause)
        fetched = await super().fetch(at_most_seconds)
        self._next_at = 0.0 if fetched.lag else time.monotonic() + PACE_SECONDS
        return fetched
