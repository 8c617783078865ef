"""What a comment's row gets from other streams: likes, and replies; and whether it is listed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.comment_likes import CommentLikes
from engine.projection import Projection, columns

# In the order of the keys, and last: replays add to the same rows side by side. A video that the
# same batch removes has lost its rows by then, and gets no new ones.
ADD_DELTAS: LiteralString = """
INSERT INTO {schema}.counts AS c (video_id, comments)
SELECT * FROM unnest(%b::uuid[], %b::bigint[]) AS e(video_id, comments)
WHERE NOT EXISTS (SELECT FROM {schema}.removed r WHERE r.video_id = e.video_id)
ORDER BY video_id
ON CONFLICT (video_id) DO UPDATE SET comments = c.comments + excluded.comments
"""
# Of a place, NULL stands for what no event has moved, and 0 for what is listed no longer.
ADD_TALLIES: LiteralString = """
INSERT INTO {schema}.tallies AS t (comment_id, video_id, likes, replies, position, posted)
SELECT * FROM unnest(
    %b::uuid[], %b::uuid[], %b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[])
    AS e(comment_id, video_id, likes, replies, position, posted)
WHERE NOT EXISTS (SELECT FROM {schema}.removed r WHERE r.video_id = e.video_id)
ORDER BY comment_id
ON CONFLICT (comment_id) DO UPDATE SET
    likes = t.likes + excluded.likes, replies = t.replies + excluded.replies,
    position = CASE WHEN excluded.position IS NULL THEN t.position
                    ELSE nullif(excluded.position, 0) END,
    posted = CASE WHEN excluded.position IS NULL THEN t.posted ELSE excluded.posted END
"""
# Which rows there are must not depend on where the batches were cut. These are locked by now.
TIDY_TALLIES: LiteralString = """
WITH changed AS (SELECT unnest(%b::uuid[]) AS id),
     empty AS (
        DELETE FROM {schema}.tallies USING changed
        WHERE comment_id = id AND coalesce(position, 0) = 0 AND likes = 0 AND replies = 0)
UPDATE {schema}.tallies SET position = NULL FROM changed
WHERE comment_id = id AND position = 0 AND (likes <> 0 OR replies <> 0)
"""


@dataclass(slots=True)
class TallyChange:
    """What a batch adds to a comment's row, and where it leaves it listed."""

    video_id: UUID
    likes: int = 0
    replies: int = 0
    position: int | None = None
    posted: int | None = None


@dataclass(slots=True)
class TallyChanges:
    """What a batch comes to: the number of comments per video, and the rows of comments."""

    deltas: defaultdict[UUID, int] = field(default_factory=lambda: defaultdict(int))
    tallies: dict[UUID, TallyChange] = field(default_factory=dict)

    def like(self, event: CommentLikes.Event) -> None:
        """Take in a like or an unlike."""
        change = 1 if isinstance(event, CommentLikes.Liked) else -1
        self._of(event.comment_id, event.video_id).likes += change

    def appear(self, moved: Iterable[Sequence[Any]]) -> None:
        """Take in comments that everybody sees from now on, as MOVED tells of them."""
        for comment_id, video_id, parent_id, position, posted in moved:
            self.deltas[video_id] += 1
            if parent_id is None:
                change = self._of(comment_id, video_id)
                change.position, change.posted = position, posted
            else:
                self._of(parent_id, video_id).replies += 1

    def vanish(self, moved: Iterable[Sequence[Any]]) -> None:
        """Take in comments that not everybody sees any more, as MOVED tells of them."""
        for comment_id, video_id, parent_id, _, _ in moved:
            self.deltas[video_id] -= 1
            if parent_id is None:
                change = self._of(comment_id, video_id)
                change.position, change.posted = 0, None
            else:
                self._of(parent_id, video_id).replies -= 1

    def write(self, comments: Projection, cursor: Cursor[TupleRow]) -> None:
        """Write all of it."""
        if self.deltas:
            cursor.execute(comments.sql(ADD_DELTAS), columns(self.deltas.items()))
        if not self.tallies:
            return
        rows = [
            (comment_id, each.video_id, each.likes, each.replies, each.position, each.posted)
            for comment_id, each in self.tallies.items()
        ]
        cursor.execute(comments.sql(ADD_TALLIES), columns(rows))
        # A row may be empty after all where nothing was added to it.
        less = [row[0] for row in rows if not row[4] and row[2] <= 0 and row[3] <= 0]
        unlisted = [row[0] for row in rows if row[4] == 0]
        if changed := {*less, *unlisted}:
            cursor.execute(comments.sql(TIDY_TALLIES), (list(changed),))

    def _of(self, comment_id: UUID, video_id: UUID) -> TallyChange:
        change = self.tallies.get(comment_id)
        if change is None:
            change = self.tallies[comment_id] = TallyChange(video_id)
        return change
