"""The comments of each video, with what is known of their language."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Connection, Cursor
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.model import Aggregate
from domain.upload import Upload
from engine.projection import Batch, Projection, Write, columns, writing_by_kind
from infra.postgres.connection import fetch_as

# `counts` holds the number of rows in `comments` per video; the video ids of `removed` get no
# rows any more, since a comment may be recorded just after its video's removal.
TABLES: LiteralString = """
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

NOT_TRANSLATED: LiteralString = """
UPDATE {schema}.comments c SET translation_status = e.status, reason = e.reason
FROM unnest(%b::uuid[], %b::text[], %b::text[]) AS e(id, status, reason)
WHERE c.comment_id = e.id
"""


def _id(_: int, event: Aggregate.Event) -> tuple[UUID]:
    return (event.originator_id,)


WRITES: Mapping[type[Aggregate.Event], Write] = {
    Comment.Posted: Write(
        """
        WITH posted AS (
            INSERT INTO {schema}.comments
                (comment_id, video_id, position, author, content, created_at, written_at)
            SELECT *, created_at FROM unnest(
                %b::uuid[], %b::uuid[], %b::bigint[], %b::text[], %b::text[], %b::timestamptz[])
                AS e(comment_id, video_id, position, author, content, created_at)
            WHERE NOT EXISTS (SELECT FROM {schema}.removed r WHERE r.video_id = e.video_id)
            RETURNING video_id)
        SELECT video_id, count(*) FROM posted GROUP BY video_id
        """,
        lambda at, e: (e.originator_id, e.video_id, at, e.author, e.content, e.timestamp),
    ),
    Comment.Edited: Write(
        """
        UPDATE {schema}.comments c
        SET content = e.content, edited = true, language = NULL, confidence = NULL,
            translated_text = NULL, translation_status = 'pending', reason = NULL,
            written_at = e.at
        FROM unnest(%b::uuid[], %b::text[], %b::timestamptz[]) AS e(id, content, at)
        WHERE c.comment_id = e.id
        """,
        lambda _, e: (e.originator_id, e.content, e.timestamp),
    ),
    Comment.Deleted: Write(
        """
        WITH deleted AS (
            DELETE FROM {schema}.comments WHERE comment_id = ANY (%b::uuid[]) RETURNING video_id)
        SELECT video_id, -count(*) FROM deleted GROUP BY video_id
        """,
        _id,
    ),
    Comment.LanguageDetected: Write(
        """
        UPDATE {schema}.comments c
        SET language = e.language, confidence = e.confidence,
            translation_status = CASE WHEN e.language = e.target THEN 'not_needed'
                                      ELSE c.translation_status END
        FROM unnest(%b::uuid[], %b::text[], %b::double precision[], %b::text[])
            AS e(id, language, confidence, target)
        WHERE c.comment_id = e.id
        """,
        lambda _, e: (e.originator_id, e.language, e.confidence, e.target_language),
    ),
    Comment.Translated: Write(
        """
        UPDATE {schema}.comments c
        SET language = coalesce(c.language, e.language), translated_text = e.text,
            translation_status = 'translated', reason = NULL
        FROM unnest(%b::uuid[], %b::text[], %b::text[]) AS e(id, language, text)
        WHERE c.comment_id = e.id
        """,
        lambda _, e: (e.originator_id, e.original_language, e.translated_text),
    ),
    Comment.TranslationFailed: Write(
        NOT_TRANSLATED, lambda _, e: (e.originator_id, "failed", e.reason)
    ),
    Comment.TranslationSkipped: Write(
        NOT_TRANSLATED,
        lambda _, e: (e.originator_id, "skipped" if e.needed else "not_needed", e.reason),
    ),
    Upload.Removed: Write(
        """
        WITH videos AS (SELECT unnest(%b::uuid[]) AS id),
             gone AS (INSERT INTO {schema}.removed SELECT id FROM videos ON CONFLICT DO NOTHING),
             counted AS (DELETE FROM {schema}.counts USING videos WHERE video_id = id)
        DELETE FROM {schema}.comments USING videos WHERE video_id = id
        """,
        _id,
    ),
}
# Their statements tell by how much the number of each video's comments changes.
COUNTED = (Comment.Posted, Comment.Deleted)

