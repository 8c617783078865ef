"""Consumers and sinks as subscriptions, each with its checkpoint in PostgreSQL.

Each message is handled once for all that is known, and none is lost. What can't be read or handled
is a dead letter with its reason, until an operator has it handled after all, or gives it up.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine import checkpoints, dead_letters
from engine.checkpoints import SubscriptionKind
from engine.connections import Backoff, LeaderLock, ThreadedConnection, is_outage
from engine.dead_letters import DeadLetter, RejectedMessage
from engine.installation import ENGINE, migrate
from engine.messages import (
    Consumer,
    DeadMessage,
    GatheredMessages,
    IncomingMessage,
    MessageBatch,
    MessageSource,
    Poison,
    RawMessage,
    Sink,
    Unreadable,
)
from engine.subscription import LOOK_SECONDS, Handler, Place, Source, Subscription
from infra.errors import describe
from infra.metrics import counter, gauge

log = structlog.get_logger(__name__)

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

KEEP_DAYS = 7

KNOWN = b"""
SELECT message_id FROM processed_messages WHERE consumer = %b AND message_id = ANY (%b::uuid[])
"""
HANDLED = b"""
INSERT INTO processed_messages (consumer, message_id) SELECT %b, unnest(%b::uuid[])
ON CONFLICT DO NOTHING
"""
PRUNE = b"DELETE FROM processed_messages WHERE processed_at < now() - make_interval(days => %s)"

Messages = Sequence[IncomingMessage]
DeadMessages = Sequence[DeadMessage]
Write = Callable[[Connection[TupleRow], Messages, DeadMessages], None]
"""Writes down what became of messages: those that were handled, and the dead ones."""


def install(conn: Connection[Any]) -> None:
    """Make the tables where they are missing: also those of a database without the log."""
    migrate(conn, ENGINE)


def settle(
    conn: Connection[TupleRow],
    consumer: str,
    handled: Messages,
    dead: DeadMessages,
    moved: Mapping[Place, int],
) -> None:
    """Write down, in one transaction, what became of a batch, and how far the consumer is now."""
    with conn.transaction():
        if handled:
            ids = [message.id for message in handled]
            conn.execute(HANDLED, (consumer, ids), prepare=True)
        dead_letters.reject(conn, SubscriptionKind.CONSUMER, consumer, map(_rejected, dead))
        checkpoints.set_positions(conn, SubscriptionKind.CONSUMER, consumer, moved)


def _rejected(dead: DeadMessage) -> RejectedMessage:
    raw = dead.raw
    place = (*raw.place, raw.offset, raw.topic)
    return RejectedMessage(*place, dead.reason, dead.id, raw.key, raw.value, raw.headers)


def forget_processed(conn: Connection[Any]) -> int:
    """Drop what was handled longer ago than any message may come again; return how many."""
    return conn.execute(PRUNE, (KEEP_DAYS,)).rowcount


class MessageHandler(Handler[MessageBatch]):
    """What all handlers of messages do: write down what became of them, measure, and redrive.

    A handler is the checkpoint of its subscription, too.
    """

    def __init__(self, name: str, source: MessageSource, hurried: asyncio.Event) -> None:
        """`hurried` is set while a query waits for what the messages lead to."""
        self._name = name
        self._source = source
        self._hurried = hurried
        self._unwritten: dict[Place, int] = {}
        self._places: Mapping[Place, int] = {}

    def prepare(self, conn: Connection[TupleRow]) -> None:
        install(conn)

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        return checkpoints.positions(conn, SubscriptionKind.CONSUMER, self._name)

    @abstractmethod
    async def _work(
        self, conn: ThreadedConnection, received: Messages, dead: DeadMessages, write: Write
    ) -> tuple[Messages, DeadMessages]:
        """Have messages handled and what became of them written; return it, `dead` included."""

    async def start(self, conn: ThreadedConnection) -> None:
        self._unwritten, self._places = {}, {}
        log.info("consumer_active", consumer=self._name, source=self._source.kind)

    async def handle(self, conn: ThreadedConnection, batch: MessageBatch) -> None:
        hurried = self._hurried.is_set()
        self._hurried.clear()
        CONSUMER_LAG.labels(self._name).set(batch.lag + len(batch.received))
        CONSUMER_LAG_SECONDS.labels(self._name).set(batch.lag_seconds)
        if batch.places != self._places:
            self._unwritten |= batch.places
            self._places = batch.places
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
            lambda at, handled, dead: settle(at, self._name, handled, dead, moved),
        )
        self._unwritten = {}
        self._count(handled, dead)

    async def look_aside(self, conn: ThreadedConnection) -> None:
        """Redrive, write down places without messages, and count what is dead."""
        dead, wanted = await conn.do(self._dead_and_wanted)
        if wanted:
            await self._redrive(conn, wanted)
            dead, _ = await conn.do(self._dead_and_wanted)
        CONSUMER_DEAD.labels(self._name).set(dead)
        await self._write_places(conn)

    def _dead_and_wanted(self, conn: Connection[TupleRow]) -> tuple[int, Sequence[DeadLetter]]:
        of = SubscriptionKind.CONSUMER, self._name
        dead = dead_letters.count(conn, *of, dead_letters.MESSAGES)
        return dead, dead_letters.wanted(conn, *of, REDRIVE_MESSAGES)

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
            await conn.do(settle, self._name, (), (), self._unwritten)
            self._unwritten = {}

    async def _redrive(self, conn: ThreadedConnection, wanted: Sequence[DeadLetter]) -> None:
        readable: list[IncomingMessage] = []
        unreadable: list[DeadMessage] = []
        for each in wanted:
            place = each.topic or "", (each.source, each.partition), each.position
            raw = RawMessage(*place, each.key, each.value, each.headers)
            try:
                readable.append(await self._source.reread(raw))
            except Unreadable as error:
                unreadable.append(DeadMessage(raw, str(error)))

        def write(at: Connection[TupleRow], handled: Messages, dead: DeadMessages) -> None:
            # Those that were handled before, however they died, need not stay dead letters either.
            poisonous = {each.id for each in dead if each.id is not None}
            revived = [each for each in readable if each.id not in poisonous]
            with at.transaction():
                settle(at, self._name, revived, dead, {})
                for each in revived:
                    place = *each.raw.place, each.raw.offset
                    dead_letters.revive(at, SubscriptionKind.CONSUMER, self._name, *place)

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

    def __init__(self, consumer: Consumer, source: MessageSource) -> None:
        super().__init__(consumer.name, source, asyncio.Event())
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
        known = await conn.do(self._known, [each.id for each in received])
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

    def _known(self, conn: Connection[TupleRow], ids: list[UUID]) -> set[UUID]:
        """Return which of the messages the consumer has handled before."""
        with conn.cursor(binary=True) as cursor:
            return {id_ for (id_,) in cursor.execute(KNOWN, (self._name, ids), prepare=True)}


class SinkHandler(MessageHandler):
    """Has a sink store rows, in the transaction that moves its checkpoint.

    What comes again after a crash was either stored with the checkpoint, or not at all.
    """

    def __init__(self, sink: Sink, source: MessageSource, hurried: asyncio.Event) -> None:
        super().__init__(sink.name, source, hurried)
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


def subscribe_consumer(
    database_url: str, consumer: Consumer, source: MessageSource, *, poll_seconds: float = 1.0
) -> Subscription[MessageBatch]:
    """Return the subscription of a consumer whose work lies outside of its checkpoint's database.

    `poll_seconds` is how late it may be where a notification was lost.
    """
    handler = ConsumerHandler(consumer, source)
    return _subscribe(database_url, consumer.name, handler, source, poll_seconds)


def subscribe_sink(
    database_url: str,
    sink: Sink,
    source: MessageSource,
    *,
    log_url: str,
    batch_events: int,
    flush_seconds: float,
    poll_seconds: float = 1.0,
    hurried: asyncio.Event | None = None,
) -> Subscription[MessageBatch]:
    """Return the subscription of a sink, whose rows and checkpoint lie in one database.

    A batch ends with `batch_events` messages, or `flush_seconds` after its first one; at once
    while somebody waits for it, which `hurried` tells. `log_url` is where the event log is: it is
    read by a connection of its own, even where both are in one database, while the other stores.
    """
    hurried = hurried or asyncio.Event()
    handler = SinkHandler(sink, source, hurried)
    gathered = GatheredMessages(
        source, batch_events=batch_events, flush_seconds=flush_seconds, hurried=hurried
    )
    return _subscribe(database_url, sink.name, handler, gathered, poll_seconds, log_url)


def _subscribe(
    database_url: str,
    consumer: str,
    handler: MessageHandler,
    source: Source[MessageBatch],
    poll_seconds: float,
    reading_url: str | None = None,
) -> Subscription[MessageBatch]:
    name = f"consumer {consumer}"
    return Subscription(
        database_url,
        name,
        source=source,
        checkpoint=handler,
        handler=handler,
        on_error=handler.failed,
        leader=LeaderLock.of_job(name),
        reading_url=reading_url,
        poll_seconds=min(poll_seconds, LOOK_SECONDS),
    )
