"""What is a user's own in recommendations: the profile, what was dismissed, and all that was seen.

It is never kept: each list is made from what the user has done until then. Those of all who wait
are read together, one statement for each database.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.log import END_OF_LOG
from engine.projection import columns
from infra.postgres.connection import array
from projections.dismissals import Dismissals
from projections.likes import Likes
from projections.recommendations.model import EngagedVideo, Profile, VideoKey
from projections.recommendations.prompt import MOST_LIKED

MOST_DISMISSED = 1_000
"""So many, the latest, are looked up to be left out of the candidates; none is shown, however old
its dismissal is."""
MOST_ENGAGED = 1_000
"""Of who has engaged with more, candidates are looked up instead."""

DECIDED: LiteralString = """
SELECT ARRAY(SELECT video_id FROM {likes}.likes AS l WHERE l.viewer = asked.viewer
             ORDER BY position DESC LIMIT %b),
       ARRAY(SELECT video_id FROM {dismissals}.dismissed AS d WHERE d.viewer = asked.viewer
             ORDER BY position DESC LIMIT %b)
FROM unnest(%b::text[]) WITH ORDINALITY AS asked (viewer, place) ORDER BY place
"""
# Ids come as one text, 16 bytes each: a thousand take a tenth of the time. What was liked has its
# time here, too.
DONE = b"""
SELECT v.last_watched_ids, v.last_watched_at,
       ARRAY(SELECT extract(epoch FROM e.liked_at)::float8
             FROM unnest(asked.liked::uuid[]) WITH ORDINALITY AS l (video_id, place)
             LEFT JOIN analytics.engaged AS e ON e.viewer = asked.viewer
                                             AND e.video_id = l.video_id ORDER BY place),
       (SELECT string_agg(uuid_send(video_id), '') FROM (
            SELECT video_id FROM analytics.engaged AS e WHERE e.viewer = asked.viewer
            LIMIT %b) AS seen)
FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS asked (viewer, liked, place)
LEFT JOIN analytics.viewers AS v ON v.viewer = asked.viewer ORDER BY place
"""

Conn = AsyncConnection[TupleRow]


class UserDecisions(NamedTuple):
    """What a user likes (10 at most) and has dismissed (1,000 at most), newest first."""

    user_id: str
    liked: Sequence[UUID]
    dismissed: Sequence[UUID] = ()


class Own(NamedTuple):
    """What is a user's own; `engaged` is all that was ever watched or liked, None if too much."""

    profile: Profile
    dismissed: Sequence[UUID]
    engaged: Collection[VideoKey] | None


async def decisions_of(
    main: Conn, likes: Likes, dismissals: Dismissals, users: Sequence[str]
) -> list[UserDecisions]:
    """Return what these users decided; `main` leads to the read models. Raise psycopg.Error."""
    query = DECIDED.format(likes=likes.schema, dismissals=dismissals.schema).encode()
    async with main.cursor(binary=True) as cursor:
        await cursor.execute(query, (MOST_LIKED, MOST_DISMISSED, list(users)), prepare=True)
        rows = await cursor.fetchall()
    return [UserDecisions(user, *row) for user, row in zip(users, rows, strict=True)]


async def own_of(analytics: Conn, decided: Sequence[UserDecisions]) -> list[Own]:
    """Return what is these users' own; an empty profile where nothing is known.

    A like that the analytics have not seen yet is taken to be of now. What the user did not like to
    have watched says nothing of what to watch next. Raise psycopg.Error.
    """
    asked = [(each.user_id, array(map(str, each.liked))) for each in decided]
    async with analytics.cursor(binary=True) as cursor:
        await cursor.execute(DONE, (MOST_ENGAGED + 1, *columns(asked)), prepare=True)
        rows = await cursor.fetchall()
    return [_own(each, *row) for each, row in zip(decided, rows, strict=True)]


async def profile_of(analytics: Conn, likes: Likes, main: Conn, user_id: str) -> Profile:
    """Return the profile of a user, as in `own_of`.

    `main` is a connection to the database of `likes`.
    """
    standing = await likes.liked_page(main, user_id, END_OF_LOG, MOST_LIKED)
    (own,) = await own_of(analytics, [UserDecisions(user_id, [like.video_id for like in standing])])
    return own.profile


def _own(
    decided: UserDecisions,
    watched: Sequence[UUID] | None,
    watched_at: Sequence[float],
    liked_at: Sequence[float | None],
    engaged: bytes | None,
) -> Own:
    dismissed = frozenset(decided.dismissed)
    seen = zip(watched or (), watched_at or (), strict=True)
    likes = zip(decided.liked, liked_at, strict=True)
    profile = Profile(
        decided.user_id,
        _engaged(seen, dismissed),
        _engaged(likes, dismissed),
    )
    whole = engaged or b""
    keys = frozenset(whole[at : at + 16] for at in range(0, len(whole), 16))
    return Own(profile, decided.dismissed, keys if len(keys) <= MOST_ENGAGED else None)


def _engaged(videos: Any, without: Collection[UUID]) -> list[EngagedVideo]:
    now = datetime.now(UTC)
    return [
        EngagedVideo(video, now if at is None else datetime.fromtimestamp(at, UTC))
        for video, at in videos
        if not without or video not in without
    ]
