"""What tests of consumers share: one that writes down what it is given, and where it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol
from uuid import UUID, uuid4

import psycopg

from engine.connections import connect
from engine.messages import Consumer, IncomingMessage, MessageSource, Poison
from engine.subscription import Notifications
from infra import metrics
from infra.kafka import Outgoing, Publisher
from infra.settings.adapters import KafkaSettings
from projections.feeds import feeds
from projections.integration_events import TOPICS as TOPICS_OF_ALL
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.kafka_cluster import kafka_cluster
from tests.support import ended
from workers.consumers import subscribe_consumer
from workers.relay import outgoing
from workers.sources import KafkaSource, LogSource

TOPICS = frozenset(("comment.created", "comment.edited"))
VIDEO = uuid4()


class Tasks:
    """A consumer that starts a task for each comment, breaks on request and tells all."""

    def __init__(self, name: str = "tasks", topics: frozenset[str] = TOPICS) -> None:
        self.name = name
        self.topics = topics
        self.batches: list[list[IncomingMessage]] = []
        self.poison: set[str] = set()
        self.fault: Exception | None = None
        self.faults = 0

    async def handle(self, batch: Sequence[IncomingMessage]) -> None:
        if self.fault is not None:
            self.faults += 1
            raise self.fault
        for message in batch:
            if message.value.get("content") in self.poison:
                raise Poison(message, "it can't be handled")
        self.batches.append(list(batch))

    @property
    def handled(self) -> list[IncomingMessage]:
        return [message for batch in self.batches for message in batch]

    @property
    def contents(self) -> list[str]:
        return [str(message.value["content"]) for message in self.handled]

    @property
    def ids(self) -> list[UUID]:
        return [message.id for message in self.handled]


class Stage(Protocol):
    """One way for messages to come: by the log, or by Kafka."""

    database_url: str
    writer: Writer

    def source(self, topics: frozenset[str], wake: asyncio.Event) -> MessageSource: ...

    async def published(self) -> None:
        """Return when what was written can be consumed."""


class LogStage:
    """The event store itself."""

    def __init__(self, database_url: str, writer: Writer) -> None:
        self.database_url = database_url
        self.writer = writer

    def source(self, topics: frozenset[str], wake: asyncio.Event) -> MessageSource:
        return LogSource(feeds(topics, batch_events=50), wake=wake)

    async def published(self) -> None:
        """What is recorded can be consumed at once."""


class KafkaStage:
    """Kafka, with what is recorded published on demand."""

    def __init__(self, database_url: str, writer: Writer, options: KafkaSettings) -> None:
        self.database_url = database_url
        self.writer = writer
        self.options = options
        self._places: dict[str, int] = {}

    def source(self, topics: frozenset[str], wake: asyncio.Event) -> MessageSource:
        return KafkaSource(topics, self.options, batch_messages=50)

    async def published(self) -> None:
        with connect(self.database_url, "test") as conn:
            for feed in feeds(TOPICS_OF_ALL, batch_events=1000):
                stretch = feed.read(conn, self._places.get(feed.name, 0))
                self._places[feed.name] = stretch.until
                await self.publish([outgoing(message) for message in stretch.messages])

    def forget(self) -> None:
        """Publish everything again, beside what comes anew."""
        self._places.clear()

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        publisher = Publisher(self.options)
        await publisher.start()
        assert await publisher.publish(messages) == []
        await publisher.stop()


@asynccontextmanager
async def consuming(stage: Stage, consumer: Consumer) -> AsyncIterator[None]:
    """The consumer, running as in a process of Backlot; ended as by a cancellation."""
    notifications = Notifications(stage.database_url)
    source = stage.source(consumer.topics, notifications.subscribe())
    runner = subscribe_consumer(stage.database_url, consumer, source, poll_seconds=0.2)
    tasks = [asyncio.create_task(notifications.run()), asyncio.create_task(runner.run())]
    try:
        yield
    finally:
        await ended(*tasks)


def place(database_url: str, consumer: str = "tasks") -> dict[tuple[str, int], int]:
    """How far the consumer is, as it is written down."""
    found = rows(
        database_url,
        "SELECT source, partition, position FROM backlot_checkpoints WHERE subscription = %s",
        [consumer],
    )
    return {(source, partition): position for source, partition, position in found}


def processed(database_url: str, consumer: str = "tasks") -> set[UUID]:
    query = "SELECT message_id FROM processed_messages WHERE consumer = %s"
    return {id_ for (id_,) in rows(database_url, query, [consumer])}


def dead(database_url: str) -> list[tuple[Any, ...]]:
    return rows(
        database_url,
        "SELECT subscription, topic, message_id, error, attempts, status "
        "FROM backlot_dead_letters ORDER BY id",
    )


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scenario()

    asyncio.run(whole())


TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name LIKE 'backlot consumer%%'"
)


@contextmanager
def held(database_url: str, table: str) -> Iterator[None]:
    """Nobody writes to the table meanwhile."""
    with psycopg.connect(database_url) as conn:
        conn.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())
        yield


def waits(database_url: str) -> bool:
    """Whether somebody waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
    return bool(rows(database_url, query + "AND datname = current_database()")[0][0])


def failures(step: str, consumer: str = "tasks") -> float:
    return metrics.value("backlot_consumer_failures_total", consumer=consumer, step=step)


def redrive(database_url: str) -> None:
    """Ask for all that is dead to be handled after all."""
    rows(database_url, "UPDATE backlot_dead_letters SET status = 'redrive' RETURNING 1")


@contextmanager
def open_stage(kind: str, database_url: str, writer: Writer) -> Iterator[Stage]:
    """A stage on the log itself, or on a Kafka cluster of its own."""
    if kind == "log":
        yield LogStage(database_url, writer)
        return
    with kafka_cluster() as cluster:
        servers = KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(cluster.bootstrap_servers,))
        yield KafkaStage(database_url, writer, servers)
