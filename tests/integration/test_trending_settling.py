"""The job that settles trending's sums: now, again and again, and whatever happens between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.schedule import run_job
from infra import metrics
from projections.trending import Formula
from tests.integration.trending_support import Deed, Film, analytics_database, write
from tests.support import DEADLINE_SECONDS, ended
from workers.analytics import settling_job

FILM = Film(UUID(int=1), datetime.now(UTC))
OLD = datetime.now(UTC) - timedelta(hours=50)
FAILURES = "backlot_trending_settle_failures_total"


def settling(url: str, *, until: Callable[[], bool]) -> None:
    async def run() -> None:
        job = asyncio.create_task(run_job(settling_job(url, Formula(), 0.05)))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not until():  # noqa: ASYNC110 - tables tell nobody
                await asyncio.sleep(0.02)
        await ended(job)

    asyncio.run(run())


def sums(conn: Connection[TupleRow]) -> list[TupleRow]:
    query = "SELECT time_range, views FROM analytics.trending_sums ORDER BY time_range"
    return conn.execute(query).fetchall()


def test_every_window_is_settled_and_late_events_are_in_the_next(database_url: str) -> None:
    with analytics_database(database_url) as conn:
        write(conn, [FILM], [Deed(FILM, "view", OLD)])
        settling(database_url, until=lambda: len(sums(conn)) == 3)
        assert sums(conn) == [("30d", 1), ("7d", 1), ("all", 1)]
        write(conn, [FILM], [Deed(FILM, "view", OLD)] * 2)
        settling(database_url, until=lambda: sums(conn) == [("30d", 2), ("7d", 2), ("all", 2)])


def test_how_long_it_takes_is_told(database_url: str) -> None:
    name = "backlot_trending_settle_seconds"
    before = metrics.value(name)
    with analytics_database(database_url):
        settling(database_url, until=lambda: metrics.value(name) not in (0, before))


@pytest.mark.no_analytics
def test_what_fails_is_told_and_tried_again(database_url: str) -> None:
    before = metrics.value(FAILURES)
    # There are no tables yet.
    settling(database_url, until=lambda: metrics.value(FAILURES) > before + 1)
    with analytics_database(database_url) as conn:
        write(conn, [FILM], [Deed(FILM, "view", OLD)])
        settling(database_url, until=lambda: len(sums(conn)) == 3)


def test_it_starts_with_the_database_away() -> None:
    before = metrics.value(FAILURES)
    away = "postgresql://nobody@127.0.0.1:1/none"
    settling(away, until=lambda: metrics.value(FAILURES) > before)
