"""What recommendations remember of viewers, and when that ends.

Of a viewer everything goes at once, once nothing was heard of them for so long: their turns have
numbers, and one without the others could not be taken back. What the videos have in common by
then stays, and fades by its half-life; it names nobody.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from engine.personal_data import (
    Deleted,
    Left,
    PersonalEntries,
    PersonalKeys,
    PersonalTable,
    Unsearched,
)
from infra.advisory_locks import Lock, lock_in_transaction
from infra.cache import drop_values
from projections import trending
from projections.recommendations.recommender import ENGAGED_PREFIX, PREFIX

TERM = "ENGAGEMENT_RETENTION_DAYS"
KEPT = "so many days after the viewer's last engagement"
CACHED = "RECOMMENDATIONS_CACHE_TTL_SECONDS"
TURNS: LiteralString = """viewer, watched, stayed, liked, ARRAY (
    SELECT named.video_id FROM unnest(t.videos) WITH ORDINALITY AS turns (number, turn)
    JOIN analytics.engagement AS named USING (number) ORDER BY turn) AS video_ids
"""
LAST_TURNS: LiteralString = f"{TURNS}, last_watched_ids, last_watched_at"
PERSONAL = (
    *(
        PersonalTable(
            name=f"analytics.{table}",
            holds=holds,
            kept=KEPT,
            setting=TERM,
            table=f"analytics.{table}",
            columns=("viewer",),
            shown=shown,
            analytics=True,
            # What their videos have in common stays.
            forget=Deleted(),
        )
        for table, shown, holds in (
            ("engaged", "*", "which videos somebody watched, stayed with, liked, and when"),
            ("viewers", LAST_TURNS, "the videos that somebody engaged with last"),
            ("earlier_turns", TURNS, "the videos that somebody engaged with before"),
        )
    ),
    PersonalTable(
        name="analytics.embeddings",
        holds="vectors made from the texts of an owner's videos",
        kept="as long as the video is public",
        table="analytics.embeddings",
        where="video_id IN (SELECT video_id FROM analytics.videos WHERE owner = %(subject)s)",
        shown="video_id, at",
        analytics=True,
        # Before whose videos they are is forgotten.
        forget=Deleted(),
    ),
    PersonalKeys(
        name="redis.recommendations",
        holds="recommendations as they were made for somebody",
        kept="so many seconds",
        setting=CACHED,
        pattern=f"{PREFIX}{{subject}}",
        forget=Deleted(),
    ),
    Unsearched(
        name="redis.recommended",
        holds="titles of somebody's videos in recommendations for others, categories of rankings",
        kept="so many seconds; rankings for minutes",
        setting=CACHED,
        where="Redis",
        keys=(f"{PREFIX}*", f"{trending.PREFIX}*"),
        forget=Left(
            "those with a video of the person are removed with the videos, and all rankings"
        ),
    ),
    PersonalKeys(
        name="redis.engaged",
        holds="that somebody's recommendations are to be made anew",
        kept="twice so many seconds",
        setting=CACHED,
        pattern=f"{ENGAGED_PREFIX}{{subject}}",
        forget=Deleted(),
    ),
    PersonalKeys(
        name="redis.language_model_calls",
        holds="how many calls of the language model were made for somebody on a day",
        kept="two days",
        pattern="backlot:*:calls:{digest}",
        forget=Deleted(),
    ),
    PersonalEntries(
        name="tasks.recommendations",
        holds="for whom recommendations are to be made in advance",
        kept="until the task has run; a dead one a week",
        pattern="backlot:recommendations*.msgs",
        suffix=".msgs",
        forget=Deleted(),
    ),
)

BATCH_VIEWERS = 200
FORGET = b"""
WITH gone AS (
    SELECT viewer FROM analytics.viewers
    WHERE hour < %(before)s
      AND coalesce(last_watched_at[1], 0) < extract(epoch FROM %(before)s::timestamptz)
    LIMIT %(batch)s),
earlier AS (
    DELETE FROM analytics.earlier_turns AS t USING gone WHERE t.viewer = gone.viewer),
engaged AS (
    DELETE FROM analytics.engaged AS e USING gone WHERE e.viewer = gone.viewer)
DELETE FROM analytics.viewers AS v USING gone WHERE v.viewer = gone.viewer
"""


async def drop_recommended(redis: Redis, videos: Collection[UUID]) -> int:
    """Drop what is cached for anybody and has one of these videos; return how many lists.

    With them go all rankings, which are soon made again: a key may have a category that only these
    videos had. Raise RedisError.
    """
    if not videos:
        return 0
    await drop_values(redis, trending.PREFIX)
    return await drop_values(redis, PREFIX, [str(video) for video in videos])


def forget_viewers(conn: Connection[TupleRow], before: datetime) -> int:
    """Forget the viewers of whom nothing was heard since then; return how many.

    `conn` is in autocommit mode; each batch is a transaction. Raise psycopg.Error.
    """
    forgotten, went = 0, BATCH_VIEWERS
    while went == BATCH_VIEWERS:
        with conn.transaction():
            lock_in_transaction(conn, Lock.RECOMMENDATION_ROWS)
            given = {"before": before, "batch": BATCH_VIEWERS}
            went = conn.execute(FORGET, given).rowcount
        forgotten += went
    return forgotten
