"""The tables of the likes of comments in the read model of likes, and what fills them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import LiteralString
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.comment_likes import CommentLikes
from engine.personal_data import Deleted, PersonalTable
from engine.projection import Projection, columns

# As those of videos: a row per standing like, and their number per comment.
ADD_COMMENT_LIKES: LiteralString = """
CREATE TABLE {schema}.comment_likes (
    comment_id uuid NOT NULL,
    viewer text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (comment_id, viewer));
CREATE INDEX comment_likes_by_viewer ON {schema}.comment_likes (viewer, position);
CREATE TABLE {schema}.comment_counts (
    comment_id uuid PRIMARY KEY,
    video_id uuid NOT NULL,
    likes bigint NOT NULL)
    WITH (fillfactor = 50);
CREATE INDEX comment_counts_by_video ON {schema}.comment_counts (video_id)
"""
PERSONAL = (
    PersonalTable(
        name="likes.comment_likes",
        holds="likes of comments that stand",
        kept="follows the event log",
        table="{schema}.comment_likes",
        projection="likes",
        columns=("viewer",),
        # Their number stays, as that of likes of videos does.
        forget=Deleted(),
    ),
)

ADD: LiteralString = """
INSERT INTO {schema}.comment_likes (comment_id, viewer, position)
SELECT * FROM unnest(%b::uuid[], %b::text[], %b::bigint[])
"""
DROP: LiteralString = """
DELETE FROM {schema}.comment_likes l
USING unnest(%b::uuid[], %b::text[]) AS gone(comment_id, viewer)
WHERE l.comment_id = gone.comment_id AND l.viewer = gone.viewer
"""
# In the order of the keys, and last: replays add to the same counts side by side.
ADD_DELTAS: LiteralString = """
INSERT INTO {schema}.comment_counts AS c (comment_id, video_id, likes)
SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::bigint[]) AS e(comment_id, video_id, likes)
ORDER BY comment_id
ON CONFLICT (comment_id) DO UPDATE SET likes = c.likes + excluded.likes
"""
REMOVE: LiteralString = """
WITH counted AS (
    DELETE FROM {schema}.comment_counts WHERE video_id = ANY (%b::uuid[]) RETURNING comment_id)
DELETE FROM {schema}.comment_likes USING counted
WHERE comment_likes.comment_id = counted.comment_id
"""

CommentLike = tuple[int, CommentLikes.Liked | CommentLikes.Unliked]


def write_likes(
    likes: Projection, changes: Sequence[CommentLike], cursor: Cursor[TupleRow]
) -> None:
    """Write likes and unlikes of comments, each with its position, in their order."""
    deltas: dict[tuple[UUID, UUID], int] = {}
    standing: dict[tuple[UUID, str], int] = {}
    lost: set[tuple[UUID, str]] = set()
    for position, event in changes:
        comment, pair = (event.comment_id, event.video_id), (event.comment_id, event.viewer)
        if isinstance(event, CommentLikes.Liked):
            deltas[comment] = deltas.get(comment, 0) + 1
            standing[pair] = position
        else:
            deltas[comment] = deltas.get(comment, 0) - 1
            standing.pop(pair, None)
            lost.add(pair)
    if lost:
        cursor.execute(likes.sql(DROP), columns(lost))
    if standing:
        cursor.execute(likes.sql(ADD), columns((*pair, at) for pair, at in standing.items()))
    if deltas:
        rows = ((*comment, delta) for comment, delta in deltas.items())
        cursor.execute(likes.sql(ADD_DELTAS), columns(rows))


def remove_likes(likes: Projection, videos: Collection[UUID], cursor: Cursor[TupleRow]) -> None:
    """Remove the likes of the comments on these videos."""
    cursor.execute(likes.sql(REMOVE), (list(videos),))
