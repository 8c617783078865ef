"""In which order comments are listed, as SQL."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import LiteralString, NamedTuple

from projections.comment_tables import COLUMNS, POSTED_AT


class CommentOrder(StrEnum):
    """In which order comments are listed: those on a video, or the replies to one of them.

    The score of TOP is when the comment was posted, in seconds, and 30 days for each time that
    1 + likes have doubled: twice as many likes make up for a month. So the order of two comments
    changes with likes alone, not with the time of the reading. The form is that of Reddit's "hot"
    (https://github.com/reddit-archive/reddit, `r2/r2/lib/db/_sorts.pyx`), which gives half a day
    for each factor of ten.
    """

    NEWEST = "newest"
    OLDEST = "oldest"
    TOP = "top"
    REPLIES = "replies"


class CommentPlace(NamedTuple):
    """A place in an order of comments; the score counts for TOP."""

    position: int
    score: int = 0


# Nobody sees a reply while its parent is not there for everybody.
IN_THREAD: LiteralString = (
    "(c.parent_id IS NULL OR EXISTS "
    "(SELECT FROM {schema}.comments p WHERE p.comment_id = c.parent_id))"
)
COUNTS: LiteralString = """
SELECT video_id, comments - coalesce((
    SELECT sum(replies) FROM {schema}.tallies t
    WHERE t.video_id = c.video_id AND t.position IS NULL AND t.replies > 0), 0)::bigint
FROM {schema}.counts c WHERE video_id = ANY (%s)
"""
SHOWN: LiteralString = f"""
SELECT c.{COLUMNS.replace(", ", ", c.")}, coalesce(t.likes, 0) AS like_count,
       CASE WHEN c.parent_id IS NULL THEN coalesce(t.replies, 0) END AS reply_count, t.score
FROM {{schema}}.comments c LEFT JOIN {{schema}}.tallies t USING (comment_id)
WHERE"""
FOUND: LiteralString = SHOWN + " comment_id = ANY (%(ids)s)"
IN_ORDER: Mapping[CommentOrder, LiteralString] = {
    CommentOrder.NEWEST: SHOWN
    + """ c.video_id = %(of)s AND c.parent_id IS NULL AND c.position < %(position)s
    ORDER BY c.position DESC LIMIT %(limit)s""",
    CommentOrder.OLDEST: SHOWN
    + """ c.video_id = %(of)s AND c.parent_id IS NULL AND c.position > %(position)s
    ORDER BY c.position LIMIT %(limit)s""",
    CommentOrder.TOP: SHOWN
    + """ t.video_id = %(of)s AND (t.score, t.position) < (%(score)s, %(position)s)
    ORDER BY t.score DESC NULLS LAST, t.position DESC LIMIT %(limit)s""",
    CommentOrder.REPLIES: SHOWN
    + """ c.parent_id = %(of)s AND c.position > %(position)s
    ORDER BY c.position LIMIT %(limit)s""",
}
# The same of what not everybody sees, as if nobody liked it.
HIDDEN_IN_ORDER: Mapping[CommentOrder, LiteralString] = {
    CommentOrder.NEWEST: """ video_id = %(of)s AND parent_id IS NULL AND position < %(position)s
    ORDER BY position DESC LIMIT %(limit)s""",
    CommentOrder.OLDEST: """ video_id = %(of)s AND parent_id IS NULL AND position > %(position)s
    ORDER BY position LIMIT %(limit)s""",
    CommentOrder.TOP: f""" video_id = %(of)s AND parent_id IS NULL
        AND ({POSTED_AT}, position) < (%(score)s, %(position)s)
    ORDER BY {POSTED_AT} DESC, position DESC LIMIT %(limit)s""",
    CommentOrder.REPLIES: """ parent_id = %(of)s AND position > %(position)s
    ORDER BY position LIMIT %(limit)s""",
}
