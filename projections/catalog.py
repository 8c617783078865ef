"""Uploads on their way, and the videos that they became."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Cursor
from psycopg.rows import TupleRow

from domain.model import Aggregate
from domain.person import Person
from domain.upload import Upload, VideoViewer, Visibility, is_listed, is_visible
from engine.personal_data import Deleted, Left, PersonalObjects, PersonalTable
from engine.projection import Batch, Projection, Write, write_by_kind
from infra.postgres.connection import fetch_as

# Before Python 3.12, to name a member of an enum takes as long as to call a function.
SHOWN_TO_ALL = Visibility.PUBLIC
# `completed_position` is where the upload became a video; it orders the lists.
TABLES: LiteralString = """
CREATE TABLE {schema}.uploads (
    upload_id uuid PRIMARY KEY,
    status text NOT NULL,
    owner text COLLATE "C" NOT NULL,
    title text NOT NULL,
    description text,
    category text COLLATE "C",
    filename text NOT NULL,
    content_type text NOT NULL,
    size_bytes bigint NOT NULL,
    part_size_bytes bigint NOT NULL,
    object_key text NOT NULL,
    store_upload_id text NOT NULL,
    etag text,
    started_at timestamptz NOT NULL,
    completed_at timestamptz,
    completed_position bigint,
    duration_seconds double precision,
    spoken_language text,
    transcript text,
    visibility text COLLATE "C" NOT NULL DEFAULT 'public');
CREATE INDEX videos ON {schema}.uploads (completed_position)
    WHERE completed_position IS NOT NULL;
CREATE INDEX videos_by_owner ON {schema}.uploads (owner, completed_position)
    WHERE completed_position IS NOT NULL;
CREATE INDEX videos_by_category ON {schema}.uploads (category, completed_position)
    WHERE completed_position IS NOT NULL;
