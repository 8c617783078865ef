"""Who waits for what consumers keep: they hurry, and say how far they are, also with Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import UUID, uuid4

import pytest

from engine.checkpoints import ReadModelBehind, Waiting
from engine.messages import MessageSource
from engine.subscription import Notifications
from infra.http.shapes import Position
from infra.kafka import Outgoing, Publisher
from infra.postgres.connection import make_pool
from infra.settings.adapters import KafkaSettings
from projections.analytics.queries import COUNTS_CONSUMER, REACHED, VIDEOS_CONSUMER
from tests.integration.analytics_sinks import SourceOf, from_log, keeping, record
from tests.integration.analytics_support import Event
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.relay_support import relayed, relaying
from tests.kafka_cluster import kafka_cluster
from tests.support import DEADLINE_SECONDS
from workers.sources import KafkaSource

# Without the call, a batch would gather for as long.
FLUSH_SECONDS = 600.0
SECONDS = DEADLINE_SECONDS

Case = Callable[[Waiting], Coroutine[None, None, None]]


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def view(video: UUID) -> Event:
    value = {
        "videoId": str(video),
        "userId": "bob",
        "sessionId": str(uuid4()),
        "timestamp": "2026-03-14T15:00:00+00:00",
    }
    return "video.viewed", uuid4(), value


def counted(url: str) -> dict[str, int]:
    query = "SELECT event_type, count(*) FROM analytics.video_analytics GROUP BY 1"
    return dict(rows(url, query))


def counts(events: int, telemetry: int = 0) -> dict[str, Position]:
    return {COUNTS_CONSUMER: Position(events, telemetry)}


@asynccontextmanager
async def background(*jobs: Coroutine[None, None, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def waiting_at(url: str) -> AsyncIterator[Waiting]:
    pool = make_pool(url, max_size=3)
    await pool.open()
    try:
        yield Waiting(pool, query=REACHED)
    finally:
        await pool.close()


def run(
    url: str, case: Case, source_of: SourceOf = from_log, notifications: Notifications | None = None
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            if notifications is not None:
                await stack.enter_async_context(background(notifications.run()))
            await stack.enter_async_context(
                keeping(url, source_of=source_of, flush_seconds=FLUSH_SECONDS)
            )
            await case(await stack.enter_async_context(waiting_at(url)))

    asyncio.run(main())


async def seen(waiting: Waiting, url: str, writer: Writer) -> None:
    """Both a like and a view are counted as soon as somebody waits for them."""
    video = writer.video("alice").id
    for number in (1, 2):
        writer.like(video, f"viewer {number}")
        await waiting.until(counts(writer.head), SECONDS)
        assert counted(url).get("like") == number
        await record(url, [view(video)])
        await waiting.until(counts(writer.head, number), SECONDS)
        assert counted(url) == {"like": number, "view": number}
    # Also where nothing in between was for this consumer.
    writer.comment(uuid4())
    writer.video("alice")
    both = {**counts(writer.head), VIDEOS_CONSUMER: Position(writer.head)}
    await waiting.until(both, SECONDS)


def test_consumers_of_the_log_hurry_for_who_waits(url: str, writer: Writer) -> None:
    async def case(waiting: Waiting) -> None:
        await seen(waiting, url, writer)

    run(url, case)


def test_consumers_of_kafka_say_what_they_have_of_the_log(url: str, writer: Writer) -> None:
    with kafka_cluster() as cluster:
        servers = cluster.bootstrap_servers
        notifications = Notifications(url)

        def source_of(topics: frozenset[str], wake: asyncio.Event) -> MessageSource:
            return KafkaSource(
                topics,
                KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,)),
                batch_messages=500,
                hurried=notifications.hurried(),
            )

        async def case(waiting: Waiting) -> None:
            async with relaying(url, servers):
                await seen(waiting, url, writer)
            # What is not relayed is not here, whatever else lies in the topics.
            behind = relayed(url)["events"]
            writer.like(uuid4(), "eve")
            await publish(servers)
            with pytest.raises(ReadModelBehind) as refused:
                await waiting.until(counts(writer.head), 0.5)
            assert refused.value.positions[COUNTS_CONSUMER].events <= behind < writer.head

        run(url, case, source_of, notifications)


async def publish(servers: str) -> None:
    publisher = Publisher(KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,)))
    await publisher.start()
    await publisher.publish([Outgoing("video.liked", b"key", b"not ours", [])])
    await publisher.stop()


def test_without_consumers_nobody_waits_longer_than_said(url: str, writer: Writer) -> None:
    writer.video("alice")

    async def main() -> None:
        async with waiting_at(url) as waiting:
            with pytest.raises(ReadModelBehind) as refused:
                await waiting.until(counts(writer.head), 0.2)
            assert refused.value.positions == counts(0)

    asyncio.run(main())


def test_before_any_consumer_has_begun_there_is_no_position(database_url: str) -> None:
    async def main() -> None:
        async with waiting_at(database_url) as waiting:
            with pytest.raises(ReadModelBehind):
                await waiting.until(counts(1), 0.2)

    asyncio.run(main())
