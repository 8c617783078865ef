"""What a consumer is given, what it may say about it, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import ThreadedConnection

Place = tuple[str, int]
"""A source and its partition: `("events", 0)`, or a topic of Kafka and its partition."""


class Received(NamedTuple):
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
    came: Callable[[], Raw]

    @property
    def raw(self) -> Raw:
        """The message as it came, to be read again later."""
        return self.came()


@dataclass(frozen=True, slots=True)
class Raw:
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
class Dead:
    """A message that can't be read, or that its consumer can't handle, and why."""

    raw: Raw
    reason: str
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source has found, and what to write down as read when all of it is dealt with.

    `lag` is how many positions (or messages, with Kafka) lie behind it; `lag_seconds` the age of
    its oldest message.
    """

    received: Sequence[Received]
    dead: Sequence[Dead]
    places: Mapping[Place, int]
    lag: int
    lag_seconds: float = 0.0

    @property
    def is_empty(self) -> bool:
        return not self.received and not self.dead


class Poison(Exception):
    """A consumer can't handle a message, and never will; it is set aside with the reason."""

    def __init__(self, message: Received, reason: str) -> None:
        super().__init__(reason)
        self.message = message
        self.reason = reason


class Unreadable(Exception):
    """A message that was to be read again still can't be."""


class Consumer(Protocol):
    """What is done about messages; `name` is that of its checkpoint and must never change.

    `handle` is given messages in order per topic and key (Kafka keeps no order between topics), and
    may be given them again after a crash: what it starts has to be safe to repeat. It raises Poison
    for a message that can't be handled; with anything else it is asked again later, for the whole
    batch.
    """

    @property
    def name(self) -> str: ...

    @property
    def topics(self) -> frozenset[str]: ...

    async def handle(self, batch: Sequence[Received]) -> None: ...


class Sink(Protocol):
    """A consumer whose work is rows, beside which its places lie: both change or neither does.

    `store` runs in the transaction that moves the places, and may be given again what it has
    stored. It raises Poison for a message that can't be stored.
    """

    @property
    def name(self) -> str: ...

    @property
    def topics(self) -> frozenset[str]: ...

    def prepare(self, conn: Connection[TupleRow]) -> None:
        """Make the tables where they are missing; called each time before it begins."""

    def store(self, conn: Connection[TupleRow], batch: Sequence[Received]) -> None: ...

    async def stored(self, conn: ThreadedConnection) -> None:
        """What is to be done once it is committed; a crash may leave it out."""
