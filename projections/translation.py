"""What came of the translations that readers asked for, beside the one that every comment gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Cursor
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.model import Aggregate
from domain.person import Person
from domain.upload import Upload
from engine.personal_data import Deleted, PersonalTable
from engine.projection import Batch, Projection, Write, last_told, write_by_kind
from infra.postgres.connection import fetch_as

# The video ids of `removed` get no rows any more: a result may be recorded just after its video's
# removal.
FIRST_TABLES: LiteralString = """
CREATE TABLE {schema}.translations (
    comment_id uuid NOT NULL,
    language text NOT NULL,
    video_id uuid NOT NULL,
    status text NOT NULL,
    translated_text text,
    reason text,
    PRIMARY KEY (comment_id, language));
CREATE INDEX translations_by_video ON {schema}.translations (video_id);
CREATE TABLE {schema}.removed (video_id uuid PRIMARY KEY)
"""
ADD_AUTHORS: LiteralString = f"""
ALTER TABLE {{schema}}.translations ADD COLUMN author text COLLATE "C";
UPDATE {{schema}}.translations
SET author = {last_told("comment_id", "author", Comment.Posted, Comment.Submitted)};
CREATE INDEX translations_by_author ON {{schema}}.translations (author)
"""
PERSONAL = (
    PersonalTable(
        name="translations.translations",
        holds="translations of somebody's comments into languages that readers asked for",
        kept="follows the event log",
        table="{schema}.translations",
        projection="translations",
        columns=("author",),
        shown="comment_id, language, video_id, status, translated_text, reason",
        forget=Deleted(),
    ),
)

PUT: LiteralString = """
INSERT INTO {schema}.translations
    (comment_id, language, video_id, status, translated_text, reason, author)
SELECT * FROM unnest(
    %b::uuid[], %b::text[], %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[])
    AS e(comment_id, language, video_id, status, translated_text, reason, author)
WHERE NOT EXISTS (SELECT FROM {schema}.removed r WHERE r.video_id = e.video_id)
ON CONFLICT (comment_id, language) DO UPDATE
SET status = excluded.status, translated_text = excluded.translated_text, reason = excluded.reason
"""
FORGET: LiteralString = "DELETE FROM {schema}.translations WHERE comment_id = ANY (%b::uuid[])"
OF_COMMENTS: LiteralString = """
SELECT comment_id, status, translated_text, reason FROM {schema}.translations
WHERE comment_id = ANY (%s) AND language = %s
"""


def _id(_: int, event: Aggregate.Event) -> tuple[UUID]:
    return (event.originator_id,)


def _translated(_: int, e: Any) -> tuple[object, ...]:
    text, target = e.translated_text, e.target_language
    return (e.originator_id, target, e.video_id, "translated", text, None, e.author)


def _not_translated(_: int, e: Any) -> tuple[object, ...]:
    return (e.originator_id, e.target_language, e.video_id, e.status, None, e.reason, e.author)


WRITES: Mapping[type[Aggregate.Event], Write] = {
    Comment.TargetTranslated: Write(PUT, _translated),
    Comment.TargetNotTranslated: Write(PUT, _not_translated),
    Comment.Edited: Write(FORGET, _id),
    Comment.Withheld: Write(FORGET, _id),
    Comment.Deleted: Write(FORGET, _id),
    Comment.Withdrawn: Write(FORGET, _id),
    Upload.Removed: Write(
        """
        WITH videos AS (SELECT unnest(%b::uuid[]) AS id),
             gone AS (INSERT INTO {schema}.removed SELECT id FROM videos ON CONFLICT DO NOTHING)
        DELETE FROM {schema}.translations USING videos WHERE video_id = id
        """,
        _id,
    ),
}


class TranslationRow(NamedTuple):
    """What came of a comment's translation into a language; `reason` says why there is none."""

    comment_id: UUID
    status: Any
    translated_text: str | None
    reason: str | None


class Translations(Projection):
    """What came of the translations that readers asked for, by comment and language."""

    name = "translations"
    version = 2
    events = (*WRITES, Person.Forgotten)
    tables: ClassVar[LiteralString] = FIRST_TABLES + ";" + ADD_AUTHORS
    additions: ClassVar[Mapping[int, LiteralString]] = {2: ADD_AUTHORS}
    by_stream = True
    absorbing = (Upload.Removed, Person.Forgotten)
    personal = PERSONAL

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        write_by_kind(self, WRITES, batch, cursor)

    async def of_comments(
        self, conn: AsyncConnection[TupleRow], comments: Sequence[UUID], language: str
    ) -> dict[UUID, TranslationRow]:
        """Return what is known of translations of these comments into a language (ISO 639-1)."""
        given = (list(comments), language)
        rows = await fetch_as(conn, TranslationRow, self.sql(OF_COMMENTS), given)
        return {row.comment_id: row for row in rows}
