"""What viewers do beside deciding: views, watch time, shares. Not aggregates, but never lost.

Acknowledged once committed; many arrive, so they are inserted in batches. `seq` counts them in the
order in which they become visible, so that no reader skips one.

This module decides what a view is, for every count: a session is one viewer's watching of
one video, and holds one view. A viewer who watches again within `repeat` goes on with the
session, and nothing new is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import psycopg
from psycopg import Connection, Cursor
from psycopg_pool import ConnectionPool

from engine.personal_data import Blanked, Deleted, PersonalTable
from infra.advisory_locks import Lock, lock_in_transaction
from infra.batcher import Batcher
from infra.postgres.connection import SHORT_WORK, Limits, thread_pool

VIEWED = "video.viewed"
WATCH_TIME = "video.watch_time"
SHARED = "video.shared"

CHANNEL = "backlot_telemetry"

INSERT = """
SELECT backlot_take_telemetry(%b::uuid[], %b::text[], %b::uuid[], %b::text[], %b::timestamptz[],
                              %b::text[], %b::text[], %b::text[], %b::interval)
"""
# Under the lock of telemetry, so that no process loses the session that it is at.
FORGET = "DELETE FROM backlot_view_sessions WHERE began_at <= clock_timestamp() - %b::interval"

# The oldest, as they came; the newest of all stays, since its place is the head.
FORGET_EVENTS = b"""
WITH oldest AS (
    SELECT event_id, happened_at FROM backlot_telemetry
    WHERE seq < (SELECT max(seq) FROM backlot_telemetry) ORDER BY seq LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED)
DELETE FROM backlot_telemetry AS t USING oldest AS o
WHERE t.event_id = o.event_id AND o.happened_at < %(before)s
"""
BATCH_EVENTS = 1_000

HEAD = b"SELECT coalesce(max(seq), 0) FROM backlot_telemetry"
"""Asks for the position of the newest event; all of lower positions can be read by then."""
VIEWS = "SELECT video_id, views FROM backlot_views WHERE video_id = ANY(%b)"

PERSONAL = (
    PersonalTable(
        name="telemetry",
        holds="views, watch time, shares, recommendations shown and chosen, one by one",
        kept="so many days; without the setting, 30 more than ANALYTICS_RETENTION_DAYS",
        setting="TELEMETRY_RETENTION_DAYS",
        table="public.backlot_telemetry",
        columns=("user_id",),
        # What is made from it goes on counting them; `channel` is what a viewer wrote.
        forget=Blanked(
            "user_id = NULL, correlation_id = NULL, details = details - 'channel'",
            "the numbers stay",
        ),
    ),
    PersonalTable(
        name="view_sessions",
        holds="the session in which somebody is who watches a video",
        kept="so many seconds after it began",
        setting="VIEW_REPEAT_SECONDS",
        table="public.backlot_view_sessions",
        columns=("viewer",),
        forget=Deleted(),
    ),
)


class TelemetryEvent(NamedTuple):
    """One thing that a viewer did; `details` hold the rest of the published value.

    `correlation_id` names the request that brought it. `viewer` says of a view who views, as far as
    one viewer can be told from another: without it each view begins a session.
    """

    event_id: UUID
    topic: str
    video_id: UUID
    user_id: str | None
    happened_at: datetime
    details: Mapping[str, Any]
    correlation_id: str | None = None
    viewer: str | None = None


class Telemetry:
    """Takes telemetry into PostgreSQL, each event once by its id."""

    def __init__(
        self,
        database_url: str,
        *,
        repeat: timedelta,
        max_batch: int = 1_000,
        limits: Limits = SHORT_WORK,
    ) -> None:
        """`repeat` is how long a viewer who watches again goes on with the same session."""
        self._repeat = repeat
        check = ConnectionPool.check_connection
        self._pool = thread_pool(database_url, "telemetry", limits, size=1, check=check)
        self._batcher: Batcher[TelemetryEvent, UUID | None] = Batcher(
            self._insert,
            name="telemetry",
            max_batch=max_batch,
            max_waiting=50_000,
            outages=(psycopg.OperationalError, psycopg.InterfaceError),
        )

    def open(self) -> None:
        self._pool.open()

    async def record(self, event: TelemetryEvent) -> UUID | None:
        """Return once the event is durable: for a view, the session that its viewer is in.

        Raise psycopg.Error when the database is away.
        """
        return await self._batcher.submit(event)

    async def close(self) -> None:
        await self._batcher.close()
        self._pool.close()

    def _insert(self, events: Sequence[TelemetryEvent]) -> Sequence[UUID | BaseException | None]:
        rows = [(*each[:5], orjson.dumps(each.details).decode(), *each[6:]) for each in events]
        given = (*map(list, zip(*rows, strict=True)), self._repeat)
        try:
            with self._pool.connection() as conn:
                ((sessions,),) = conn.execute(INSERT, given, prepare=True).fetchall()
        except psycopg.DataError as error:
            # What can't be stored must not take its batch with it.
            return [error] if len(events) == 1 else [self._insert([one])[0] for one in events]
        return [None if session is None else UUID(session) for session in sessions]


def forget_sessions(conn: Connection[Any], repeat: timedelta) -> int:
    """Delete the sessions that are over; return how many."""
    with conn.transaction():
        lock_in_transaction(conn, Lock.TELEMETRY)
        return conn.execute(FORGET, (repeat,)).rowcount


def forget_events(conn: Connection[Any], before: datetime) -> int:
    """Delete events that happened before that, in small batches; return how many.

    `conn` is in autocommit mode. What lies behind a newer one in their order goes with that.
    """
    forgotten, went = 0, BATCH_EVENTS
    while went == BATCH_EVENTS:
        given = {"before": before, "batch": BATCH_EVENTS}
        went = conn.execute(FORGET_EVENTS, given).rowcount
        forgotten += went
    return forgotten


def views_of(cursor: Cursor[Any], video_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the views by video; videos without a view are missing."""
    cursor.execute(VIEWS, (list(video_ids),), prepare=True)
    return dict(cursor.fetchall())
