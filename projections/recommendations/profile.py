"""What is known of a user: the videos watched last, and the likes that stand."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from projections.likes import Likes
from projections.log import END_OF_LOG
from projections.recommendations.model import Engaged, Profile

MOST_WATCHED, MOST_LIKED = 20, 10

WATCHED = b"""
SELECT video_id, at FROM analytics.watched WHERE viewer = %s ORDER BY at DESC, video_id LIMIT %s
"""
LIKED_AT = b"""
SELECT video_id, liked_at FROM analytics.engaged
WHERE viewer = %s AND video_id = ANY (%s) AND liked_at IS NOT NULL
"""


async def profile_of(
    analytics_conn: AsyncConnection[TupleRow],
    likes: Likes,
    main_conn: AsyncConnection[TupleRow],
    user_id: str,
) -> Profile:
    """The profile of a user; an empty one of a user of whom nothing is known.

    `main_conn` is to the database of `likes`. A like that the analytics have not seen yet is taken
    to be of now.
    """
    async with analytics_conn.cursor(row_factory=class_row(Engaged)) as cursor:
        await cursor.execute(WATCHED, (user_id, MOST_WATCHED))
        watched = await cursor.fetchall()
    standing = await likes.liked_page(main_conn, user_id, END_OF_LOG, MOST_LIKED)
    times = await _liked_at(analytics_conn, user_id, [like.video_id for like in standing])
    now = datetime.now(UTC)
    liked = [Engaged(like.video_id, times.get(like.video_id, now)) for like in standing]
    return Profile(user_id, watched, liked)


async def _liked_at(
    conn: AsyncConnection[TupleRow], user_id: str, videos: list[UUID]
) -> dict[UUID, datetime]:
    cursor = await conn.execute(LIKED_AT, (user_id, videos))
    return dict(await cursor.fetchall())
