"""What is past the retention goes, its sums stay, and both shapes answer the same after that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import connect
from projections.analytics.ingest import Store, StoredBatch
from projections.analytics.rules import row_of
from projections.analytics.schema import COUNTED, Shape, prune, refresh, retention_of
from tests.integration.analytics_support import (
    COLUMNS,
    NOW,
    RULES,
    Counted,
    Event,
    History,
    audience,
    history,
    migrated,
    oracle,
    timescale_database,
    when,
)
from tests.integration.event_log import url_of

DAY = timedelta(days=1)
DAYS = 60
SUMS = f"SELECT bucket, video_id, {', '.join(COLUMNS)} FROM analytics.video_"
POLICIES = """
SELECT job_id, hypertable_name, config->>'start_offset', config->>'drop_after'
FROM timescaledb_information.jobs WHERE hypertable_schema = 'analytics' AND proc_name = %s
ORDER BY hypertable_name
"""


@pytest.fixture(params=list(Shape))
def conn(request: pytest.FixtureRequest) -> Iterator[Connection[TupleRow]]:
    """A database of each shape; policies run there when a test says so."""
    if request.param is Shape.PLAIN:
        with made(request.getfixturevalue("database_url"), Shape.PLAIN) as opened:
            yield opened
        return
    with timescale_database() as url, made(url, Shape.TIMESCALE) as opened:
        opened.execute("SELECT _timescaledb_functions.stop_background_workers()")
        yield opened


def made(url: str, shape: Shape) -> Connection[TupleRow]:
    assert migrated(url).shape is shape
    return connect(url, "test")


def shape_of(conn: Connection[TupleRow]) -> Shape:
    (shape,) = conn.execute("SELECT shape FROM analytics.shape").fetchone() or ("",)
    return Shape(shape)


def add(conn: Connection[TupleRow], events: Sequence[Event]) -> StoredBatch:
    with conn.transaction():
        rows = [row_of(*event, NOW) for event in events]
        stored = Store(shape_of(conn), RULES).add(conn, rows)
    if shape_of(conn) is Shape.TIMESCALE:
        refresh(conn, stored.times, datetime.now(UTC))
    return stored


def policies(conn: Connection[TupleRow], proc: str) -> list[tuple[Any, ...]]:
    if shape_of(conn) is Shape.PLAIN:
        return []
    return conn.execute(POLICIES, (f"policy_{proc}",)).fetchall()


def run_policies(conn: Connection[TupleRow]) -> None:
    """As time does it: what is old is dropped, and then all rollups are refreshed."""
    refreshing = sorted(policies(conn, "refresh_continuous_aggregate"), reverse=True)
    for job, *_ in [*policies(conn, "retention"), *reversed(refreshing)]:
        conn.execute("CALL run_job(%s)", (job,))


def sums(conn: Connection[TupleRow], table: str, since: datetime) -> dict[Any, Any]:
    found = conn.execute(f"{SUMS}{table} WHERE bucket >= %s".encode(), (since,)).fetchall()
    return {(at.astimezone(UTC), video): values for at, video, *values in found}


def same(conn: Connection[TupleRow], table: str, wanted: Counted, since: datetime) -> None:
    counted = wanted.hourly if table == "hourly" else wanted.daily
    told = {
        key: pytest.approx([values[name] for name in COLUMNS], abs=1e-6)
        for key, values in counted.items()
        if key[0] >= since
    }
    assert sums(conn, table, since) == told


def floor_of(days: int) -> datetime:
    return (NOW - days * DAY).replace(hour=0, minute=0, second=0, microsecond=0)


def share(age: timedelta, video: UUID) -> Event:
    at = (NOW - age).isoformat()
    return "video.shared", uuid4(), {"videoId": str(video), "userId": None, "timestamp": at}


def expect_pruned(conn: Connection[TupleRow], told: History, floor: datetime) -> None:
    wanted = oracle(told)
    kept_ids = {id_ for topic, id_, value in told.events if when((topic, id_, value)) >= floor}
    rows = conn.execute("SELECT event_id FROM analytics.video_analytics").fetchall()
    assert {id_ for (id_,) in rows} == kept_ids
    same(conn, "hourly", wanted, floor)
    same(conn, "daily", wanted, datetime.min.replace(tzinfo=UTC))
    viewers = conn.execute("SELECT video_id, viewer, day FROM analytics.video_viewers").fetchall()
    assert set(viewers) == {each for each in wanted.viewers if each[2] >= floor.date()}
    watched = audience(url_of(conn))
    assert watched == {key: sums for key, sums in wanted.audience.items() if key[0] >= floor}
    counted = conn.execute(
        "SELECT bucket, video_id, viewers, latest FROM analytics.viewers_hourly WHERE viewers > 0"
    ).fetchall()
    assert {(at, video): (n, m) for at, video, n, m in counted} == {
        key: (counts["viewers"], counts["latest"])
        for key, counts in wanted.viewers_hourly.items()
        if key[0] >= floor
    }


def test_rows_go_and_sums_stay(conn: Connection[TupleRow]) -> None:
    told = history(Random(1), size=400, days=130)
    told.videos = dict.fromkeys(told.videos, ("nobody", None))
    add(conn, told.events)
    floor = floor_of(DAYS)
    gone = prune(conn, DAYS, NOW)
    assert gone["video_viewers"] > 10
    run_policies(conn)
    expect_pruned(conn, told, floor)
    # What lies near the end comes too late, what lies before that does not.
    video = next(iter(told.videos))
    close, far = share(DAYS * DAY - COUNTED - DAY, video), share(DAYS * DAY - COUNTED + DAY, video)
    stored = add(conn, [close, far])
    assert (stored.too_late, sum(stored.fresh.values())) == (1, 1)
    run_policies(conn)
    expect_pruned(conn, History([*told.events, close], told.videos), floor)
    assert sum(prune(conn, DAYS, NOW).values()) == 0


def test_a_longer_retention_brings_nothing_back_and_erases_nothing(
    conn: Connection[TupleRow],
) -> None:
    told = history(Random(2), size=300, days=130)
    told.videos = dict.fromkeys(told.videos, ("nobody", None))
    add(conn, told.events)
    for days in (DAYS, 400):
        prune(conn, days, NOW)
        run_policies(conn)
    assert retention_of(conn).floor == floor_of(DAYS)
    # As old as some that are gone, of the same hours.
    video = next(iter(told.videos))
    late = [share(NOW - when(each), video) for each in told.events[::3] if age(each) > DAYS * DAY]
    stored = add(conn, late)
    assert stored.too_late == len(late) > 20
    run_policies(conn)
    expect_pruned(conn, told, floor_of(DAYS))


def age(event: Event) -> timedelta:
    return NOW - when(event)


def test_the_policies_follow_the_setting(conn: Connection[TupleRow]) -> None:
    if shape_of(conn) is Shape.PLAIN:
        return
    for days, within in ((730, 725), (100, 95), (300, 95)):
        prune(conn, days, NOW)
        dropped = {after for *_, after in policies(conn, "retention")}
        refreshed = {start for *_, start, _ in policies(conn, "refresh_continuous_aggregate")}
        assert (dropped, refreshed) == ({f"{days} days"}, {f"{within} days"})
    # As the days go by there is more again that may be refreshed.
    prune(conn, 300, NOW + 30 * DAY)
    assert {each[2] for each in policies(conn, "refresh_continuous_aggregate")} == {"125 days"}


def test_the_beginning_of_a_session_may_be_gone(conn: Connection[TupleRow]) -> None:
    """It was seen, and so much of it watched, all the same."""
    video, session = str(uuid4()), str(uuid4())
    common = {"videoId": video, "userId": "bob", "sessionId": session}

    def report(at: datetime) -> Event:
        value = {**common, "seconds": 30, "timestamp": at.isoformat()}
        return "video.watch_time", uuid4(), value

    begun = {**common, "timestamp": (NOW - 62 * DAY).isoformat()}
    view: Event = ("video.viewed", uuid4(), begun)
    with conn.transaction():
        conn.execute(
            "INSERT INTO analytics.videos (video_id, owner, duration_seconds)"
            " VALUES (%s, 'ann', 75)", (video,),
        )  # fmt: skip
    add(conn, [view, report(NOW - 61.5 * DAY), report(NOW - 2 * DAY)])
    prune(conn, DAYS, NOW)
    run_policies(conn)
    add(conn, [report(NOW - 3 * DAY)])
    found = sums(conn, "daily", NOW - 100 * DAY).values()
    assert sum(values[COLUMNS.index("watch_seconds")] for values in found) == 75
    seconds = {at.date(): values[COLUMNS.index("watch_seconds")]
               for (at, _), values in sums(conn, "daily", NOW - 5 * DAY).items()}  # fmt: skip
    assert seconds == {(NOW - 3 * DAY).date(): 30, (NOW - 2 * DAY).date(): 15}


def test_a_session_that_goes_on_is_not_forgotten(conn: Connection[TupleRow]) -> None:
    old, other = (NOW - 70 * DAY).isoformat(), str(uuid4())
    for session in (str(uuid4()), other):
        value = {"videoId": other, "userId": "bob", "sessionId": session, "timestamp": old}
        add(conn, [("video.viewed", uuid4(), value)])
    again = {"videoId": other, "userId": "bob", "sessionId": other, "timestamp": NOW.isoformat()}
    with psycopg.connect(url_of(conn)) as keeper:
        rows = [row_of("video.viewed", uuid4(), again, NOW)]
        Store(shape_of(conn), RULES).add(keeper, rows)
        # Neither waits for the other.
        assert prune(conn, DAYS, NOW)["sessions"] == 1
    assert conn.execute("SELECT session::text FROM analytics.sessions").fetchall() == [(other,)]


def test_one_process_at_a_time(conn: Connection[TupleRow]) -> None:
    with psycopg.connect(url_of(conn), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(7104878, 8)")
        assert prune(conn, DAYS, NOW) == {}
        other.execute("SELECT pg_advisory_unlock(7104878, 8)")
    assert "sessions" in prune(conn, DAYS, NOW)


def test_what_may_have_gone_since_then_is_gone(conn: Connection[TupleRow]) -> None:
    prune(conn, DAYS, NOW)
    # Five days later, at once with the longer time; the policies have gone on meanwhile.
    prune(conn, 400, NOW + 5 * DAY)
    assert retention_of(conn).floor == floor_of(DAYS - 5)


def test_what_a_viewer_brought_to_trending_is_remembered_as_long_as_the_rows(
    conn: Connection[TupleRow],
) -> None:
    video = uuid4()
    add(conn, [comment(70 * DAY, video, "eve"), comment(80 * DAY, video, "bob")])
    add(conn, [comment(DAY, video, "bob")])
    prune(conn, DAYS, NOW)
    kept = conn.execute("SELECT viewer, comments FROM analytics.participants").fetchall()
    assert kept == [("bob", 2)]
    # One that is late has the viewer judged again, without what has gone.
    add(conn, [comment(2 * DAY, video, "bob")])
    query = 'SELECT metadata FROM analytics.video_analytics WHERE "timestamp" > %s'
    found = conn.execute(query.encode(), (NOW - 60 * DAY,)).fetchall()
    assert [metadata for (metadata,) in found] == [{"delta": 1, "trending": 0}] * 2


def comment(age: timedelta, video: UUID, user: str) -> Event:
    at = (NOW - age).isoformat()
    return "comment.created", uuid4(), {"videoId": str(video), "userId": user, "ts": at}
