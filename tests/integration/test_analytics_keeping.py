"""The sinks of the analytics, whatever brings them their messages and whatever is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from infra.advisory_locks import job_lock, lock
from infra.postgres.server import EmbeddedPostgres
from tests.integration.analytics_sinks import keeping, record
from tests.integration.analytics_support import Event, History, expect, history, oracle
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
from tests.integration.projection_support import Writer, origin
from tests.support import until

VIDEOS = "SELECT owner, category, removed FROM analytics.videos"
TELEMETRY = ("video.viewed", "video.watch_time", "video.shared")


@pytest.fixture(params=["log", "kafka"])
def stage(request: pytest.FixtureRequest, database_url: str, writer: Writer) -> Iterator[Stage]:
    with open_stage(request.param, database_url, writer) as opened:
        yield opened


@pytest.fixture
def plain(database_url: str, writer: Writer) -> str:
    """A database with an empty log."""
    return database_url


def told(seed: int, videos: Sequence[UUID] = (), size: int = 150) -> History:
    """A history of telemetry alone, of the owner's videos when there are some."""
    found = history(Random(seed), size)
    names = dict(zip(map(str, found.videos), videos, strict=False))
    events: list[Event] = []
    for topic, id_, value in found.events:
        if topic in TELEMETRY:
            video = names.get(value["videoId"], value["videoId"])
            events.append((topic, id_, value | {"videoId": str(video)}))
    known: dict[UUID, tuple[str, float | None]] = {
        names.get(str(id_), id_): ("alice" if videos else "nobody", None) for id_ in found.videos
    }
    return History(events, known)


def count(url: str, query: str = "SELECT count(*) FROM analytics.video_analytics") -> int:
    """How many rows there are; none while there is no table."""
    try:
        return int(rows(url, query)[0][0])
    except psycopg.errors.UndefinedTable:
        return 0


def hourly(url: str) -> list[Any]:
    return rows(
        url,
        "SELECT sum(views)::int, sum(trending_views)::int, sum(likes)::int, sum(comments)::int, "
        "sum(shares)::int FROM analytics.video_hourly",
    )


def test_what_happens_is_counted(stage: Stage) -> None:
    async def scenario() -> None:
        url, video = stage.database_url, stage.writer.video("alice", category="rain").id
        stage.writer.like(video, "bob", "eve", "dan")
        stage.writer.unlike(video, "eve")
        kept, gone = stage.writer.comment(video), stage.writer.comment(video)
        kept.edit("another", origin("bob"))
        gone.delete(origin("bob"))
        stage.writer.save(kept, gone)
        events = told(1, [video, video, video])
        await record(url, events.events)
        await stage.published()
        async with keeping(url, source_of=stage.source):
            await until(lambda: count(url) == len(events.events) + 7)
            await until(lambda: rows(url, VIDEOS) == [("alice", "rain", False)])
        (sums,) = hourly(url)
        assert sums[2:4] == (2, 1)
        counted = oracle(events).hourly.values()
        assert sums[0] == sum(each["views"] for each in counted)
        assert sums[4] == sum(each["shares"] for each in counted)
        assert place(url, "analytics")
        assert count(url, "SELECT count(*) FROM processed_messages") == 0

    run(scenario)


def test_the_owner_is_found_out_late(stage: Stage) -> None:
    async def scenario() -> None:
        url = stage.database_url
        video = stage.writer.video("eve")
        video.remove(origin("eve"))
        stage.writer.save(video)
        events = told(2, [video.id, video.id, video.id])
        owned = History(events.events, {video.id: ("eve", None)})
        await record(url, events.events)
        await stage.published()
        async with keeping(url, source_of=stage.source):
            with led_elsewhere(url, "analytics_videos"):
                await until(lambda: count(url) == len(events.events))
                assert hourly(url)[0][0] == hourly(url)[0][1]
            await until(lambda: rows(url, VIDEOS) == [("eve", None, True)])
        assert hourly(url)[0][0] > hourly(url)[0][1]
        expect(url, oracle(owned), events.events)

    run(scenario)


@contextmanager
def led_elsewhere(url: str, consumer: str) -> Iterator[None]:
    """Another process is active for that consumer meanwhile."""
    with psycopg.connect(url, autocommit=True) as conn:
        lock(conn, job_lock(f"consumer {consumer}"))
        yield


