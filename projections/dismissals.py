"""Which videos each viewer is not interested in, for what is recommended instead."""

from __future__ import annotations

from typing import ClassVar, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Cursor
from psycopg.rows import TupleRow

from domain.dismissals import Dismissal
from domain.person import Person
from engine.personal_data import Deleted, PersonalTable
from engine.projection import Batch, Projection, columns
from infra.postgres.connection import fetch_as

TABLES: LiteralString = """
CREATE TABLE {schema}.dismissed (
    viewer text COLLATE "C" NOT NULL,
    video_id uuid NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (viewer, video_id));
CREATE INDEX dismissed_latest ON {schema}.dismissed (viewer, position)
"""
PERSONAL = (
    PersonalTable(
        name="dismissals.dismissed",
        holds="videos in which somebody is not interested",
        kept="follows the event log",
        table="{schema}.dismissed",
        projection="dismissals",
        columns=("viewer",),
        forget=Deleted(),
    ),
)
ADD: LiteralString = """
INSERT INTO {schema}.dismissed (viewer, video_id, position)
SELECT * FROM unnest(%b::text[], %b::uuid[], %b::bigint[])
ON CONFLICT (viewer, video_id) DO UPDATE SET position = excluded.position
"""
DROP: LiteralString = """
DELETE FROM {schema}.dismissed AS d USING unnest(%b::text[], %b::uuid[]) AS gone (viewer, video_id)
WHERE d.viewer = gone.viewer AND d.video_id = gone.video_id
"""
LATEST: LiteralString = """
SELECT video_id, position FROM {schema}.dismissed WHERE viewer = %s
ORDER BY position DESC LIMIT %s
"""


class DismissedVideo(NamedTuple):
    """A dismissal that stands, and the position at which it was given."""

    video_id: UUID
    position: int


class Dismissals(Projection):
    """Which videos each viewer is not interested in."""

    name = "dismissals"
    events = (Dismissal.Dismissed, Dismissal.TakenBack, Person.Forgotten)
    tables: ClassVar[LiteralString] = TABLES
    by_stream = True
    absorbing = (Person.Forgotten,)
    personal = PERSONAL

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        standing: dict[tuple[str, UUID], int | None] = {}
        for position, event in batch:
            if isinstance(event, Dismissal.Event):
                stands = isinstance(event, Dismissal.Dismissed)
                standing[event.viewer, event.video_id] = position if stands else None
        added = [(*key, position) for key, position in standing.items() if position is not None]
        if dropped := [key for key, position in standing.items() if position is None]:
            cursor.execute(self.sql(DROP), columns(dropped))
        if added:
            cursor.execute(self.sql(ADD), columns(added))

    async def latest(
        self, conn: AsyncConnection[TupleRow], viewer: str, limit: int
    ) -> list[DismissedVideo]:
        """Return what the viewer has dismissed, the latest first."""
        return await fetch_as(conn, DismissedVideo, self.sql(LATEST), (viewer, limit))
