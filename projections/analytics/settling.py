"""Settles what trending's windows hold, but for their newest hours: a row for each video.

So a ranking costs the same however much has happened. The hour before the present one is left out
too, because most of what comes late belongs there; what comes later still is in the next settling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from projections.analytics.sums import FROM_ROLLUPS
from projections.analytics.windows import HOUR, Window, edges_of, start_of_hour

# Only what changed is written: within an hour that is little.
SETTLE = f"""
WITH fresh AS MATERIALIZED ({FROM_ROLLUPS}), gone AS (
    DELETE FROM analytics.trending_sums AS kept
    WHERE time_range = %(time_range)s
      AND NOT EXISTS (SELECT FROM fresh WHERE fresh.video_id = kept.video_id))
INSERT INTO analytics.trending_sums AS kept
SELECT %(time_range)s, fresh.* FROM fresh
ON CONFLICT (time_range, video_id) DO UPDATE
SET views = excluded.views, likes = excluded.likes, comments = excluded.comments,
    minutes = excluded.minutes, recent_views = excluded.recent_views,
    recent_likes = excluded.recent_likes, recent_comments = excluded.recent_comments,
    recent_minutes = excluded.recent_minutes
WHERE kept IS DISTINCT FROM excluded
""".encode()
TELL = b"""
INSERT INTO analytics.trending_settled (time_range, hour, recent_hours) VALUES (%s, %s, %s)
ON CONFLICT (time_range) DO UPDATE SET hour = excluded.hour, recent_hours = excluded.recent_hours
"""
SETTLED = b"SELECT hour FROM analytics.trending_settled WHERE time_range = %s AND recent_hours = %s"
LOCK = b"SELECT pg_try_advisory_xact_lock(7104878, 6)"


@dataclass(frozen=True, slots=True)
class Settled:
    """Sums of the window that ended in `hour`; what happened since `until` is not in them."""

    hour: datetime

    @property
    def until(self) -> datetime:
        return self.hour - HOUR


def settle(conn: Connection[TupleRow], window: Window, *, recent_hours: int, now: datetime) -> bool:
    """Settle one window as it is now; False where another process is at it."""
    hour = start_of_hour(now)
    edges = replace(edges_of(window, now, recent_hours), until=Settled(hour).until)
    given: dict[str, Any] = {"time_range": window.value, **edges.parameters()}
    with conn.transaction():
        (mine,) = conn.execute(LOCK).fetchone() or (False,)
        if mine:
            conn.execute(SETTLE, given)
            conn.execute(TELL, (window.value, hour, recent_hours))
    return bool(mine)


async def settled(
    conn: AsyncConnection[TupleRow], window: Window, *, recent_hours: int, now: datetime
) -> Settled | None:
    """The sums that can be used now: of this hour, or of the one before while it is being settled.

    To be used in a transaction that sees one state of the database.
    """
    cursor = await conn.execute(SETTLED, (window.value, recent_hours))
    row = await cursor.fetchone()
    if row is None or not row[0] <= now < row[0] + 2 * HOUR:
        return None
    return Settled(row[0])
