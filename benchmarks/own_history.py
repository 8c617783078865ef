"""The history of the installation that the settings lead to: what its analytics have recorded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from backlot.database import database_at_hand, database_url
from benchmarks.history import Event, Film, History, Kind, counted
from benchmarks.history_files import HistoryUnusable
from infra.postgres.connection import open_connection
from infra.settings import Settings

# The watch time of a session belongs to its view.
EVENTS = b"""
SELECT happened."timestamp", user_id, happened.video_id, event_type,
       coalesce((metadata->>'delta')::int, 1) AS delta, watched
FROM analytics.video_analytics AS happened
JOIN analytics.videos AS video USING (video_id)
LEFT JOIN analytics.sessions AS session
    ON event_type = 'view' AND session.video_id = happened.video_id
   AND session.session = (metadata->>'session')::uuid
WHERE user_id IS NOT NULL AND event_type IN ('view', 'like', 'comment', 'share')
  AND video.completed_at IS NOT NULL AND NOT video.removed
  AND (event_type <> 'view' OR (metadata->>'counts')::boolean)
ORDER BY happened."timestamp", event_id
"""
FILMS = b"""
SELECT video_id, category, owner, completed_at FROM analytics.videos
WHERE completed_at IS NOT NULL AND NOT removed
"""


class Recorded(NamedTuple):
    """An event as the analytics keep it; `delta` is -1 for what was taken back."""

    at: datetime
    user: str
    video_id: UUID
    kind: str
    delta: int
    watched: float | None


def own_history(settings: Settings) -> History:
    """Return what known viewers did; raise DatabaseAway, NothingRuns, HistoryUnusable."""
    url = settings.analytics.url(database_url(settings))
    with database_at_hand(), open_connection(url, "bench") as conn:
        rows = [Recorded(*row) for row in conn.execute(EVENTS)]
        films = _films(conn)
    events = [_event(row) for row in rows if row.delta > 0 or row.kind == Kind.LIKE]
    if not events:
        raise HistoryUnusable(
            "nobody who is known has watched or liked anything here yet: give --history FILE"
        )
    return History(films, counted(events, settings.watch.view_repeat))


def _films(conn: Connection[TupleRow]) -> Sequence[Film]:
    rows = conn.execute(FILMS)
    return [Film(video, str(video), category, owner, at) for video, category, owner, at in rows]


def _event(row: Recorded) -> Event:
    kind = Kind(row.kind) if row.delta > 0 else Kind.UNLIKE
    return Event(row.at, row.user, row.video_id, kind, row.watched)