CREATE INDEX under_way ON {schema}.uploads (upload_id) WHERE status = 'started'
"""
PERSONAL = (
    PersonalTable(
        name="catalog.uploads",
        holds="uploads and videos of an owner, with title, description, transcript",
        kept="follows the event log",
        table="{schema}.uploads",
        projection="catalog",
        columns=("owner",),
        # Those that never became videos; videos are removed, or somebody else's, by then.
        forget=Deleted(),
        emptied="title = '', description = NULL, filename = '', transcript = NULL",
    ),
    PersonalObjects(
        name="objects",
        holds="films, and parts of unfinished uploads",
        kept="as long as the video is there; parts until the upload ends",
        setting="UPLOAD_IDLE_DAYS",
        begun_by=Upload.Started,
        disowned_by=Upload.Disowned,
        forget=Left("removed with the videos and uploads"),
    ),
)
# Before there was a visibility, every video was public.
ADD_VISIBILITY: LiteralString = """
ALTER TABLE {schema}.uploads ADD COLUMN visibility text COLLATE "C" NOT NULL DEFAULT 'public'
"""


def _id(_: int, event: Upload.Event) -> tuple[UUID]:
    return (event.originator_id,)


WRITES: Mapping[type[Aggregate.Event], Write] = {
    Upload.Started: Write(
        """
        INSERT INTO {schema}.uploads (
            upload_id, owner, title, description, category, filename, content_type, size_bytes,
            part_size_bytes, object_key, store_upload_id, started_at, status)
        SELECT *, 'started' FROM unnest(
            %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
            %b::bigint[], %b::bigint[], %b::text[], %b::text[], %b::timestamptz[])
        """,
        lambda _, e: (
            e.originator_id,
            e.owner,
            e.title,
            e.description,
            e.category,
            e.filename,
            e.content_type,
            e.size_bytes,
            e.part_size_bytes,
            e.object_key,
            e.store_upload_id,
            e.timestamp,
        ),
    ),
    Upload.VisibilityChanged: Write(
        """
        UPDATE {schema}.uploads u SET visibility = e.visibility
        FROM unnest(%b::uuid[], %b::text[]) AS e(id, visibility)
        WHERE u.upload_id = e.id
        """,
        lambda _, e: (e.originator_id, e.visibility),
    ),
    Upload.Completed: Write(
        """
        UPDATE {schema}.uploads u
        SET status = 'completed', size_bytes = e.size_bytes, etag = e.etag, completed_at = e.at,
            completed_position = e.position
        FROM unnest(%b::uuid[], %b::bigint[], %b::text[], %b::timestamptz[], %b::bigint[])
            AS e(id, size_bytes, etag, at, position)
        WHERE u.upload_id = e.id
        """,
        lambda position, e: (e.originator_id, e.size_bytes, e.etag, e.timestamp, position),
    ),
    Upload.Aborted: Write(
        "UPDATE {schema}.uploads SET status = 'aborted' WHERE upload_id = ANY (%b::uuid[])", _id
    ),
    Upload.Expired: Write(
        "UPDATE {schema}.uploads SET status = 'expired' WHERE upload_id = ANY (%b::uuid[])", _id
    ),
    Upload.DetailsChanged: Write(
        """
        UPDATE {schema}.uploads u
        SET title = e.title, description = e.description, category = e.category
        FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[])
            AS e(id, title, description, category)
        WHERE u.upload_id = e.id
        """,
        lambda _, e: (e.originator_id, e.title, e.description, e.category),
    ),
    Upload.SpeechTranscribed: Write(
        """
        UPDATE {schema}.uploads u
        SET spoken_language = e.language, transcript = e.transcript, duration_seconds = e.duration
        FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::double precision[])
            AS e(id, language, transcript, duration)
        WHERE u.upload_id = e.id
        """,
        lambda _, e: (e.originator_id, e.spoken_language, e.transcript, e.duration_seconds),
    ),
    # What was said in it was the former owner's.
    Upload.Disowned: Write(
        """
        UPDATE {schema}.uploads u
        SET owner = e.owner, title = e.title, filename = e.filename,
            description = e.description, transcript = NULL
        FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[])
            AS e(id, owner, title, filename, description)
        WHERE u.upload_id = e.id
        """,
        lambda _, e: (e.originator_id, e.owner, e.title, e.filename, e.description),
    ),
    Upload.Removed: Write("DELETE FROM {schema}.uploads WHERE upload_id = ANY (%b::uuid[])", _id),
}

UPLOADS: LiteralString = """
SELECT upload_id, owner, status, size_bytes, part_size_bytes, object_key, store_upload_id,
       visibility
FROM {schema}.uploads
"""
UNDER_WAY: LiteralString = """
WHERE status = 'started' AND started_at < %s AND upload_id > %s ORDER BY upload_id LIMIT %s
"""
VIDEOS: LiteralString = """
SELECT upload_id AS video_id, owner, status, title, description, category, completed_at,
       completed_position, duration_seconds, spoken_language, visibility
FROM {schema}.uploads WHERE
"""
PLACES: LiteralString = "SELECT upload_id, completed_position FROM {schema}.uploads WHERE "
HAS_CATEGORY: LiteralString = """
SELECT FROM {schema}.uploads WHERE category = %s AND completed_position IS NOT NULL
    AND visibility = 'public' LIMIT 1
