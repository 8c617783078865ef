"""Cached recommendations as they are displayed: as the videos and the user are now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.upload import Upload
from domain.video_likes import stream_id
from engine.event_store import EVENTS
from engine.log import topics_of
from projections.catalog import Catalog, VideoRow
from projections.recommendations.model import RankedRecommendations, Recommended

# Each by key. A stream of likes is there once there was a like, also where it was taken back.
SETTLED = f"""
SELECT video_id FROM unnest(%(videos)s::uuid[], %(likes)s::uuid[]) AS asked (video_id, likes_id)
WHERE EXISTS (SELECT FROM {EVENTS} AS e WHERE e.originator_id = likes_id)
   OR EXISTS (SELECT FROM {EVENTS} AS e
              WHERE e.originator_id = video_id AND e.topic = ANY (%(removed)s))
   OR EXISTS (SELECT FROM public.backlot_telemetry AS t
              WHERE t.topic = 'video.viewed' AND t.user_id = %(viewer)s
                AND t.video_id = asked.video_id)
""".encode()
REMOVED = topics_of(Upload.Removed)

PLAIN = "Picked for you"
"""In the place of a reason that tells what is no longer so."""

Shown = tuple[Recommended, VideoRow]


async def seen_or_gone(
    conn: AsyncConnection[TupleRow], viewer: str, videos: Sequence[UUID]
) -> set[UUID]:
    """Return those of the videos that the viewer ever watched or liked, or that were removed.

    `conn` leads to the event log. Commands that were acknowledged are included.
    """
    given = {
        "videos": list(videos),
        "likes": [stream_id(video, viewer) for video in videos],
        "removed": REMOVED,
        "viewer": viewer,
    }
    cursor = await conn.execute(SETTLED, given)
    return {video for (video,) in await cursor.fetchall()}


async def display(
    conn: AsyncConnection[TupleRow],
    catalog: Catalog,
    user_id: str,
    made: RankedRecommendations,
    limit: int,
) -> list[Shown]:
    """Return the first `limit` that can still be recommended: those behind fill the gaps.

    Nothing that was removed, that is the user's own, or that the user has watched or liked by now.
    """
    videos = [each.video_id for each in made.items]
    rows = await catalog.videos(conn, [*videos, *made.told])
    out = await seen_or_gone(conn, user_id, videos)
    out |= {video for video, row in rows.items() if row.owner == user_id}
    there = [each for each in made.items if each.video_id in rows and each.video_id not in out]
    changed = {
        video
        for video, told in made.told.items()
        if video not in rows or told != (rows[video].title, rows[video].category)
    }
    profile_changed = not changed.issubset(videos)
    return [
        (_as_now(each, changed, profile_changed), rows[each.video_id]) for each in there[:limit]
    ]


def _as_now(each: Recommended, changed: Collection[UUID], profile_changed: bool) -> Recommended:
    """Return the recommendation without a reason that may repeat what its videos were called."""
    # A language model has read the texts of the whole profile.
    stale = each.by_model and profile_changed
    if stale or each.video_id in changed or each.because in changed:
        return replace(each, reason=PLAIN)
    return each
