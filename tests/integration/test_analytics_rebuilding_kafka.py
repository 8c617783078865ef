"""Where Kafka brings the events, what is on its way is waited for, and is not missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from threading import Event
from uuid import UUID

import psycopg
import pytest

from engine.connections import connect
from engine.replay.records import tell_nobody
from infra.settings.adapters import KafkaSettings
from projections.analytics.rebuild import AnalyticsMeans, NotTakenIn, Rebuild
from tests.integration.analytics_sinks import keeping
from tests.integration.analytics_support import RULES
from tests.integration.consuming_support import KafkaStage
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.rebuilding_support import counts
from tests.integration.relay_support import relaying
from tests.kafka_cluster import kafka_cluster
from tests.support import until

ROWS = "SELECT count(*) FROM analytics.video_analytics"
ONE_LESS = """
DELETE FROM analytics.video_analytics
WHERE event_id = (SELECT event_id FROM analytics.video_analytics LIMIT 1) RETURNING 1
"""
Servers = str


@pytest.fixture
def servers() -> Iterator[Servers]:
    with kafka_cluster() as cluster:
        yield cluster.bootstrap_servers


@pytest.fixture
def liked(database_url: str, writer: Writer) -> UUID:
    """A video with three likes, of which nothing was published yet."""
    video = writer.video().id
    writer.like(video, "ann", "bob", "eve")
    return video


def verify(url: str, arrival_seconds: float = 20.0) -> dict[str, tuple[int, int, int]]:
    means = AnalyticsMeans(url, RULES, arrival_seconds=arrival_seconds, settle_seconds=3.0)
    with closing(connect(url, "test")) as log_conn, closing(connect(url, "test")) as conn:
        rebuild = Rebuild(log_conn, conn, means, report=tell_nobody, stopping=Event())
        return counts(rebuild.compare())


def run(
    url: str,
    servers: Servers,
    writer: Writer,
    scenario: Callable[[], Awaitable[None]],
    *,
    flush_seconds: float = 0.05,
) -> None:
    """With a relay and sinks, once the likes were taken in."""
    source = KafkaStage(url, writer, KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,))).source

    async def all_of_it() -> None:
        async with (
            relaying(url, servers),
            keeping(url, source_of=source, flush_seconds=flush_seconds),
        ):
            await until(lambda: taken_in(url, 3))
            await scenario()

    asyncio.run(all_of_it())


def taken_in(url: str, number: int) -> bool:
    try:
        return rows(url, ROWS) == [(number,)]
    except psycopg.errors.UndefinedTable:
        return False


@pytest.mark.usefixtures("liked")
def test_what_is_missing_is_named(database_url: str, servers: Servers, writer: Writer) -> None:
    async def scenario() -> None:
        assert await asyncio.to_thread(verify, database_url) == {}
        assert rows(database_url, ONE_LESS)
        assert await asyncio.to_thread(verify, database_url) == {"video_analytics": (1, 0, 0)}

    run(database_url, servers, writer, scenario)


def test_what_is_on_its_way_is_waited_for(
    database_url: str, servers: Servers, writer: Writer, liked: UUID
) -> None:
    async def scenario() -> None:
        writer.like(liked, "dan", "fay")
        assert await asyncio.to_thread(verify, database_url) == {}
        assert taken_in(database_url, 5)

    run(database_url, servers, writer, scenario, flush_seconds=1.5)


def test_without_a_relay_or_a_keeper_nobody_can_tell(
    database_url: str, servers: Servers, writer: Writer, liked: UUID
) -> None:
    async def scenario() -> None:
        """Nothing more than to be taken in."""

    run(database_url, servers, writer, scenario)
    with pytest.raises(NotTakenIn, match="role `consumers`"):
        verify(database_url)
    writer.like(liked, "dan")
    source = KafkaStage(
        database_url, writer, KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,))
    ).source

    async def without_a_relay() -> None:
        async with keeping(database_url, source_of=source):
            await asyncio.sleep(1)
            with pytest.raises(NotTakenIn, match="relay is at position"):
                await asyncio.to_thread(verify, database_url, 1.0)

    asyncio.run(without_a_relay())
