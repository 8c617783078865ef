"""Sinks as they run, on TimescaleDB: late events beside its policies, and killed processes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event as Flag
from threading import Thread
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import connect
from infra import metrics
from projections.analytics.calendar import HOUR, start_of_day, start_of_hour
from projections.analytics.ingest import Store
from projections.analytics.rules import row_of
from projections.analytics.schema import Shape, refresh
from tests.integration.analytics_sinks import keeping, record
from tests.integration.analytics_support import (
    RULES,
    Event,
    History,
    expect,
    history,
    migrated,
    oracle,
    timescale_database,
)
from tests.integration.consuming_support import run
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.test_analytics_keeping import TELEMETRY, count
from tests.integration.test_analytics_kills import finish, kill
from tests.support import until

POLICIES = """
SELECT job_id FROM timescaledb_information.jobs
WHERE hypertable_schema = 'analytics' AND proc_name = ANY (%s) ORDER BY job_id
"""
REFRESHING, COMPRESSING = "policy_refresh_continuous_aggregate", "policy_compression"


@pytest.fixture
def counted() -> Iterator[str]:
    """A database on TimescaleDB for the analytics, whose policies run when a test says so."""
    with timescale_database() as url:
        migrated(url)
        rows(url, "SELECT _timescaledb_functions.stop_background_workers()")
        yield url


def told(size: int, days: float, videos: Sequence[UUID]) -> History:
    found = history(random.Random(size), size, days)
    names = dict(zip(map(str, found.videos), videos, strict=True))
    events: list[Event] = [
        (topic, id_, value | {"videoId": str(names[value["videoId"]])})
        for topic, id_, value in found.events
        if topic in TELEMETRY
    ]
    return History(events, dict.fromkeys(videos, ("ann", None)))


def jobs(url: str, *kinds: str) -> list[int]:
    return [job for (job,) in rows(url, POLICIES, [list(kinds)])]


@contextmanager
def busy_policies(url: str, *kinds: str) -> Iterator[list[str]]:
    """Policies that run one after the other all the while; gives what they could not do."""
    ended, failures = Flag(), list[str]()

    def work() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not ended.is_set():
                for job in jobs(url, *kinds):
                    try:
                        conn.execute("CALL run_job(%s)", (job,))
                    except psycopg.OperationalError as error:
                        failures.append(str(error))

    thread = Thread(target=work, name=f"policies {kinds}")
    thread.start()
    try:
        yield failures
    finally:
        ended.set()
        thread.join()


def test_late_events_beside_the_policies(counted: str, database_url: str, writer: Writer) -> None:
    happened = told(400, 40, [writer.video("ann").id for _ in range(3)])
    late = happened.events[::4]
    before = metrics.value("backlot_analytics_refresh_failures_total")

    async def scenario() -> None:
        await record(database_url, [each for each in happened.events if each not in late])
        async with keeping(database_url, url=counted):
            await until(lambda: count(counted) == len(happened.events) - len(late))
            await record(database_url, late)
            await until(lambda: count(counted) == len(happened.events))
            await until(lambda: len(rows(counted, "SELECT 1 FROM analytics.videos")) == 3)

    with busy_policies(counted, REFRESHING), busy_policies(counted, COMPRESSING):
        run(scenario)
    assert metrics.value("backlot_analytics_refresh_failures_total") == before
    expect(counted, oracle(happened), happened.events)


def share(conn: Connection[TupleRow], *times: datetime) -> Sequence[datetime]:
    """Store that somebody shared a video then, as a sink that is killed before it refreshes."""
    told = [{"videoId": str(uuid4()), "userId": None, "timestamp": at.isoformat()} for at in times]
    shared = [row_of("video.shared", uuid4(), each, datetime.now(UTC)) for each in told]
    with conn.transaction():
        return Store(Shape.TIMESCALE, RULES).add(conn, shared).times


def test_what_nobody_refreshed_the_policies_do(counted: str) -> None:
    """Also in the newest hour and day that are over, and none in those that go on."""
    now = datetime.now(UTC)
    over = [start_of_hour(now) - HOUR / 2, start_of_day(now) - HOUR / 2]
    with connect(counted, "test") as conn:
        refresh(conn, share(conn, *over), now)
        share(conn, *over)
        for job in jobs(counted, REFRESHING):
            conn.execute("CALL run_job(%s)", (job,))
        share(conn, datetime.now(UTC))
    for table in ("video_hourly", "video_daily"):
        assert rows(counted, f"SELECT sum(shares) FROM analytics.{table}") == [(5,)], table


@pytest.mark.chaos
def test_killed_at_random_they_count_everything_once(
    counted: str, database_url: str, writer: Writer
) -> None:
    happened = told(1200, 3, [writer.video("ann").id for _ in range(3)])
    random.Random(5).shuffle(happened.events)

    def write() -> None:
        for at in range(0, len(happened.events), 60):
            asyncio.run(record(database_url, happened.events[at : at + 60]))
            time.sleep(0.3)

    grown = kill(Thread(target=write, name="writing"), 6, database_url, counted)
    assert len(grown) > 2
    finish(database_url, counted, happened)
    # Whoever was killed before it had refreshed has left that to the policies.
    with psycopg.connect(counted, autocommit=True) as conn:
        for job in jobs(counted, REFRESHING):
            conn.execute("CALL run_job(%s)", (job,))
    expect(counted, oracle(happened), happened.events)
