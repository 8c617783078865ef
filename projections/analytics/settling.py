"""Settles what trending's windows hold, but for their newest hours: a row for each video.

So a ranking costs the same however much has happened. Left out are the present hour, and the one
before until most of what comes late is there; what comes later still is in the next settling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from infra.advisory_locks import Lock, try_lock_in_transaction
from projections.analytics.formula import Formula
from projections.analytics.leaders import SORT_KEY
from projections.analytics.sums import FROM_ROLLUPS
from projections.analytics.windows import HOUR, Window, edges_of, start_of_hour

# Only what changed is written: within an hour that is little.
SETTLE = f"""
WITH fresh AS MATERIALIZED (
    SELECT sums.*, {SORT_KEY} AS sort_key
    FROM ({FROM_ROLLUPS}) AS sums LEFT JOIN analytics.videos USING (video_id)
), gone AS (
    DELETE FROM analytics.trending_sums AS kept
    WHERE time_range = %(time_range)s
      AND NOT EXISTS (SELECT FROM fresh WHERE fresh.video_id = kept.video_id))
INSERT INTO analytics.trending_sums AS kept
SELECT %(time_range)s, fresh.* FROM fresh
ON CONFLICT (time_range, video_id) DO UPDATE
SET views = excluded.views, likes = excluded.likes, comments = excluded.comments,
    minutes = excluded.minutes, recent_views = excluded.recent_views,
    recent_likes = excluded.recent_likes, recent_comments = excluded.recent_comments,
    recent_minutes = excluded.recent_minutes, sort_key = excluded.sort_key
WHERE kept IS DISTINCT FROM excluded
""".encode()
TELL = b"""
INSERT INTO analytics.trending_settled (time_range, hour, until, recent_hours, formula)
VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (time_range) DO UPDATE
SET hour = excluded.hour, until = excluded.until, recent_hours = excluded.recent_hours,
    formula = excluded.formula
"""
SETTLED = b"""
SELECT hour, until, formula FROM analytics.trending_settled
WHERE time_range = %s AND recent_hours = %s
"""
# How late most events are at most; an hour is settled once it has ended so long ago.
LATE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Settled:
    """Sums of a window; what happened since `until` is not in them.

    `keyed` where their order is that of the formula asked for.
    """

    until: datetime
    keyed: bool


def settle(conn: Connection[TupleRow], window: Window, *, formula: Formula, now: datetime) -> bool:
    """Settle one window as it is now; False where another process is at it."""
    hour, until = start_of_hour(now), start_of_hour(now - LATE)
    edges = replace(edges_of(window, now, formula.recent_hours), until=until)
    given = {"time_range": window.value, **formula.weights(), **edges.parameters()}
    told = (window.value, hour, until, formula.recent_hours, Jsonb(formula.weights()))
    with conn.transaction():
        mine = try_lock_in_transaction(conn, Lock.TRENDING_SETTLEMENT)
        if mine:
            conn.execute(SETTLE, given)
            conn.execute(TELL, told)
    return bool(mine)


async def settled(
    conn: AsyncConnection[TupleRow], window: Window, *, formula: Formula, now: datetime
) -> Settled | None:
    """The sums that can be used now: of this hour, or of the one before while it is being settled.

    To be used in a transaction that sees one state of the database.
    """
    cursor = await conn.execute(SETTLED, (window.value, formula.recent_hours))
    row = await cursor.fetchone()
    if row is None or not row[0] <= now < row[0] + 2 * HOUR:
        return None
    return Settled(row[1], keyed=row[2] == formula.weights())