# In the order of the keys, and last: replays add to the same counts side by side. A video that the
# same batch removes has lost its row by then, and gets no new one.
ADD_DELTAS: LiteralString = """
INSERT INTO {schema}.counts AS c (video_id, comments)
SELECT * FROM unnest(%b::uuid[], %b::bigint[]) AS e(video_id, comments)
WHERE NOT EXISTS (SELECT FROM {schema}.removed r WHERE r.video_id = e.video_id)
ORDER BY video_id
ON CONFLICT (video_id) DO UPDATE SET comments = c.comments + excluded.comments
"""
COUNTS: LiteralString = "SELECT video_id, comments FROM {schema}.counts WHERE video_id = ANY (%s)"
PAGE: LiteralString = """
SELECT comment_id, video_id, position, author, content, edited, language, confidence,
       translated_text, translation_status, reason, written_at, created_at
FROM {schema}.comments WHERE video_id = %s AND position < %s
ORDER BY position DESC LIMIT %s
"""

# Those that wait for too long, oldest first, and those whose reason not to be translated may have
# passed, if they are not too old.
UNTRANSLATED: LiteralString = """
(SELECT comment_id, written_at FROM {schema}.comments
 WHERE translation_status = 'pending' AND written_at < now() - %(overdue)s
 ORDER BY written_at LIMIT %(limit)s)
UNION ALL
(SELECT comment_id, written_at FROM {schema}.comments
 WHERE translation_status IN ('failed', 'skipped') AND reason = ANY (%(reasons)s)
       AND written_at BETWEEN now() - %(try_again)s AND now() - %(overdue)s
 ORDER BY written_at LIMIT %(limit)s)
ORDER BY written_at LIMIT %(limit)s
"""


class CommentRow(NamedTuple):
    """A comment that stands; `position` is where it was posted, `written_at` its present text's."""

    comment_id: UUID
    video_id: UUID
    position: int
    author: str
    content: str
    edited: bool
    language: str | None
    confidence: float | None
    translated_text: str | None
    translation_status: Any
    reason: str | None
    written_at: datetime
    created_at: datetime


class Comments(Projection):
    """The comments of each video, with what is known of their language."""

    name = "comments"
    version = 2
    events = tuple(WRITES)
    tables: ClassVar[LiteralString] = TABLES
    by_stream = True
    absorbing = (Upload.Removed,)

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        deltas: defaultdict[UUID, int] = defaultdict(int)
        for kind in writing_by_kind(self, WRITES, batch, cursor):
            if kind in COUNTED:
                for video, delta in cursor.fetchall():
                    deltas[video] += delta
        if deltas:
            cursor.execute(self.sql(ADD_DELTAS), columns(deltas.items()))

    async def counts(
        self, conn: AsyncConnection[TupleRow], videos: Sequence[UUID]
    ) -> dict[UUID, int]:
        """Return the number of comments of each of these videos that has or had any."""
        rows = await conn.execute(self.sql(COUNTS), (list(videos),))
        return dict(await rows.fetchall())

    def counts_of(self, cursor: Cursor[TupleRow], videos: Sequence[UUID]) -> dict[UUID, int]:
        """Return the same numbers to the command bus."""
        cursor.execute(self.sql(COUNTS), (list(videos),), prepare=True)
        return dict(cursor.fetchall())

    def untranslated(
        self,
        conn: Connection[TupleRow],
        overdue: timedelta,
        reasons: Sequence[str],
        try_again: timedelta,
        limit: int,
    ) -> list[UUID]:
        """Return comments whose present text is older than `overdue` and is not translated yet.

        A comment that failed or was skipped for one of these reasons is among them until its text
        is older than `try_again`.
        """
        limits = {"overdue": overdue, "try_again": try_again, "limit": limit}
        rows = conn.execute(self.sql(UNTRANSLATED), {**limits, "reasons": list(reasons)})
        return [comment_id for comment_id, _ in rows.fetchall()]

    async def page(
        self, conn: AsyncConnection[TupleRow], video_id: UUID, before: int, limit: int
    ) -> list[CommentRow]:
        """Return the video's comments posted before a position, newest first."""
        return await fetch_as(conn, CommentRow, self.sql(PAGE), (video_id, before, limit))
