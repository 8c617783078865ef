"""Recommendations as they are shown: as the videos and the user are now."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.dismissals import Dismissal
from domain.dismissals import stream_id as dismissal_of
from domain.feedback import hour_id
from domain.upload import Upload
from domain.video_likes import stream_id as likes_of
from engine.event_store import EVENTS
from engine.log import topics_of
from projections.analytics.calendar import start_of_hour
from projections.catalog import Catalog, VideoRow
from projections.recommendations.blend import interleave
from projections.recommendations.model import RankedRecommendations, RankedVideo

# Each by key. A stream of likes is there once there was a like, also where it was taken back; of a
# dismissal the last event says whether it stands.
LEFT_OUT = f"""
SELECT video_id FROM unnest(%(videos)s::uuid[], %(likes)s::uuid[], %(dismissals)s::uuid[])
    AS asked (video_id, likes_id, dismissal_id)
WHERE EXISTS (SELECT FROM {EVENTS} AS e WHERE e.originator_id = likes_id)
   OR EXISTS (SELECT FROM {EVENTS} AS e
              WHERE e.originator_id = video_id AND e.topic = ANY (%(removed)s))
   OR (SELECT convert_from(e.state, 'UTF8')::json->>'visibility' FROM {EVENTS} AS e
       WHERE e.originator_id = video_id AND e.topic = ANY (%(shown)s)
       ORDER BY e.originator_version DESC LIMIT 1) <> 'public'
   OR (SELECT e.topic FROM {EVENTS} AS e WHERE e.originator_id = dismissal_id
       ORDER BY e.originator_version DESC LIMIT 1) = ANY (%(dismissed)s)
   OR EXISTS (SELECT FROM public.backlot_telemetry AS t
              WHERE t.topic = 'video.viewed' AND t.user_id = %(viewer)s
                AND t.video_id = asked.video_id)
""".encode()
REMOVED = topics_of(Upload.Removed)
SHOWN = topics_of(Upload.VisibilityChanged)
DISMISSED = topics_of(Dismissal.Dismissed)

PLAIN = "Picked for you"
"""In the place of a reason that names what has changed since."""

Conn = AsyncConnection[TupleRow]


async def display(
    conn: Conn,
    catalog: Catalog,
    user_id: str,
    made: RankedRecommendations,
    limit: int,
    at: datetime,
) -> list[tuple[RankedVideo, VideoRow]]:
    """Return the first `limit` that can still be recommended: those behind fill the gaps.

    Nothing that was removed or is not public, that is the user's own, or that the user has watched,
    liked or dismissed by now, commands that were just acknowledged included. `conn` leads to the
    catalog and to the event log. Two orders that are compared are interleaved, the same way within
    an hour.
    """
    orders = [each for each in (made.items, made.rival) if each is not None]
    videos = list(dict.fromkeys(each.video_id for order in orders for each in order))
    found = await catalog.videos(conn, [*videos, *made.told])
    rows = {video: row for video, row in found.items() if row.is_public}
    given = {
        "videos": videos,
        "likes": [likes_of(video, user_id) for video in videos],
        "dismissals": [dismissal_of(video, user_id) for video in videos],
        "removed": REMOVED,
        "shown": SHOWN,
        "dismissed": DISMISSED,
        "viewer": user_id,
    }
    out = {video for (video,) in await (await conn.execute(LEFT_OUT, given)).fetchall()}
    out |= {video for video, row in rows.items() if row.owner == user_id}
    there, *rivals = [
        [each for each in order if each.video_id in rows and each.video_id not in out]
        for order in orders
    ]
    if rivals:
        there = interleave(there, rivals[0], hour_id(user_id, start_of_hour(at)))
    changed = {
        video
        for video, told in made.told.items()
        if video not in rows or told != (rows[video].title, rows[video].category)
    }
    # A language model has read the texts of the whole profile.
    profile_changed = not changed.issubset(videos)

    def now(each: RankedVideo) -> RankedVideo:
        """Return the recommendation without a reason that may repeat an old title or category."""
        stale = each.by_model and profile_changed
        if stale or each.video_id in changed or each.because in changed:
            return replace(each, reason=PLAIN)
        return each

    return [(now(each), rows[each.video_id]) for each in there[:limit]]
