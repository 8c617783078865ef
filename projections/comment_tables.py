"""The tables of the comments, and what they hold about persons.

Also what comments get in them from other streams: likes, and replies; and whether they are listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.comment_likes import CommentLikes
from engine.personal_data import IN_THE_LOG, Blanked, Left, PersonalEvents, PersonalTable
from engine.projection import Projection, columns, last_told

# `counts` holds the number of rows in `comments` per video; the video ids of `removed` get no
# rows any more, since a comment may be recorded just after its video's removal.
FIRST_TABLES: LiteralString = """
CREATE TABLE {schema}.comments (
    comment_id uuid PRIMARY KEY,
    video_id uuid NOT NULL,
    position bigint NOT NULL,
    author text NOT NULL,
    content text NOT NULL,
    edited boolean NOT NULL DEFAULT false,
    language text,
    confidence double precision,
    translated_text text,
    translation_status text NOT NULL DEFAULT 'pending',
    reason text,
    written_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL);
CREATE INDEX comments_by_video ON {schema}.comments (video_id, position);
CREATE INDEX comments_open ON {schema}.comments (translation_status, written_at)
    WHERE translation_status IN ('pending', 'failed', 'skipped');
CREATE TABLE {schema}.counts (video_id uuid PRIMARY KEY, comments bigint NOT NULL)
    WITH (fillfactor = 50);
CREATE TABLE {schema}.removed (video_id uuid PRIMARY KEY)
"""
# `hidden` keeps what a comment had while not everybody sees it, so that nothing is lost when it
# comes back. `revision` is known of what is held.
ADD_HIDDEN: LiteralString = """
CREATE TABLE {schema}.hidden (
    LIKE {schema}.comments INCLUDING DEFAULTS,
    PRIMARY KEY (comment_id),
    standing text NOT NULL,
    held_for text,
    revision int,
    video_owner text COLLATE "C",
    removed_as text,
    stated_reason text);
CREATE INDEX hidden_by_video ON {schema}.hidden (video_id, position);
CREATE INDEX hidden_by_author ON {schema}.hidden (video_id, author, position);
CREATE INDEX hidden_held ON {schema}.hidden (position) WHERE standing = 'held';
CREATE INDEX hidden_held_by_owner ON {schema}.hidden (video_owner, position)
    WHERE standing = 'held';
CREATE TABLE {schema}.policies (video_id uuid PRIMARY KEY, policy text NOT NULL)
"""
# Whose the reason is that is stated.
ADD_DECIDED: LiteralString = f"""
ALTER TABLE {{schema}}.hidden ADD COLUMN decided_by text COLLATE "C";
UPDATE {{schema}}.hidden
SET decided_by = {last_told("comment_id", "actor", Comment.Removed, Comment.Rejected)}
WHERE standing = 'removed'
"""
# `tallies` holds what other streams than a comment's own add to it, in whatever order they come:
# likes, and replies that are posted (seen while their parent is listed). `position`, and `posted`
# in seconds since 1970, are there while it is listed: everybody sees it, and it is no reply. There
# is no row that tells nothing. What is added to a row is one for a moment, perhaps with fewer likes
# than none. `score` is the order of the top comments: see `CommentOrder`.
ADD_REPLIES: LiteralString = """
ALTER TABLE {schema}.comments ADD COLUMN parent_id uuid;
ALTER TABLE {schema}.hidden ADD COLUMN parent_id uuid;
CREATE INDEX comments_listed ON {schema}.comments (video_id, position) WHERE parent_id IS NULL;
CREATE INDEX comments_replies ON {schema}.comments (parent_id, position)
    WHERE parent_id IS NOT NULL;
CREATE TABLE {schema}.tallies (
    comment_id uuid PRIMARY KEY,
    video_id uuid NOT NULL,
    likes bigint NOT NULL,
    replies bigint NOT NULL,
    position bigint,
    posted bigint,
    score bigint GENERATED ALWAYS AS (
        posted + round(2592000 * ln((1 + greatest(likes, 0))::float8) / ln(2::float8))::bigint
    ) STORED)
    WITH (fillfactor = 50);
CREATE INDEX tallies_top ON {schema}.tallies (video_id, score DESC NULLS LAST, position DESC);
CREATE INDEX tallies_unlisted ON {schema}.tallies (video_id)
    WHERE position IS NULL AND replies > 0;
INSERT INTO {schema}.tallies (comment_id, video_id, likes, replies, position, posted)
SELECT comment_id, video_id, 0, 0, position, floor(extract(epoch FROM created_at))::bigint
FROM {schema}.comments
"""
COMMENTS_GO = Left("deleted by `comment.deleted` and `comment.withdrawn`, which count")
EMPTIED: LiteralString = "content = '', translated_text = NULL"
PERSONAL = (
    PersonalTable(
        name="comments.comments",
        holds="comments that everybody sees, with their translation",
        kept="follows the event log",
        table="{schema}.comments",
        projection="comments",
        columns=("author",),
        forget=COMMENTS_GO,
        emptied=EMPTIED,
    ),
    PersonalTable(
        name="comments.hidden",
        holds="comments that are held or removed",
        kept="follows the event log",
        table="{schema}.hidden",
        projection="comments",
        columns=("author",),
        shown="comment_id, video_id, content, edited, language, translated_text, created_at, "
        "standing, held_for, removed_as, stated_reason",
        forget=COMMENTS_GO,
        emptied=EMPTIED,
    ),
    PersonalTable(
        name="comments.decided",
        holds="comments of others that somebody removed, with the reason",
        kept="follows the event log",
        table="{schema}.hidden",
        projection="comments",
        columns=("decided_by",),
        shown="comment_id, removed_as, stated_reason",
        forget=Blanked("decided_by = NULL, stated_reason = NULL", "the reason is deleted"),
    ),
    PersonalTable(
        name="comments.held_for_owner",
        holds="other people's comments that wait for the approval of a video's owner",
        kept="follows the event log",
        table="{schema}.hidden",
        projection="comments",
        columns=("video_owner",),
        shown=None,
        forget=Blanked("video_owner = NULL", "moderators can still approve them"),
    ),
    PersonalEvents(
        name="events.held_for_owner",
        holds="other people's comments that were held, as far as the video's owner is named",
        kept="the event log is kept for good",
        events=(Comment.Submitted, Comment.Withheld),
        subject="video_owner",
        shown=False,
        forget=IN_THE_LOG,
    ),
)
COLUMNS: LiteralString = (
    "comment_id, video_id, position, author, content, edited, language, confidence, "
    "translated_text, translation_status, reason, written_at, created_at, parent_id"
)
POSTED_AT: LiteralString = "floor(extract(epoch FROM created_at))::bigint"
# What is told of a comment that everybody begins to see, or that not everybody sees any more.
MOVED: LiteralString = f"comment_id, video_id, parent_id, position, {POSTED_AT}"

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