"""
PUBLIC: LiteralString = "visibility = 'public'"
"""What ranks, recommends or searches adds this to its conditions."""


class UploadRow(NamedTuple):
    """An upload as somebody who resumes it needs it; sizes in bytes."""

    upload_id: UUID
    owner: str
    status: str
    size_bytes: int
    part_size_bytes: int
    object_key: str
    store_upload_id: str
    visibility: str

    def visible_to(self, viewer: VideoViewer) -> bool:
        """Return whether the viewer may know of it."""
        return is_visible(self.visibility, self.owner, viewer)


class VideoRow(NamedTuple):
    """A video, whoever may see it."""

    video_id: UUID
    owner: str
    status: str
    title: str
    description: str | None
    category: str | None
    completed_at: datetime
    completed_position: int
    duration_seconds: float | None
    spoken_language: str | None
    visibility: str

    def visible_to(self, viewer: VideoViewer) -> bool:
        """Return whether there is such a video, for this viewer."""
        return is_visible(self.visibility, self.owner, viewer)

    def listed_for(self, viewer: VideoViewer) -> bool:
        """Return whether a list shows the video to this viewer."""
        return is_listed(self.visibility, self.owner, viewer)

    @property
    def is_public(self) -> bool:
        """Whether it may be ranked and recommended."""
        return self.visibility == SHOWN_TO_ALL


class Catalog(Projection):
    """Uploads on their way, and the videos that they became."""

    name = "catalog"
    version = 3
    events = (*WRITES, Person.Forgotten)
    tables: ClassVar[LiteralString] = TABLES
    additions: ClassVar[Mapping[int, LiteralString]] = {3: ADD_VISIBILITY}
    by_stream = True
    absorbing = (Person.Forgotten,)
    personal = PERSONAL

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        write_by_kind(self, WRITES, batch, cursor)

    async def upload(self, conn: AsyncConnection[TupleRow], upload_id: UUID) -> UploadRow | None:
        """Return an upload in whatever state; None when it is unknown or its video was removed."""
        query = UPLOADS + "WHERE upload_id = %s"
        found = await fetch_as(conn, UploadRow, self.sql(query), (upload_id,))
        return found[0] if found else None

    async def under_way(
        self, conn: AsyncConnection[TupleRow], started_before: datetime, after: UUID, limit: int
    ) -> list[UploadRow]:
        """Return uploads started before this time and not ended, by id, after that one."""
        query = self.sql(UPLOADS + UNDER_WAY)
        return await fetch_as(conn, UploadRow, query, (started_before, after, limit))

    async def videos(
        self, conn: AsyncConnection[TupleRow], ids: Sequence[UUID]
    ) -> dict[UUID, VideoRow]:
        """Return those of the ids that are videos and not removed, whoever may see them."""
        query = VIDEOS + "completed_position IS NOT NULL AND upload_id = ANY (%s)"
        rows = await fetch_as(conn, VideoRow, self.sql(query), (list(ids),))
        return {row.video_id: row for row in rows}

    async def has_category(self, conn: AsyncConnection[TupleRow], category: str) -> bool:
        """Return whether any video is of this category."""
        cursor = await conn.execute(self.sql(HAS_CATEGORY), (category,))
        return bool(await cursor.fetchall())

    async def page(
        self,
        conn: AsyncConnection[TupleRow],
        viewer: VideoViewer,
        owner: str | None,
        category: str | None,
        before: int,
        limit: int,
    ) -> list[VideoRow]:
        """Return videos completed before a position, newest first; of an owner, of a category.

        Public ones alone, unless the viewer asks for their own.
        """
        query = VIDEOS + _listed(viewer, owner, category)
        wanted = {"owner": owner, "category": category, "before": before, "limit": limit}
        return await fetch_as(conn, VideoRow, self.sql(query), wanted)

    async def places(
        self,
        conn: AsyncConnection[TupleRow],
        viewer: VideoViewer,
        owner: str | None,
        category: str | None,
        before: int,
        limit: int,
    ) -> list[tuple[UUID, int]]:
        """Return only the ids of the same, and the positions at which they were completed."""
        query = self.sql(PLACES + _listed(viewer, owner, category))
        wanted = {"owner": owner, "category": category, "before": before, "limit": limit}
        async with conn.cursor(binary=True) as cursor:
            await cursor.execute(query, wanted)
            return await cursor.fetchall()


def _listed(viewer: VideoViewer, owner: str | None, category: str | None) -> LiteralString:
    """Return the conditions of a page, and its order."""
    query: LiteralString = "completed_position < %(before)s"
    own = owner is not None and owner == viewer.user_id
    query += "" if own else f" AND {PUBLIC}"
    query += " AND owner = %(owner)s" if owner is not None else ""
    query += " AND category = %(category)s" if category is not None else ""
    return query + " ORDER BY completed_position DESC LIMIT %(limit)s"
