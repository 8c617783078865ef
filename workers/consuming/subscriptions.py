"""Consumers and keepers as subscriptions: each with its checkpoint in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.leader_lock import LeaderLock
from engine.message_handlers import ConsumerHandler, KeeperHandler
from engine.messages import Consumer, Dead, Fetched, Keeper, Place, Raw, Received
from engine.sources import Gathered, MessageSource, Prefetch
from engine.subscription import LOOK_SECONDS, Subscription
from workers.consuming import ledger


class ConsumerCheckpoint:
    """The rows of one consumer in the ledger of all."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer

    def prepare(self, conn: Connection[TupleRow]) -> None:
        ledger.install(conn)

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        return ledger.places(conn, self._consumer)

    def known(self, conn: Connection[TupleRow], ids: Sequence[UUID]) -> set[UUID]:
        return ledger.known(conn, self._consumer, ids)

    def settle(
        self,
        conn: Connection[TupleRow],
        handled: Iterable[Received],
        dead: Iterable[Dead],
        moved: Mapping[Place, int],
    ) -> None:
        ledger.settle(conn, self._consumer, handled, dead, moved)

    def settle_redriven(
        self, conn: Connection[TupleRow], handled: Iterable[Received], dead: Iterable[Dead]
    ) -> None:
        ledger.settle_redriven(conn, self._consumer, handled, dead)

    def wanted(self, conn: Connection[TupleRow], limit: int) -> list[Raw]:
        return ledger.wanted(conn, self._consumer, limit)

    def count_dead(self, conn: Connection[TupleRow]) -> int:
        return ledger.count_dead(conn, self._consumer)


def subscribe_consumer(
    database_url: str, consumer: Consumer, source: MessageSource, *, poll_seconds: float = 1.0
) -> Subscription[Fetched]:
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


def subscribe_keeper(
    database_url: str,
    keeper: Keeper,
    source: MessageSource,
    *,
    log_url: str,
    batch_events: int,
    flush_seconds: float,
    poll_seconds: float = 1.0,
    hurried: asyncio.Event | None = None,
) -> Subscription[Fetched]:
    """Return the subscription of a keeper, whose rows and checkpoint lie in one database.

    A batch ends with `batch_events` messages, or `flush_seconds` after its first one; at once
    while somebody waits for it, which `hurried` tells. `log_url` is where the event log is: it is
    read by a connection of its own, even where both are in one database, while the other stores.
    """
    hurried = hurried or asyncio.Event()
    checkpoint = ConsumerCheckpoint(keeper.name)
    handler = KeeperHandler(keeper, source, checkpoint, hurried=hurried)
    name = f"consumer {keeper.name}"
    return Subscription(
        database_url,
        name,
        source=Gathered(
            Prefetch(source),
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
