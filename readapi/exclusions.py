"""What is not to be recommended to a user any more, by the log and the telemetry themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.dismissals import Dismissal
from domain.dismissals import stream_id as dismissal_of
from domain.upload import Upload
from domain.video_likes import stream_id as likes_of
from engine.event_store import EVENTS
from engine.log import topics_of
from engine.projection import columns

# Each by key. A stream of likes is there once there was a like, also where it was taken back; of a
# dismissal the last event says whether it stands.
REASONS = {
    "liked": f"EXISTS (SELECT FROM {EVENTS} AS e WHERE e.originator_id = likes_id)",
    "removed": f"""EXISTS (SELECT FROM {EVENTS} AS e
              WHERE e.originator_id = video_id AND e.topic = ANY (%(removed)s))""",
    "not public": f"""(SELECT convert_from(e.state, 'UTF8')::json->>'visibility' FROM {EVENTS} AS e
       WHERE e.originator_id = video_id AND e.topic = ANY (%(shown)s)
       ORDER BY e.originator_version DESC LIMIT 1) <> 'public'""",
    "dismissed": f"""(SELECT e.topic FROM {EVENTS} AS e WHERE e.originator_id = dismissal_id
       ORDER BY e.originator_version DESC LIMIT 1) = ANY (%(dismissed)s)""",
    "watched": """EXISTS (SELECT FROM public.backlot_telemetry AS t
              WHERE t.topic = 'video.viewed' AND t.user_id = asked.viewer
                AND t.video_id = asked.video_id)""",
}
ASKED = """unnest(%(viewers)s::text[], %(videos)s::uuid[], %(likes)s::uuid[],
                         %(dismissals)s::uuid[])
    WITH ORDINALITY AS asked (viewer, video_id, likes_id, dismissal_id, place)"""
LEFT_OUT = f"SELECT place FROM {ASKED}\nWHERE {' OR '.join(REASONS.values())}".encode()
FIRST_REASON = " ".join(f"WHEN {condition} THEN '{why}'" for why, condition in REASONS.items())
WHY = f"SELECT video_id, CASE {FIRST_REASON} END FROM {ASKED}".encode()
REMOVED = topics_of(Upload.Removed)
SHOWN = topics_of(Upload.VisibilityChanged)
DISMISSED = topics_of(Dismissal.Dismissed)


class Recommendable(NamedTuple):
    """Videos that may be recommended to a user."""

    user_id: str
    videos: Sequence[UUID]


async def left_out(
    conn: AsyncConnection[TupleRow], asked: Sequence[Recommendable]
) -> list[set[UUID]]:
    """Return which of these videos are not to be recommended to each user.

    What was removed or is not public, or what the user has watched, liked or dismissed by now,
    commands that were just acknowledged included. `conn` leads to the event log.
    """
    pairs = [(each.user_id, video) for each in asked for video in each.videos]
    found: list[set[UUID]] = [set() for _ in asked]
    if not pairs:
        return found
    given = _given(pairs)
    whose = [number for number, each in enumerate(asked) for _ in each.videos]
    for (place,) in await (await conn.execute(LEFT_OUT, given)).fetchall():
        found[whose[place - 1]].add(pairs[place - 1][1])
    return found


async def reasons_left_out(
    conn: AsyncConnection[TupleRow], user_id: str, videos: Sequence[UUID]
) -> dict[UUID, str]:
    """Return why those of the videos are not to be recommended that are left out: see REASONS."""
    if not videos:
        return {}
    rows = await (await conn.execute(WHY, _given([(user_id, each) for each in videos]))).fetchall()
    return {video: why for video, why in rows if why is not None}


def _given(pairs: Sequence[tuple[str, UUID]]) -> dict[str, Any]:
    """Return what the statements are given about pairs of a user and a video."""
    viewers, videos, likes, dismissals = columns(
        (user, video, likes_of(video, user), dismissal_of(video, user)) for user, video in pairs
    )
    return {
        "viewers": viewers,
        "videos": videos,
        "likes": likes,
        "dismissals": dismissals,
        "removed": REMOVED,
        "shown": SHOWN,
        "dismissed": DISMISSED,
    }
