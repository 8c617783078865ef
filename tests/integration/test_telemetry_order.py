"""Telemetry can be followed: what has the lower number is visible first, whoever writes when."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event
from uuid import UUID, uuid4

import psycopg
import pytest

from engine.connections import connect
from engine.installation import make_tables
from engine.telemetry import INSERT, Telemetry, TelemetryEvent
from projections.feeds import TelemetryFeed
from projections.integration_events import TELEMETRY
from tests.integration.analytics_support import REPEAT
from tests.integration.event_log import rows
from tests.support import eventually

SESSION = str(uuid4())
AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
WRITERS, EVENTS = 4, 100


@pytest.fixture
def database(database_url: str) -> str:
    return database_url


def event() -> TelemetryEvent:
    """Of a video of its own: the count of a video's views would make its writers wait anyway."""
    return TelemetryEvent(uuid4(), "video.viewed", uuid4(), "ann", AT, {"sessionId": SESSION})


def write(database: str, events: list[TelemetryEvent]) -> None:
    """Record them with a connection of its own, a transaction each."""

    async def scenario() -> None:
        telemetry = Telemetry(database, repeat=REPEAT)
        telemetry.open()
        for each in events:
            await telemetry.record(each)
        await telemetry.close()

    asyncio.run(scenario())


def follow(database: str, stop: Event) -> list[UUID]:
    """The ids in their order, read as fast as they come, until told to stop."""
    feed, after, found = TelemetryFeed(TELEMETRY, batch_events=50), 0, []
    with connect(database, "follower") as conn:
        while True:
            last_look = stop.is_set()
            stretch = feed.read(conn, after)
            found += [message.id for message in stretch.messages]
            after = stretch.until
            if last_look and stretch.until == stretch.head:
                return found


def test_no_follower_skips_what_many_write(database: str) -> None:
    batches = [[event() for _ in range(EVENTS)] for _ in range(WRITERS)]
    stop = Event()
    with ThreadPoolExecutor(WRITERS + 1) as pool:
        found = pool.submit(follow, database, stop)
        list(pool.map(write, [database] * WRITERS, batches))
        stop.set()
        ids = found.result()
    assert len(ids) == len(set(ids))
    assert set(ids) == {each.event_id for batch in batches for each in batch}


def test_who_has_begun_first_is_seen_first(database: str) -> None:
    slow = event()
    columns = [
        [slow.event_id],
        [slow.topic],
        [slow.video_id],
        [slow.user_id],
        [slow.happened_at],
        ["{}"],
        [None],
        [None],
        REPEAT,
    ]
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database) as conn:
        conn.execute(INSERT, columns)
        fast = pool.submit(write, database, [event()])
        eventually(lambda: fast.done() or _waits(database))
        assert rows(database, "SELECT seq FROM backlot_telemetry") == []
        conn.commit()
        fast.result()
    assert rows(database, "SELECT seq FROM backlot_telemetry ORDER BY seq") == [(1,), (2,)]


def test_a_table_of_an_earlier_release_gets_its_order(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE backlot_telemetry (event_id uuid PRIMARY KEY, topic text NOT NULL, "
            "video_id uuid NOT NULL, user_id text, happened_at timestamptz NOT NULL, "
            "details jsonb NOT NULL)"
        )
        conn.execute(
            "INSERT INTO backlot_telemetry SELECT gen_random_uuid(), 'video.viewed', "
            "gen_random_uuid(), NULL, now(), jsonb_build_object('sessionId', gen_random_uuid()) "
            "FROM generate_series(1, 3)"
        )
        make_tables(conn)
        make_tables(conn)
    write(empty_database_url, [event()])
    stop = Event()
    stop.set()
    assert len(follow(empty_database_url, stop)) == 4


def _waits(database: str) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
    return bool(rows(database, query + "AND datname = current_database()")[0][0])
