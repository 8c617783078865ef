"""Mends what differs: a day, or some videos, in a transaction in which no consumer stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.comparison import SESSION
from engine.telemetry import TelemetryEvent
from infra.advisory_locks import Lock, held, lock_in_transaction
from projections.analytics import comparison
from projections.analytics.comparison import Day
from projections.analytics.ingest import NO_LIMIT, Store
from projections.analytics.rules import NotCountable, Row, row_of
from projections.analytics.schema import Shape
from projections.analytics.windows import DAY, start_of_hour
from projections.integration_events import NotPublishable, from_telemetry

MANY = 1_000
VIDEOS_AT_ONCE = 500

# What was mended has to outlast a crash, unlike what is taken in again by itself.
DURABLE = b"SET LOCAL synchronous_commit = on"

EXTRA = b"""
SELECT event_id FROM wrong_rows WHERE kind = 'extra' AND event_id > %b ORDER BY event_id LIMIT %b
"""
TELEMETRY = b"""
SELECT seq, event_id, topic, video_id, user_id, happened_at, details, correlation_id
FROM public.backlot_telemetry WHERE event_id = ANY (%b)
"""

NEXT_VIDEOS = b"SELECT video_id FROM wrong_videos WHERE video_id > %b ORDER BY video_id LIMIT %b"
# Sessions were judged by the owner and the length.
MISJUDGED = b"""
SELECT video_id FROM told_videos AS told FULL JOIN analytics.videos AS kept USING (video_id)
WHERE video_id = ANY (%b)
  AND (told.owner, told.duration_seconds) IS DISTINCT FROM (kept.owner, kept.duration_seconds)
"""
DROP_VIDEOS = b"""
DELETE FROM analytics.videos AS kept WHERE video_id = ANY (%b)
  AND NOT EXISTS (SELECT FROM told_videos AS told WHERE told.video_id = kept.video_id)
"""
PUT_VIDEOS = b"""
INSERT INTO analytics.videos (video_id, owner, category, completed_at, removed, duration_seconds)
SELECT video_id, owner, category, completed_at, removed, duration_seconds
FROM told_videos WHERE video_id = ANY (%b)
ON CONFLICT (video_id) DO UPDATE SET owner = excluded.owner, category = excluded.category,
    completed_at = excluded.completed_at, removed = excluded.removed,
    duration_seconds = excluded.duration_seconds
"""
SESSIONS = b"""
SELECT video_id::text, session::text FROM analytics.sessions
WHERE video_id = ANY (%b) AND (video_id, session) > (%b::uuid, %b::uuid)
ORDER BY video_id, session LIMIT %b
"""
NOBODY = UUID(int=0)

REFRESH = b"CALL refresh_continuous_aggregate(%b, %b::timestamptz, %b::timestamptz, force => true)"


@contextmanager
def alone(conn: Connection[TupleRow], shape: Shape) -> Iterator[None]:
    """Open a transaction in which no consumer stores."""
    with conn.transaction():
        conn.execute(SESSION)
        conn.execute(DURABLE)
        if shape is Shape.TIMESCALE:
            conn.execute(NO_LIMIT)
        lock_in_transaction(conn, Lock.ANALYTICS_ROWS)
        yield


def mend_rows(
    conn: Connection[TupleRow], log_conn: Connection[TupleRow], store: Store, day: Day
) -> list[datetime]:
    """Make likes and comments what the event log tells; return the times whose counts change.

    Remove rows of which the log tells nothing; count them again where they are telemetry.
    """
    conn.execute(comparison.DROP_ROWS, day.parameters)
    conn.execute(comparison.PUT_ROWS, day.parameters)
    times: list[datetime] = []
    last = NOBODY
    while extra := [id_ for (id_,) in conn.execute(EXTRA, (last, MANY)).fetchall()]:
        last = extra[-1]
        times += store.add(conn, _telemetry(log_conn, extra)).times
    conn.execute(comparison.FORGET_ROWS)
    return times


def mend_derived(conn: Connection[TupleRow], shape: Shape, day: Day) -> None:
    """Make viewers, and sums in plain tables, what the rows come to."""
    conn.execute(comparison.DROP_VIEWERS, day.parameters)
    conn.execute(comparison.PUT_VIEWERS, day.parameters)
    if shape is Shape.PLAIN:
        for table, counted in comparison.SUMS.items():
            conn.execute(comparison.of(comparison.DROP_SUMS, table, counted))
            conn.execute(comparison.of(comparison.PUT_SUMS, table, counted))


def wrong_videos(conn: Connection[TupleRow]) -> Iterator[list[UUID]]:
    """Yield the videos that differ, in batches."""
    last = NOBODY
    while rows := conn.execute(NEXT_VIDEOS, (last, VIDEOS_AT_ONCE)).fetchall():
        found = [video_id for (video_id,) in rows]
        yield found
        last = found[-1]


def mend_videos(conn: Connection[TupleRow], store: Store, ids: list[UUID]) -> list[datetime]:
    """Make these videos what the event log tells, and judge their sessions again.

    Return the times whose counts change.
    """
    misjudged = [id_ for (id_,) in conn.execute(MISJUDGED, (ids,)).fetchall()]
    conn.execute(DROP_VIDEOS, (ids,))
    conn.execute(PUT_VIDEOS, (ids,))
    times: list[datetime] = []
    last = (str(NOBODY), str(NOBODY))
    while keys := conn.execute(SESSIONS, (misjudged, *last, MANY)).fetchall():
        times += store.recount(conn, [(video, session) for video, session in keys]).times
        last = keys[-1]
    return times


def refresh_day(conn: Connection[TupleRow], day: Day, now: datetime) -> None:
    """Refresh the continuous aggregates of a day; not in a transaction. Raise psycopg.Error.

    The present hour and day need no refresh, and must have none: what comes for them later would
    stay hidden.
    """
    hour, end = start_of_hour(now), day.since + DAY
    until = min(end, hour)
    with held(conn, Lock.ANALYTICS_REFRESH):
        if day.since < until:
            conn.execute(REFRESH, ("analytics.video_hourly", day.since, until))
        if end <= hour:
            conn.execute(REFRESH, ("analytics.video_daily", day.since, end))


def _telemetry(log_conn: Connection[TupleRow], ids: list[UUID]) -> Iterator[Row]:
    """Yield the rows of those events that are telemetry, as it was recorded."""
    now = datetime.now(UTC)
    for seq, *fields in log_conn.execute(TELEMETRY, (ids,)).fetchall():
        try:
            message = from_telemetry(seq, TelemetryEvent(*fields))
            yield row_of(message.topic, message.id, orjson.loads(message.value), now)
        except (NotPublishable, NotCountable):
            # The consumer has set it aside, too.
            continue
