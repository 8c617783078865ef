"""The comments of each video, with what is known of their language, and those held or removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from math import floor
from typing import Any, ClassVar, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Connection, Cursor
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.comment_likes import CommentLikes
from domain.model import Aggregate
from domain.moderation import ActingAs, HoldCause, Standing
from domain.person import Person
from domain.upload import CommentPolicy, Upload
from engine.projection import Batch, Projection, Write, Writes, writing_by_kind
from infra.postgres.connection import fetch_as
from projections.comment_order import (
    COUNTS,
    FOUND,
    HIDDEN_IN_ORDER,
    IN_ORDER,
    IN_THREAD,
    CommentOrder,
    CommentPlace,
)
from projections.comment_tables import (
    ADD_DECIDED,
    ADD_HIDDEN,
    ADD_REPLIES,
    COLUMNS,
    FIRST_TABLES,
    MOVED,
    PERSONAL,
    TallyChanges,
)

NOT_TRANSLATED: LiteralString = """
UPDATE {schema}.comments c SET translation_status = e.status, reason = e.reason
FROM unnest(%b::uuid[], %b::text[], %b::text[]) AS e(id, status, reason)
WHERE c.comment_id = e.id
"""


def _id(_: int, event: Aggregate.Event) -> tuple[UUID]:
    return (event.originator_id,)


# What is hidden comes back as it was; its translation, where that is missing, is asked for now.
SHOW = Write(
    f"""
    WITH shown AS (
        DELETE FROM {{schema}}.hidden USING unnest(%b::uuid[], %b::timestamptz[]) AS e(id, at)
        WHERE comment_id = id RETURNING hidden.*, at)
    INSERT INTO {{schema}}.comments ({COLUMNS}) SELECT {COLUMNS.replace("written_at", "at")}
    FROM shown RETURNING {MOVED}
    """,
    lambda _, e: (e.originator_id, e.timestamp),
)
WRITES: Writes = {
    Comment.Posted: Write(
        f"""
        INSERT INTO {{schema}}.comments
            (comment_id, video_id, parent_id, position, author, content, created_at, written_at)
        SELECT *, created_at FROM unnest(
            %b::uuid[], %b::uuid[], %b::uuid[], %b::bigint[], %b::text[], %b::text[],
            %b::timestamptz[])
            AS e(comment_id, video_id, parent_id, position, author, content, created_at)
        WHERE NOT EXISTS (SELECT FROM {{schema}}.removed r WHERE r.video_id = e.video_id)
        RETURNING {MOVED}
        """,
        lambda at, e: (
            *(e.originator_id, e.video_id, e.parent_id, at, e.author, e.content, e.timestamp),
        ),
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
        f"DELETE FROM {{schema}}.comments WHERE comment_id = ANY (%b::uuid[]) RETURNING {MOVED}",
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
    Comment.Submitted: Write(
        f"""
        INSERT INTO {{schema}}.hidden ({COLUMNS}, standing, held_for, revision, video_owner)
        SELECT comment_id, video_id, position, author, content, false, NULL, NULL, NULL,
               'pending', NULL, at, at, parent_id, 'held', cause, 1, video_owner
        FROM unnest(
            %b::uuid[], %b::uuid[], %b::uuid[], %b::bigint[], %b::text[], %b::text[],
            %b::timestamptz[], %b::text[], %b::text[])
            AS e(comment_id, video_id, parent_id, position, author, content, at, cause,
                 video_owner)
        WHERE NOT EXISTS (SELECT FROM {{schema}}.removed r WHERE r.video_id = e.video_id)
        """,
        lambda at, e: (
            *(e.originator_id, e.video_id, e.parent_id, at, e.author, e.content, e.timestamp),
            *(e.cause, e.video_owner),
        ),
    ),
    Comment.Resubmitted: Write(
        """
        UPDATE {schema}.hidden h
        SET content = e.content, edited = true, written_at = e.at, revision = e.revision,
            held_for = e.cause
        FROM unnest(%b::uuid[], %b::text[], %b::timestamptz[], %b::int[], %b::text[])
            AS e(id, content, at, revision, cause)
        WHERE h.comment_id = e.id
        """,
        lambda _, e: (e.originator_id, e.content, e.timestamp, e.revision, e.cause),
    ),
    Comment.Withheld: Write(
        f"""
        WITH e AS (
            SELECT * FROM unnest(
                %b::uuid[], %b::text[], %b::timestamptz[], %b::int[], %b::text[], %b::text[])
                AS e(id, new, at, revision, cause, owner)),
        gone AS (
            DELETE FROM {{schema}}.comments USING e WHERE comment_id = id
            RETURNING comments.*, new, at, revision, cause, owner),
        kept AS (
            INSERT INTO {{schema}}.hidden ({COLUMNS}, standing, held_for, revision, video_owner)
            SELECT comment_id, video_id, position, author, new, true, NULL, NULL, NULL, 'pending',
                   NULL, at, created_at, parent_id, 'held', cause, revision, owner
            FROM gone)
        SELECT {MOVED} FROM gone
        """,
        lambda _, e: (
            *(e.originator_id, e.content, e.timestamp, e.revision, e.cause, e.video_owner),
        ),
    ),
    Comment.Removed: Write(
        f"""
        WITH gone AS (
            DELETE FROM {{schema}}.comments
            USING unnest(%b::uuid[], %b::text[], %b::text[], %b::text[])
                AS e(id, acted_as, why, actor)
            WHERE comment_id = id RETURNING comments.*, acted_as, why, actor),
        kept AS (
            INSERT INTO {{schema}}.hidden
                ({COLUMNS}, standing, removed_as, stated_reason, decided_by)
            SELECT {COLUMNS}, 'removed', acted_as, why, actor FROM gone)
        SELECT {MOVED} FROM gone
        """,
        lambda _, e: (e.originator_id, e.acted_as, e.stated_reason, e.actor),
    ),
    Comment.Rejected: Write(
        """
        UPDATE {schema}.hidden h
        SET standing = 'removed', removed_as = e.acted_as, stated_reason = e.why,
            decided_by = e.actor
        FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[]) AS e(id, acted_as, why, actor)
        WHERE h.comment_id = e.id
        """,
        lambda _, e: (e.originator_id, e.acted_as, e.stated_reason, e.actor),
    ),
    Comment.Approved: SHOW,
    Comment.Restored: SHOW,
    Comment.Withdrawn: Write(
        "DELETE FROM {schema}.hidden WHERE comment_id = ANY (%b::uuid[])", _id
    ),
    Upload.CommentPolicyChanged: Write(
        """
        INSERT INTO {schema}.policies (video_id, policy)
        SELECT * FROM unnest(%b::uuid[], %b::text[]) AS e(video_id, policy)
        ON CONFLICT (video_id) DO UPDATE SET policy = excluded.policy
        """,
        lambda _, e: (e.originator_id, e.comment_policy),
    ),
    Upload.Removed: Write(
        """
        WITH videos AS (SELECT unnest(%b::uuid[]) AS id),
             gone AS (INSERT INTO {schema}.removed SELECT id FROM videos ON CONFLICT DO NOTHING),
             counted AS (DELETE FROM {schema}.counts USING videos WHERE video_id = id),
             decided AS (DELETE FROM {schema}.policies USING videos WHERE video_id = id),
             hidden AS (DELETE FROM {schema}.hidden USING videos WHERE video_id = id),
             tallied AS (DELETE FROM {schema}.tallies USING videos WHERE video_id = id)
        DELETE FROM {schema}.comments USING videos WHERE video_id = id
        """,
        _id,
    ),
}
# Their statements tell which comments everybody sees from now on, or no longer.
APPEARING = frozenset({Comment.Posted, Comment.Approved, Comment.Restored})
VANISHING = frozenset({Comment.Deleted, Comment.Withheld, Comment.Removed})

HIDDEN: LiteralString = f"""
SELECT {COLUMNS}, standing, held_for, revision, removed_as, stated_reason FROM {{schema}}.hidden
WHERE"""
WIDTH = COLUMNS.count(",") + 1
POLICY: LiteralString = "SELECT policy FROM {schema}.policies WHERE video_id = %s"

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


# Those that nobody could translate, the newest text first.
NOT_TRANSLATED_NOW: LiteralString = """
SELECT comment_id, video_id, position, author, content, language, reason, written_at
FROM {schema}.comments
WHERE translation_status = 'failed' AND (written_at, position) < (%(at)s, %(position)s)
ORDER BY written_at DESC, position DESC LIMIT %(limit)s
"""


class UntranslatedComment(NamedTuple):
    """A comment without a translation, and why nobody could make one."""

    comment_id: UUID
    video_id: UUID
    position: int
    author: str
    content: str
    language: str | None
    reason: str | None
    written_at: datetime


class CommentRow(NamedTuple):
    """A comment; `position` is where it was posted, `written_at` when its present text was there.

    That is, when everybody saw it first, or again. The counts, and the `score` of one that is no
    reply, are known of what everybody sees.
    """

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
    parent_id: UUID | None
    like_count: int | None = None
    reply_count: int | None = None
    score: int | None = None

    def place(self, order: CommentOrder) -> CommentPlace:
        """Return where it stands in that order."""
        if order is not CommentOrder.TOP:
            return CommentPlace(self.position)
        score = floor(self.created_at.timestamp()) if self.score is None else self.score
        return CommentPlace(self.position, score)


class HiddenComment(NamedTuple):
    """A comment that not everybody sees, and why; `revision` is known of what is held."""

    comment: CommentRow
    standing: Standing
    held_for: HoldCause | None
    revision: int | None
    removed_as: ActingAs | None
    stated_reason: str | None


class Comments(Projection):
    """The comments of each video, with what is known of their language; and who comments on it."""

    name = "comments"
    version = 5
    events = (*WRITES, CommentLikes.Liked, CommentLikes.Unliked, Person.Forgotten)
    tables: ClassVar[LiteralString] = ";".join((FIRST_TABLES, ADD_HIDDEN, ADD_DECIDED, ADD_REPLIES))
    additions: ClassVar[Mapping[int, LiteralString]] = {
        3: ADD_HIDDEN,
        4: ADD_DECIDED,
        5: ADD_REPLIES,
    }
    by_stream = True
    absorbing = (Upload.Removed, Person.Forgotten)
    personal = PERSONAL

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        changes, others = TallyChanges(), []
        for recorded in batch:
            if isinstance(recorded.event, CommentLikes.Event):
                changes.like(recorded.event)
            else:
                others.append(recorded)
        for kind in writing_by_kind(self, WRITES, others, cursor):
            if kind in APPEARING:
                changes.appear(cursor.fetchall())
            elif kind in VANISHING:
                changes.vanish(cursor.fetchall())
        changes.write(self, cursor)

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

    async def not_translated(
        self, conn: AsyncConnection[TupleRow], before: tuple[datetime, int], limit: int
    ) -> Sequence[UntranslatedComment]:
        """Return comments whose translation failed, whose text is older than this; newest first.

        `before` is when a text was there, and the position of its comment.
        """
        given = {"at": before[0], "position": before[1], "limit": limit}
        return await fetch_as(conn, UntranslatedComment, self.sql(NOT_TRANSLATED_NOW), given)

    async def page(
        self,
        conn: AsyncConnection[TupleRow],
        order: CommentOrder,
        of: UUID,
        behind: CommentPlace,
        limit: int,
    ) -> list[CommentRow]:
        """Return a video's comments, or a comment's replies, that come behind a place."""
        given = {"of": of, "limit": limit, **behind._asdict()}
        return await fetch_as(conn, CommentRow, self.sql(IN_ORDER[order]), given)

    async def own_hidden(
        self,
        conn: AsyncConnection[TupleRow],
        order: CommentOrder,
        of: UUID,
        behind: CommentPlace,
        limit: int,
        author: str,
    ) -> list[HiddenComment]:
        """Return what would be on that page of one author's, if everybody saw it."""
        query = HIDDEN + " author = %(author)s AND" + HIDDEN_IN_ORDER[order]
        given = {"of": of, "limit": limit, "author": author, **behind._asdict()}
        return await self._hidden(conn, query, **given)

    async def shown(self, conn: AsyncConnection[TupleRow], comment_id: UUID) -> CommentRow | None:
        """Return a comment that everybody sees, with the one that it replies to."""
        query = self.sql(FOUND + " AND " + IN_THREAD)
        found = await fetch_as(conn, CommentRow, query, {"ids": [comment_id]})
        return found[0] if found else None

    async def found(
        self, conn: AsyncConnection[TupleRow], ids: Sequence[UUID]
    ) -> dict[UUID, CommentRow]:
        """Return those of the comments that everybody sees."""
        rows = await fetch_as(conn, CommentRow, self.sql(FOUND), {"ids": list(ids)})
        return {row.comment_id: row for row in rows}

    async def hidden_found(
        self, conn: AsyncConnection[TupleRow], ids: Sequence[UUID]
    ) -> dict[UUID, HiddenComment]:
        """Return those of the comments that not everybody sees."""
        found = await self._hidden(conn, HIDDEN + " comment_id = ANY (%(ids)s)", ids=list(ids))
        return {each.comment.comment_id: each for each in found}

    async def hidden_page(
        self,
        conn: AsyncConnection[TupleRow],
        before: int,
        limit: int,
        *,
        video_id: UUID | None = None,
        author: str | None = None,
        video_owner: str | None = None,
        standing: Standing | None = None,
    ) -> list[HiddenComment]:
        """Return what was written before a position and not everybody sees, newest first.

        Of a video, of its author, on whose videos it is, and in what standing, where that is said.
        """
        query = HIDDEN + " position < %(before)s"
        query += " AND video_id = %(video_id)s" if video_id is not None else ""
        query += " AND author = %(author)s" if author is not None else ""
        query += " AND video_owner = %(video_owner)s" if video_owner is not None else ""
        query += " AND standing = %(standing)s" if standing is not None else ""
        query += " ORDER BY position DESC LIMIT %(limit)s"
        whose = {"video_id": video_id, "author": author, "video_owner": video_owner}
        wanted = {"before": before, "limit": limit, "standing": standing, **whose}
        return await self._hidden(conn, query, **wanted)

    async def policy(self, conn: AsyncConnection[TupleRow], video_id: UUID) -> CommentPolicy:
        """Return who comments on a video."""
        found = await (await conn.execute(self.sql(POLICY), (video_id,))).fetchone()
        return CommentPolicy(found[0]) if found else CommentPolicy.OPEN

    async def _hidden(
        self, conn: AsyncConnection[TupleRow], query: LiteralString, **wanted: Any
    ) -> list[HiddenComment]:
        rows = await (await conn.execute(self.sql(query), wanted)).fetchall()
        return [_hidden(CommentRow(*row[:WIDTH]), *row[WIDTH:]) for row in rows]


def _hidden(
    comment: CommentRow,
    standing: str,
    held_for: str | None,
    revision: int | None,
    removed_as: str | None,
    stated_reason: str | None,
) -> HiddenComment:
    return HiddenComment(
        comment,
        Standing(standing),
        HoldCause(held_for) if held_for else None,
        revision,
        ActingAs(removed_as) if removed_as else None,
        stated_reason,
    )
