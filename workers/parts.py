"""What one process runs on, and the subscriptions of its consumers and sinks.

Each has its checkpoint in PostgreSQL, beside what it has handled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from engine import checkpoints, dead_letters
from engine.checkpoints import SubscriptionKind
from engine.dead_letters import Rejected
from engine.event_store import GroupCommitRecorder
from engine.leader_lock import LeaderLock
from engine.message_handlers import ConsumerHandler, SinkHandler
from engine.messages import Consumer, Dead, Fetched, Place, Raw, Received, Sink
from engine.migrations import ENGINE, migrate
from engine.notifications import CHANNELS, EVENTS, Notifications
from engine.projection import ReadModels
from engine.projection_subscription import ProjectionHost
from engine.seals.anchors import Proofs
from engine.seals.sealer import Sealer
from engine.sources import BEHIND_EVENTS, Gathered, MessageSource, Prefetch
from engine.subscription import LOOK_SECONDS, Subscription
from infra.http.auth import Authenticator
from infra.objects.port import ObjectStore
from infra.postgres.connection import SHORT_WORK, Limits
from infra.redlock import Redlock
from infra.settings import Settings
from projections.integration_events import TELEMETRY
from projections.like_counters import Counters
from workers.sources import KafkaSource, LogSource, feeds

BATCH_EVENTS = 500
KEEP_DAYS = 7

KNOWN = b"""
SELECT message_id FROM processed_messages WHERE consumer = %b AND message_id = ANY (%b::uuid[])
"""
HANDLED = b"""
INSERT INTO processed_messages (consumer, message_id) SELECT %b, unnest(%b::uuid[])
ON CONFLICT DO NOTHING
"""
PRUNE = b"DELETE FROM processed_messages WHERE processed_at < now() - make_interval(days => %s)"


def forget_processed(conn: Connection[Any]) -> int:
    """Drop what was handled longer ago than any message may come again; return how many."""
    return conn.execute(PRUNE, (KEEP_DAYS,)).rowcount


class ConsumerCheckpoint:
    """How far one consumer is, which messages it has handled, and which of them are dead."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer

    def prepare(self, conn: Connection[TupleRow]) -> None:
        """Make the tables where they are missing: also those of a database without the log."""
        migrate(conn, ENGINE)

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        return checkpoints.positions(conn, SubscriptionKind.CONSUMER, self._consumer)

    def known(self, conn: Connection[TupleRow], ids: Sequence[UUID]) -> set[UUID]:
        with conn.cursor(binary=True) as cursor:
            found = cursor.execute(KNOWN, (self._consumer, list(ids)), prepare=True)
            return {id_ for (id_,) in found}

    def settle(
        self,
        conn: Connection[TupleRow],
        handled: Iterable[Received],
        dead: Iterable[Dead],
        moved: Mapping[Place, int],
    ) -> None:
        with conn.transaction():
            self._write(conn, handled, dead)
            checkpoints.set_positions(conn, SubscriptionKind.CONSUMER, self._consumer, moved)

    def settle_redriven(
        self, conn: Connection[TupleRow], handled: Iterable[Received], dead: Iterable[Dead]
    ) -> None:
        revived = list(handled)
        with conn.transaction():
            self._write(conn, revived, dead)
            for raw in (message.raw for message in revived):
                place = (*raw.place, raw.offset)
                dead_letters.revive(conn, SubscriptionKind.CONSUMER, self._consumer, *place)

    def wanted(self, conn: Connection[TupleRow], limit: int) -> list[Raw]:
        found = dead_letters.wanted(conn, SubscriptionKind.CONSUMER, self._consumer, limit)
        return [
            Raw(
                each.topic or "",
                (each.source, each.partition),
                each.position,
                each.key,
                each.value,
                each.headers,
            )
            for each in found
        ]

    def count_dead(self, conn: Connection[TupleRow]) -> int:
        kinds = SubscriptionKind.CONSUMER, self._consumer, dead_letters.MESSAGES
        return dead_letters.count(conn, *kinds)

    def _write(
        self, conn: Connection[TupleRow], handled: Iterable[Received], dead: Iterable[Dead]
    ) -> None:
        if ids := [message.id for message in handled]:
            conn.execute(HANDLED, (self._consumer, ids), prepare=True)
        rejected = map(_to_rejected, dead)
        dead_letters.reject(conn, SubscriptionKind.CONSUMER, self._consumer, rejected)


def _to_rejected(dead: Dead) -> Rejected:
    raw = dead.raw
    place = (*raw.place, raw.offset, raw.topic)
    return Rejected(*place, dead.reason, dead.id, raw.key, raw.value, raw.headers)


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
) -> Subscription[Fetched]:
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


@dataclass(frozen=True)
class Parts:
    """The running parts of one process."""

    settings: Settings
    database_url: str
    analytics_url: str
    authenticator: Authenticator
    objects: ObjectStore
    recorder: GroupCommitRecorder
    models: ReadModels
    notifications: Notifications
    host: ProjectionHost | None
    redis: Redis
    locks: Redlock
    # Without a Redis that the processes share, counts come from the read model.
    counters: Counters | None
    # What must end before the server waits for its last answers: streams without an end.
    endings: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    # What is closed once nothing uses it any more.
    closings: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    sealer: Sealer | None = None
    proofs: Proofs = field(default_factory=Proofs)
    limits: Limits = SHORT_WORK

    def consume(self, consumer: Consumer) -> Subscription[Fetched]:
        """Return the subscription of a consumer to its topics."""
        source = self._source(consumer, BATCH_EVENTS)
        poll_seconds = self.settings.projections.poll_seconds
        return subscribe_consumer(self.database_url, consumer, source, poll_seconds=poll_seconds)

    def feed(self, sink: Sink, source: MessageSource | None = None) -> Subscription[Fetched]:
        """Return the subscription of a sink to its topics, or to a source of its own."""
        settings = self.settings
        return subscribe_sink(
            self.analytics_url,
            sink,
            source or self._source(sink, BEHIND_EVENTS),
            log_url=self.database_url,
            batch_events=settings.analytics.batch_events,
            flush_seconds=settings.analytics.flush_seconds,
            poll_seconds=settings.projections.poll_seconds,
            hurried=self.notifications.hurried(),
        )

    def _source(self, consumer: Consumer | Sink, at_once: int) -> MessageSource:
        """Return Kafka where it is configured, else the event log itself."""
        kafka = self.settings.kafka
        if kafka.configured:
            hurried = self.notifications.hurried()
            return KafkaSource(consumer.topics, kafka, batch_messages=at_once, hurried=hurried)
        channels = CHANNELS if TELEMETRY.intersection(consumer.topics) else (EVENTS,)
        wake = self.notifications.subscribe(*channels)
        return LogSource(feeds(consumer.topics, batch_events=at_once), wake=wake)