def test_a_batch_waits_for_its_time_or_its_number(plain: str) -> None:
    async def scenario() -> None:
        events = told(3).events[:30]
        async with keeping(plain, batch_events=20, flush_seconds=60):
            await record(plain, events[:19])
            await asyncio.sleep(0.7)
            assert count(plain) == 0
            await record(plain, events[19:21])
            await until(lambda: count(plain) >= 20)
        async with keeping(plain, batch_events=20, flush_seconds=0.3):
            await until(lambda: count(plain) == 21)

    run(scenario)


def test_rows_and_places_change_together(stage: Stage) -> None:
    async def scenario() -> None:
        url, events = stage.database_url, told(4)
        async with keeping(url, source_of=stage.source):
            await until(lambda: count(url, PLACES) is not None)
            await until(lambda: bool(rows(url, "SELECT to_regclass('analytics.sessions')")[0][0]))
            with held(url, "backlot_checkpoints"):
                await record(url, events.events)
                await stage.published()
                await until(lambda: waits(url))
                assert count(url) == 0
                rows(url, TERMINATE)
            await until(lambda: count(url) == len(events.events))
        expect(url, oracle(events), events.events)

    run(scenario)


PLACES = "SELECT count(*) FROM backlot_checkpoints WHERE kind = 'consumer'"


def test_what_comes_again_is_counted_once(stage: Stage) -> None:
    async def scenario() -> None:
        url, events = stage.database_url, told(5)
        await record(url, events.events)
        await stage.published()
        for _ in range(2):
            async with keeping(url, source_of=stage.source):
                await until(lambda: count(url) == len(events.events))
                await until(lambda: bool(place(url, "analytics")))
            rows(url, "DELETE FROM backlot_checkpoints WHERE kind = 'consumer' RETURNING 1")
        async with keeping(url, source_of=stage.source):
            await until(lambda: bool(place(url, "analytics")))
        expect(url, oracle(events), events.events)

    run(scenario)


def test_a_poison_message_holds_up_no_other(stage: Stage) -> None:
    async def scenario() -> None:
        url, events = stage.database_url, told(6)
        bad = ("video.viewed", uuid4(), events.events[0][2] | {"sessionId": "none"})
        ahead = events.events[0][2] | {"timestamp": "2999-01-01T00:00:00+00:00"}
        worse = ("video.shared", uuid4(), ahead)
        await record(url, [*events.events[:40], bad, worse, *events.events[40:]])
        await stage.published()
        async with keeping(url, source_of=stage.source):
            await until(lambda: count(url) == len(events.events))
            await until(lambda: len(dead(url)) == 2)
        assert {(each[0], each[1]) for each in dead(url)} == {
            ("analytics", "video.viewed"),
            ("analytics", "video.shared"),
        }
        expect(url, oracle(events), events.events)

    run(scenario)


def test_what_the_database_does_not_take_is_set_aside(plain: str) -> None:
    async def scenario() -> None:
        events = told(7)
        async with keeping(plain):
            await until(lambda: bool(rows(plain, "SELECT to_regclass('analytics.videos')")[0][0]))
            with psycopg.connect(plain) as conn:
                conn.execute(
                    "ALTER TABLE analytics.video_analytics "
                    f"ADD CHECK (event_id <> '{events.events[5][1]}')".encode()
                )
            await record(plain, events.events)
            await until(lambda: count(plain) == len(events.events) - 1)
        ((consumer, _, id_, reason, *_),) = dead(plain)
        assert (consumer, id_) == ("analytics", events.events[5][1])
        assert "CheckViolation" in reason

    run(scenario)


@pytest.mark.no_analytics
def test_a_database_of_their_own(plain: str, other_url: str) -> None:
    async def scenario() -> None:
        events = told(8)
        await record(plain, events.events)
        async with keeping(plain, url=other_url):
            await until(lambda: count(other_url) == len(events.events))
        assert place(other_url, "analytics")
        assert place(plain, "analytics") == {}
        assert rows(plain, "SELECT to_regclass('analytics.sessions')") == [(None,)]
        expect(other_url, oracle(events), events.events)

    run(scenario)


@pytest.fixture
def other_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Another empty database."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE test_analytics")
        yield postgres.url_of("test_analytics")
        admin.execute("DROP DATABASE test_analytics WITH (FORCE)")
