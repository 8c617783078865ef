"""Messages and their consumers: each message is handled once for all that is known, none is lost.

What can't be read or handled is a dead letter with its reason, until an operator has it handled
after all, or gives it up.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import Backoff, ThreadedConnection, is_outage
from engine.subscription import CheckpointReader, Handler, Place, Prefetch, Source
from infra.errors import describe
from infra.metrics import counter, gauge

log = structlog.get_logger(__name__)

# What is taken at once where more waits: a larger batch costs less per message.
BEHIND_EVENTS = 10_000
CONSUMED = counter(
    "backlot_consumer_messages",
    "Messages that a consumer has handled, by topic.",
    ("consumer", "topic"),
)
CONSUMER_LAG = gauge(
    "backlot_consumer_lag_messages",
    "Positions of the log (with Kafka: messages) between its end and the consumer.",
    ("consumer",),
)
CONSUMER_LAG_SECONDS = gauge(
    "backlot_consumer_lag_seconds",
    "Age of the oldest message that the consumer is at; 0 when it is caught up.",
    ("consumer",),
)
CONSUMER_FAILURES = counter(
    "backlot_consumer_failures",
    "Times that a consumer could not go on, and tried again later (source, handler).",
    ("consumer", "step"),
)
CONSUMER_DIED = counter(
    "backlot_consumer_died",
    "Messages that a consumer could not read or handle, and set aside.",
    ("consumer", "topic"),
)
CONSUMER_DEAD = gauge(
    "backlot_consumer_dead", "Messages of the consumer that are set aside.", ("consumer",)
)

REDRIVE_MESSAGES = 100


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
    while `hurried` is set, since a query waits for it.
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

    async def fetch(self, at_most_seconds: float) -> MessageBatch:
        fetched = await super().fetch(at_most_seconds)
        flush_at = time.monotonic() + self._flush_seconds
        while not (fetched.is_empty or self._hurried.is_set()):
            wanted = max(self._batch_events, BEHIND_EVENTS if fetched.lag else 0)
            left = flush_at - time.monotonic()
            if left <= 0 or len(fetched.received) + len(fetched.dead) >= wanted:
                break
            more = await super().fetch(min(left, at_most_seconds))
            fetched = MessageBatch(
                [*fetched.received, *more.received],
                [*fetched.dead, *more.dead],
                {**fetched.places, **more.places},
                more.lag,
                max(fetched.lag_seconds, more.lag_seconds),
            )
        return fetched


Messages = Sequence[IncomingMessage]
DeadMessages = Sequence[DeadMessage]
Write = Callable[[Connection[TupleRow], Messages, DeadMessages], None]
"""Writes down what became of messages: those that were handled, and the dead ones."""


class MessageCheckpoint(CheckpointReader, Protocol):
    """How far one consumer is, which messages it has handled, and which of them are dead."""

    def known(self, conn: Connection[TupleRow], ids: Sequence[UUID]) -> set[UUID]:
        """Return which of the messages were handled before."""

    def settle(
        self,
        conn: Connection[TupleRow],
        handled: Messages,
        dead: DeadMessages,
        moved: Mapping[Place, int],
    ) -> None:
        """Write down, in one transaction, what became of a batch, and how far the consumer is."""

    def settle_redriven(
        self, conn: Connection[TupleRow], handled: Messages, dead: DeadMessages
    ) -> None:
        """Write down, in one transaction, what became of messages that were dead."""

    def wanted(self, conn: Connection[TupleRow], limit: int) -> list[RawMessage]:
        """Return dead messages that an operator wants to have handled after all."""

    def count_dead(self, conn: Connection[TupleRow]) -> int:
        """Return how many messages are dead."""


class MessageHandler(Handler[MessageBatch]):
    """What all handlers of messages do: write down what became of them, measure, and redrive."""

    def __init__(
        self,
        name: str,
        source: MessageSource,
        checkpoint: MessageCheckpoint,
        *,
        hurried: asyncio.Event | None = None,
    ) -> None:
        """`hurried` is set while a query waits for what the messages lead to."""
        self._name = name
        self._source = source
        self._checkpoint = checkpoint
        self._hurried = hurried or asyncio.Event()
        self._unwritten: dict[Place, int] = {}

    @abstractmethod
    async def _work(
        self, conn: ThreadedConnection, received: Messages, dead: DeadMessages, write: Write
    ) -> tuple[Messages, DeadMessages]:
        """Have messages handled and what became of them written; return it, `dead` included."""

    async def start(self, conn: ThreadedConnection) -> None:
        self._unwritten = {}
        log.info("consumer_active", consumer=self._name, source=self._source.kind)

    async def handle(self, conn: ThreadedConnection, batch: MessageBatch) -> None:
        hurried = self._hurried.is_set()
        self._hurried.clear()
        CONSUMER_LAG.labels(self._name).set(batch.lag + len(batch.received))
        CONSUMER_LAG_SECONDS.labels(self._name).set(batch.lag_seconds)
        self._unwritten |= batch.places
        if not batch.is_empty:
            await self._settle(conn, batch)
        CONSUMER_LAG.labels(self._name).set(batch.lag)
        if batch.lag == 0:
            CONSUMER_LAG_SECONDS.labels(self._name).set(0)
        if hurried:
            await self._write_places(conn)

    async def _settle(self, conn: ThreadedConnection, batch: MessageBatch) -> None:
        moved = dict(self._unwritten)
        handled, dead = await self._work(
            conn,
            batch.received,
            batch.dead,
            lambda at, handled, dead: self._checkpoint.settle(at, handled, dead, moved),
        )
        self._unwritten = {}
        self._count(handled, dead)

    async def look_aside(self, conn: ThreadedConnection) -> None:
        """Redrive, write down places without messages, and count what is dead."""
        wanted = await conn.do(self._checkpoint.wanted, REDRIVE_MESSAGES)
        if wanted:
            await self._redrive(conn, wanted)
        CONSUMER_DEAD.labels(self._name).set(await conn.do(self._checkpoint.count_dead))
        await self._write_places(conn)

    async def stop(self) -> None:
        """Withdraw the gauges: the process that is active next sets them."""
        for each in (CONSUMER_LAG, CONSUMER_LAG_SECONDS, CONSUMER_DEAD):
            each.remove(self._name)

    def failed(self, error: Exception, step: str = "source") -> None:
        """Count and log what stopped the consumer, or its handling of a batch."""
        CONSUMER_FAILURES.labels(self._name, step).inc()
        log.warning(
            "consumer_interrupted",
            consumer=self._name,
            step=step,
            error=describe(error),
            exc_info=None if is_outage(error) else error,
        )

    async def _write_places(self, conn: ThreadedConnection) -> None:
        if self._unwritten:
            await conn.do(self._checkpoint.settle, (), (), self._unwritten)
            self._unwritten = {}

    async def _redrive(self, conn: ThreadedConnection, wanted: Sequence[RawMessage]) -> None:
        readable: list[IncomingMessage] = []
        unreadable: list[DeadMessage] = []
        for raw in wanted:
            try:
                readable.append(await self._source.reread(raw))
            except Unreadable as error:
                unreadable.append(DeadMessage(raw, str(error)))

        def write(at: Connection[TupleRow], handled: Messages, dead: DeadMessages) -> None:
            # Those that were handled before, however they died, need not stay dead letters either.
            poisonous = {each.id for each in dead if each.id is not None}
            revived = [each for each in readable if each.id not in poisonous]
            self._checkpoint.settle_redriven(at, revived, dead)

        handled, dead = await self._work(conn, readable, unreadable, write)
        log.info("consumer_redrove", consumer=self._name, handled=len(handled))
        self._count(handled, dead)

    async def _bury(self, dead: DeadMessages) -> None:
        for each in dead:
            log.error(
                "message_dead",
                consumer=self._name,
                topic=each.raw.topic,
                position=each.raw.offset,
                id=str(each.id),
                reason=each.reason,
            )
        if dead:
            await self._source.bury(self._name, dead)

    def _count(self, handled: Messages, dead: DeadMessages) -> None:
        for topic, count in Counter(message.topic for message in handled).items():
            CONSUMED.labels(self._name, topic).inc(count)
        for topic, count in Counter(each.raw.topic for each in dead).items():
            CONSUMER_DIED.labels(self._name, topic).inc(count)


class ConsumerHandler(MessageHandler):
    """Has a consumer act, whose work lies outside of the database of its checkpoint.

    What was handled is written down together with how far the consumer is; a crash before that
    makes the same messages come again.
    """

    def __init__(
        self, consumer: Consumer, source: MessageSource, checkpoint: MessageCheckpoint
    ) -> None:
        super().__init__(consumer.name, source, checkpoint)
        self._consumer = consumer

    async def _work(
        self, conn: ThreadedConnection, received: Messages, dead: DeadMessages, write: Write
    ) -> tuple[Messages, DeadMessages]:
        handled, poison = await self._act(conn, received)
        dead = [*dead, *poison]
        await self._bury(dead)
        await conn.do(write, handled, dead)
        return handled, dead

    async def _act(
        self, conn: ThreadedConnection, received: Messages
    ) -> tuple[Messages, DeadMessages]:
        """Have what is new handled, however long that takes; return it, and what is poison."""
        known = await conn.do(self._checkpoint.known, [each.id for each in received])
        fresh = {each.id: each for each in received if each.id not in known}
        dead: list[DeadMessage] = []
        backoff = Backoff()
        while fresh:
            try:
                await self._consumer.handle(list(fresh.values()))
                break
            except Poison as poison:
                del fresh[poison.message.id]
                dead.append(poison.letter)
            except Exception as error:  # noqa: BLE001 - logged by `failed`, and tried again
                self.failed(error, "handler")
                await asyncio.sleep(backoff.next())
        return list(fresh.values()), dead


class SinkHandler(MessageHandler):
    """Has a sink store rows, in the transaction that moves its checkpoint.

    What comes again after a crash was either stored with the checkpoint, or not at all.
    """

    def __init__(
        self,
        sink: Sink,
        source: MessageSource,
        checkpoint: MessageCheckpoint,
        *,
        hurried: asyncio.Event,
    ) -> None:
        super().__init__(sink.name, source, checkpoint, hurried=hurried)
        self._sink = sink

    async def start(self, conn: ThreadedConnection) -> None:
        await conn.do(self._sink.prepare)
        await super().start(conn)

    async def _work(
        self, conn: ThreadedConnection, received: Messages, dead: DeadMessages, write: Write
    ) -> tuple[Messages, DeadMessages]:
        fresh = {each.id: each for each in received}
        buried = list(dead)
        await self._bury(buried)
        while True:
            try:
                await conn.do(self._store, list(fresh.values()), buried, write)
                break
            except Poison as poison:
                del fresh[poison.message.id]
                found = [poison.letter]
            except (psycopg.DataError, psycopg.IntegrityError):
                found = await self._culprits(conn, fresh)
            CONSUMER_FAILURES.labels(self._name, "handler").inc()
            await self._bury(found)
            buried += found
        await self._sink.stored(conn)
        return list(fresh.values()), buried

    def _store(
        self, conn: Connection[TupleRow], messages: Messages, dead: DeadMessages, write: Write
    ) -> None:
        with conn.transaction():
            self._sink.store(conn, messages)
            # Whether a message is known the rows themselves say.
            write(conn, (), dead)

    async def _culprits(
        self, conn: ThreadedConnection, fresh: dict[UUID, IncomingMessage]
    ) -> list[DeadMessage]:
        """Take out those that the database does not take even alone; raise when there is none."""
        found: list[DeadMessage] = []
        for message in list(fresh.values()):
            try:
                await conn.do(self._try, message)
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                found.append(DeadMessage(message.raw, describe(error), message.id))
                del fresh[message.id]
        if not found:
            raise RuntimeError(f"{self._name}: a batch can't be stored, each of its messages can")
        return found

    def _try(self, conn: Connection[TupleRow], message: IncomingMessage) -> None:
        with conn.transaction(force_rollback=True):
            self._sink.store(conn, [message])
