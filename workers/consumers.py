"""Consumers and sinks as subscriptions: each with its checkpoint in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from engine import checkpoints, dead_letters
from engine.checkpoints import SubscriptionKind
from engine.connections import LeaderLock
from engine.dead_letters import RejectedMessage
from engine.installation import ENGINE, migrate
from engine.messages import (
    Consumer,
    ConsumerHandler,
    DeadMessage,
    GatheredMessages,
    IncomingMessage,
    MessageBatch,
    MessageSource,
    RawMessage,
    Sink,
    SinkHandler,
)
from engine.subscription import LOOK_SECONDS, Place, Subscription

KEEP_DAYS = 7

KNOWN = b"""
SELECT message_id FROM processed_messages WHERE consumer = %b AND message_id = ANY (%b::uuid[])
"""
HANDLED = b"""
INSERT INTO processed_messages (consumer, message_id) SELECT %b, unnest(%b::uuid[])
ON CONFLICT DO NOTHING
"""
PRUNE = b"DELETE FROM processed_messages WHERE processed_at < now() - make_interval(days => %s)"


def install(conn: Connection[Any]) -> None:
    """Make the tables where they are missing: also those of a database without the log."""
    migrate(conn, ENGINE)


def places(conn: Connection[TupleRow], consumer: str) -> dict[Place, int]:
    """Return how far the consumer is in each source."""
    return checkpoints.positions(conn, SubscriptionKind.CONSUMER, consumer)


def known(conn: Connection[TupleRow], consumer: str, ids: Sequence[UUID]) -> set[UUID]:
    """Which of the messages the consumer has handled before."""
    with conn.cursor(binary=True) as cursor:
        return {id_ for (id_,) in cursor.execute(KNOWN, (consumer, list(ids)), prepare=True)}


def settle(
    conn: Connection[TupleRow],
    consumer: str,
    handled: Iterable[IncomingMessage],
    dead: Iterable[DeadMessage],
    moved: Mapping[Place, int],
) -> None:
    """Write down, in one transaction, what became of a batch, and how far the consumer is now."""
    with conn.transaction():
        _write(conn, consumer, handled, dead)
        checkpoints.set_positions(conn, SubscriptionKind.CONSUMER, consumer, moved)


def settle_redriven(
    conn: Connection[TupleRow],
    consumer: str,
    handled: Iterable[IncomingMessage],
    dead: Iterable[DeadMessage],
) -> None:
    """Write down, in one transaction, what became of messages that were dead."""
    revived = list(handled)
    with conn.transaction():
        _write(conn, consumer, revived, dead)
        for message in revived:
            raw = message.raw
            dead_letters.revive(conn, SubscriptionKind.CONSUMER, consumer, *raw.place, raw.offset)


def _write(
    conn: Connection[TupleRow],
    consumer: str,
    handled: Iterable[IncomingMessage],
    dead: Iterable[DeadMessage],
) -> None:
    ids = [message.id for message in handled]
    if ids:
        conn.execute(HANDLED, (consumer, ids), prepare=True)
    dead_letters.reject(conn, SubscriptionKind.CONSUMER, consumer, map(_rejected, dead))


def _rejected(dead: DeadMessage) -> RejectedMessage:
    raw = dead.raw
    place = (*raw.place, raw.offset, raw.topic)
    return RejectedMessage(*place, dead.reason, dead.id, raw.key, raw.value, raw.headers)


def wanted(conn: Connection[TupleRow], consumer: str, limit: int) -> list[RawMessage]:
    """Dead messages of the consumer that somebody wants to have handled after all."""
    found = dead_letters.wanted(conn, SubscriptionKind.CONSUMER, consumer, limit)
    return [
        RawMessage(
            each.topic or "",
            (each.source, each.partition),
            each.position,
            each.key,
            each.value,
            each.headers,
        )
        for each in found
    ]


def count_dead(conn: Connection[TupleRow], consumer: str) -> int:
    """Return how many messages of the consumer are dead."""
    return dead_letters.count(conn, SubscriptionKind.CONSUMER, consumer, dead_letters.MESSAGES)


def forget_processed(conn: Connection[Any], older_than_days: int = KEEP_DAYS) -> int:
    """Drop what was handled longer ago than any message may come again; returns how many."""
    return conn.execute(PRUNE, (older_than_days,)).rowcount


class ConsumerCheckpoint:
    """The rows of one consumer in the ledger of all."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer

    def prepare(self, conn: Connection[TupleRow]) -> None:
        install(conn)

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        return places(conn, self._consumer)

    def known(self, conn: Connection[TupleRow], ids: Sequence[UUID]) -> set[UUID]:
        return known(conn, self._consumer, ids)

    def settle(
        self,
        conn: Connection[TupleRow],
        handled: Iterable[IncomingMessage],
        dead: Iterable[DeadMessage],
        moved: Mapping[Place, int],
    ) -> None:
        settle(conn, self._consumer, handled, dead, moved)

    def settle_redriven(
        self,
        conn: Connection[TupleRow],
        handled: Iterable[IncomingMessage],
        dead: Iterable[DeadMessage],
    ) -> None:
        settle_redriven(conn, self._consumer, handled, dead)

    def wanted(self, conn: Connection[TupleRow], limit: int) -> list[RawMessage]:
        return wanted(conn, self._consumer, limit)

    def count_dead(self, conn: Connection[TupleRow]) -> int:
        return count_dead(conn, self._consumer)


def subscribe_consumer(
    database_url: str, consumer: Consumer, source: MessageSource, *, poll_seconds: float = 1.0
) -> Subscription[MessageBatch]:
    """Return the subscription of a consumer whose work lies outside of its checkpoint's database.

    `poll_seconds` is how late it may be where a notification was lost.
    """
    checkpoint = ConsumerCheckpoint(consumer.name)
    handler = ConsumerHandler(consumer, source, checkpoint)
    name = f"consumer {consumer.name}"
    return Subscription(
        database_url,
        name,
        source=source,
        checkpoint=checkpoint,
        handler=handler,
        on_error=handler.failed,
        leader=LeaderLock.of_job(name),
        poll_seconds=min(poll_seconds, LOOK_SECONDS),
    )


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
    checkpoint = ConsumerCheckpoint(sink.name)
    handler = SinkHandler(sink, source, checkpoint, hurried=hurried)
    name = f"consumer {sink.name}"
    return Subscription(
        database_url,
        name,
        source=GatheredMessages(
            source,
            batch_events=batch_events,
            flush_seconds=flush_seconds,
            hurried=hurried,
        ),
        checkpoint=checkpoint,
        handler=handler,
        on_error=handler.failed,
        leader=LeaderLock.of_job(name),
        reading_url=log_url,
        poll_seconds=min(poll_seconds, LOOK_SECONDS),
    )
