"""What a viewer has watched or liked, by what is recorded itself: no consumer has to have come by,
and nothing that was made before can be out of date."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.upload import Upload
from domain.video_likes import stream_id
from infra.codec import topics_of
from infra.event_store import EVENTS

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


async def seen_or_gone(
    conn: AsyncConnection[TupleRow], viewer: str, videos: Sequence[UUID]
) -> set[UUID]:
    """Those of the videos that the viewer ever watched or liked, and those that were removed.

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
