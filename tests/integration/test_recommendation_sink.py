"""The sink of the recommendations on its sources: the log and Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from engine.subscription import Notifications
from infra.metrics import REGISTRY
from projections.recommendations.model import Weighing
from tests.integration.analytics_sinks import record
from tests.integration.analytics_support import Event
from tests.integration.consuming_support import (
    TERMINATE,
    Stage,
    dead,
    held,
    open_stage,
    place,
    run,
    waits,
)
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.support import ended, until
from workers import recommendations as sinks
from workers.consumers import subscribe_sink
from workers.recommendations import EngagementSink

ENGAGED = (
    "SELECT viewer, video_id, watched_at IS NOT NULL, liked_at IS NOT NULL "
    "FROM analytics.engaged ORDER BY 1, 2"
)
NEIGHBOURS = "SELECT video_id, neighbour_id, weight, as_of FROM analytics.neighbours ORDER BY 1, 2"
NOW = datetime.now(UTC)


@pytest.fixture(params=["log", "kafka"])
def stage(request: pytest.FixtureRequest, database_url: str, writer: Writer) -> Iterator[Stage]:
    with open_stage(request.param, database_url, writer) as opened:
        yield opened


@asynccontextmanager
async def keeping(stage: Stage) -> AsyncIterator[list[str]]:
    """The sink at work; gives the names of those whose profiles changed, as they are told."""
    told: list[str] = []

    async def tell(viewers: frozenset[str]) -> None:
        told.extend(sorted(viewers))

    notifications = Notifications(stage.database_url)
    recommendations = EngagementSink(Weighing(), changed=tell)
    runner = subscribe_sink(
        stage.database_url,
        recommendations,
        stage.source(recommendations.topics, notifications.subscribe()),
        log_url=stage.database_url,
        batch_events=25,
        flush_seconds=0.05,
        poll_seconds=0.2,
    )
    tasks = [asyncio.create_task(job) for job in (notifications.run(), runner.run())]
    try:
        yield told
    finally:
        await ended(*tasks)


def view(video: UUID, user: str | None, minutes_ago: int = 0) -> Event:
    value = {
        "videoId": str(video),
        "userId": user,
        "sessionId": str(uuid4()),
        "timestamp": (NOW - timedelta(minutes=minutes_ago)).isoformat(),
    }
    return "video.viewed", uuid4(), value


def found(url: str, query: str = ENGAGED) -> list[tuple[Any, ...]]:
    """The rows; none while there is no table."""
    try:
        return rows(url, query)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return []


def test_views_and_likes_of_known_users_are_kept(stage: Stage) -> None:
    async def scenario() -> None:
        url, writer = stage.database_url, stage.writer
        one, other = sorted((writer.video("alice").id, writer.video("alice").id))
        await record(url, [view(one, "bob", 5), view(other, "bob"), view(one, None)])
        writer.like(other, "bob", "eve")
        writer.unlike(other, "eve")
        await stage.published()
        wanted = [
            ("bob", one, True, False),
            ("bob", other, True, True),
            ("eve", other, False, True),
        ]
        async with keeping(stage) as told:
            await until(lambda: found(url) == wanted)
            await until(lambda: told.count("eve") >= 1 and told.count("bob") >= 1)
        weights = [row[2] for row in found(url, NEIGHBOURS)]
        assert weights == pytest.approx([3.0, 3.0], rel=1e-3)

    run(scenario)


def test_an_unlike_changes_the_profile_and_takes_back_what_the_like_brought(stage: Stage) -> None:
    async def scenario() -> None:
        url, writer = stage.database_url, stage.writer
        one, other = writer.video().id, writer.video().id
        writer.like(one, "bob")
        writer.like(other, "bob", "eve")
        await stage.published()
        async with keeping(stage) as told:
            await until(lambda: len(found(url, NEIGHBOURS)) == 2 and told.count("eve") == 1)
            writer.unlike(other, "eve")
            writer.unlike(one, "bob")
            await stage.published()
            await until(lambda: found(url, NEIGHBOURS) == [] and told.count("eve") == 2)
            for _ in range(3):
                writer.like(one, "bob")
                writer.unlike(one, "bob")
            writer.like(one, "bob", "dan")
            await stage.published()
            await until(lambda: "dan" in told and len(found(url, NEIGHBOURS)) == 2)
        assert [row[2] for row in found(url, NEIGHBOURS)] == pytest.approx([4.0, 4.0], rel=1e-3)

    run(scenario)


def test_rows_and_places_change_together_and_what_comes_again_changes_nothing(
    stage: Stage,
) -> None:
    async def scenario() -> None:
        url = stage.database_url
        videos = [uuid4() for _ in range(6)]
        events = [view(each, "bob", ago) for ago, each in enumerate(videos)]
        async with keeping(stage):
            await until(lambda: bool(found(url, "SELECT to_regclass('analytics.engaged')")[0][0]))
            with held(url, "backlot_checkpoints"):
                await record(url, events)
                await stage.published()
                await until(lambda: waits(url))
                assert found(url) == []
                rows(url, TERMINATE)
            await until(lambda: len(found(url)) == 6)
        before = found(url, NEIGHBOURS)
        assert len(before) == 30
        rows(url, "DELETE FROM backlot_checkpoints WHERE kind = 'consumer' RETURNING 1")
        async with keeping(stage):
            await until(lambda: bool(place(url, "recommendations")))
        assert found(url, NEIGHBOURS) == before

    run(scenario)


def test_how_long_a_transaction_is_open_is_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it has looked at something: one that only waits keeps nothing alive."""
    monkeypatch.setattr(sinks, "RANK_SECONDS", 0.0)
    sinks.OLDEST_TRANSACTION_SECONDS.set(0)

    def told() -> float:
        value = REGISTRY.get_sample_value("backlot_database_oldest_transaction_seconds")
        return value or 0.0

    async def scenario() -> None:
        url = stage.database_url
        with psycopg.connect(url) as conn:
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            (since,) = conn.execute("SELECT now()").fetchone() or (NOW,)
            async with keeping(stage):
                await record(url, [view(uuid4(), "bob")])
                await stage.published()
                await until(lambda: bool(found(url)) and told() > 0)
            age = (datetime.now(UTC) - since).total_seconds()
            assert 0 < told() <= age

    run(scenario)


def test_a_poison_message_holds_up_no_other(stage: Stage) -> None:
    async def scenario() -> None:
        url, ahead = stage.database_url, -60 * 24 * 365
        good = [view(uuid4(), "bob") for _ in range(3)]
        await record(url, [good[0], view(uuid4(), "bob", ahead), *good[1:]])
        await stage.published()
        async with keeping(stage):
            await until(lambda: len(found(url)) == 3)
            await until(lambda: len(dead(url)) == 1)
        assert dead(url)[0][:2] == ("recommendations", "video.viewed")

    run(scenario)


def test_categories_are_ranked_while_something_happens(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "RANK_SECONDS", 0.0)

    async def scenario() -> None:
        url = stage.database_url
        async with keeping(stage):
            await until(lambda: bool(found(url, "SELECT to_regclass('analytics.engaged')")[0][0]))
            video = uuid4()
            with psycopg.connect(url) as conn:
                conn.execute(
                    "INSERT INTO analytics.videos (video_id, owner, category, completed_at) "
                    "VALUES (%s, 'alice', 'art', now())",
                    (video,),
                )
            await record(url, [view(video, "bob")])
            await stage.published()
            query = "SELECT category, place, video_id FROM analytics.category_tops ORDER BY 1"
            await until(lambda: found(url, query) == [("", 1, video), ("art", 1, video)])

    run(scenario)
