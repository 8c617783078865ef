"""What was reported and what became of it, for moderators; and whom each user blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Cursor
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.model import Aggregate
from domain.moderation import ContentReport, ModerationCase, UserBlock
from domain.person import Person
from domain.upload import Upload
from engine.personal_data import IN_THE_LOG, Blanked, Deleted, PersonalEvents, PersonalTable
from engine.projection import Batch, Projection, Write, Writes, last_told, write_by_kind
from infra.postgres.connection import fetch_as

# `gone` has every comment and video that is no more: a report may be recorded just after that.
FIRST_TABLES: LiteralString = """
CREATE TABLE {schema}.cases (
    case_id uuid PRIMARY KEY,
    kind text NOT NULL,
    thing_id uuid NOT NULL,
    video_id uuid NOT NULL,
    round int NOT NULL,
    position bigint NOT NULL,
    opened_at timestamptz NOT NULL,
    status text NOT NULL DEFAULT 'open',
    gone boolean NOT NULL,
    decided_at timestamptz,
    decided_by text,
    stated_reason text);
CREATE INDEX cases_by_status ON {schema}.cases (status, gone, position);
CREATE INDEX cases_by_thing ON {schema}.cases (thing_id);
CREATE INDEX cases_by_video ON {schema}.cases (video_id);
CREATE TABLE {schema}.tallies (
    case_id uuid NOT NULL,
    round int NOT NULL,
    category text NOT NULL,
    reports bigint NOT NULL,
    PRIMARY KEY (case_id, round, category)) WITH (fillfactor = 50);
CREATE TABLE {schema}.details (
    report_id uuid PRIMARY KEY,
    case_id uuid NOT NULL,
    round int NOT NULL,
    position bigint NOT NULL,
    category text NOT NULL,
    detail text NOT NULL,
    reported_at timestamptz NOT NULL);
CREATE INDEX details_by_case ON {schema}.details (case_id, round, position);
CREATE TABLE {schema}.gone (id uuid PRIMARY KEY);
CREATE TABLE {schema}.blocks (
    blocker text COLLATE "C" NOT NULL,
    blocked text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (blocker, blocked));
CREATE INDEX blocks_latest ON {schema}.blocks (blocker, position)
"""
# Who reported is kept to forget them by, and told to nobody.
ADD_REPORTERS: LiteralString = f"""
ALTER TABLE {{schema}}.details ADD COLUMN reporter text COLLATE "C";
UPDATE {{schema}}.details SET reporter = {last_told("report_id", "reporter", ContentReport.Filed)};
CREATE INDEX details_by_reporter ON {{schema}}.details (reporter)
"""
PERSONAL = (
    PersonalTable(
        name="moderation.details",
        holds="what somebody wrote who reported a comment or a video",
        kept="follows the event log",
        table="{schema}.details",
        projection="moderation",
        columns=("reporter",),
        shown="category, detail, reported_at",
        forget=Deleted(),
    ),
    PersonalTable(
        name="moderation.cases",
        holds="cases that a moderator decided, with the reason",
        kept="follows the event log",
        table="{schema}.cases",
        projection="moderation",
        columns=("decided_by",),
        shown="case_id, kind, thing_id, status, decided_at, stated_reason",
        forget=Blanked("decided_by = NULL, stated_reason = NULL", "the reason is deleted"),
    ),
    PersonalTable(
        name="moderation.blocks",
        holds="whom somebody blocks",
        kept="follows the event log",
        table="{schema}.blocks",
        projection="moderation",
        columns=("blocker",),
        others=("blocked",),
        forget=Deleted(),
    ),
    PersonalTable(
        name="moderation.blocked",
        holds="that others block somebody",
        kept="follows the event log",
        table="{schema}.blocks",
        projection="moderation",
        columns=("blocked",),
        shown=None,
        forget=Deleted(),
    ),
    PersonalEvents(
        name="events.blocked",
        holds="that others blocked somebody, or no longer do",
        kept="the event log is kept for good",
        events=(UserBlock.Blocked, UserBlock.Unblocked),
        subject="blocked",
        shown=False,
        forget=IN_THE_LOG,
    ),
)
# Things end after all else in a replay, whatever the order of the log.
GONE: LiteralString = """
WITH ended AS (SELECT unnest(%b::uuid[]) AS id),
     kept AS (INSERT INTO {schema}.gone SELECT id FROM ended ORDER BY id ON CONFLICT DO NOTHING)
UPDATE {schema}.cases SET gone = true FROM ended WHERE thing_id = id OR video_id = id
"""


def _id(_: int, event: Aggregate.Event) -> tuple[UUID]:
    return (event.originator_id,)


WRITES: Writes = {
    ModerationCase.Opened: Write(
        """
        INSERT INTO {schema}.cases
            (case_id, kind, thing_id, video_id, round, position, opened_at, gone)
        SELECT e.*, EXISTS (SELECT FROM {schema}.gone WHERE id IN (thing_id, video_id))
        FROM unnest(
            %b::uuid[], %b::text[], %b::uuid[], %b::uuid[], %b::int[], %b::bigint[],
            %b::timestamptz[]) AS e(case_id, kind, thing_id, video_id, round, position, at)
        ON CONFLICT (case_id) DO UPDATE
        SET round = excluded.round, position = excluded.position, opened_at = excluded.opened_at,
            status = 'open', decided_at = NULL, decided_by = NULL, stated_reason = NULL
        """,
        lambda at, e: (
            *(e.originator_id, e.kind, e.thing_id, e.video_id, e.round, at, e.timestamp),
        ),
    ),
    ModerationCase.Decided: Write(
        """
        UPDATE {schema}.cases c
        SET status = CASE e.decision WHEN 'remove' THEN 'removed' ELSE 'dismissed' END,
            decided_at = e.at, decided_by = e.actor, stated_reason = e.why
        FROM unnest(%b::uuid[], %b::text[], %b::timestamptz[], %b::text[], %b::text[])
            AS e(id, decision, at, actor, why)
        WHERE c.case_id = e.id
        """,
        lambda _, e: (e.originator_id, e.decision, e.timestamp, e.actor, e.stated_reason),
    ),
    # In the order of the keys: replays add to the same sums side by side.
    ContentReport.Filed: Write(
        """
        WITH e AS (
            SELECT * FROM unnest(
                %b::uuid[], %b::uuid[], %b::int[], %b::bigint[], %b::text[], %b::text[],
                %b::timestamptz[], %b::text[])
                AS e(report_id, case_id, round, position, category, detail, at, reporter)),
        told AS (INSERT INTO {schema}.details SELECT * FROM e WHERE detail IS NOT NULL)
        INSERT INTO {schema}.tallies AS t (case_id, round, category, reports)
        SELECT case_id, round, category, count(*) FROM e GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (case_id, round, category) DO UPDATE
        SET reports = t.reports + excluded.reports
        """,
        lambda at, e: (
            *(e.originator_id, e.case_id, e.round, at, e.category, e.detail, e.timestamp),
            e.reporter,
        ),
    ),
    UserBlock.Blocked: Write(
        """
        INSERT INTO {schema}.blocks (blocker, blocked, position)
        SELECT * FROM unnest(%b::text[], %b::text[], %b::bigint[])
        ON CONFLICT (blocker, blocked) DO UPDATE SET position = excluded.position
        """,
        lambda at, e: (e.blocker, e.blocked, at),
    ),
    UserBlock.Unblocked: Write(
        """
        DELETE FROM {schema}.blocks b
        USING unnest(%b::text[], %b::text[]) AS e(blocker, blocked)
        WHERE b.blocker = e.blocker AND b.blocked = e.blocked
        """,
        lambda _, e: (e.blocker, e.blocked),
    ),
    Comment.Deleted: Write(GONE, _id),
    Comment.Withdrawn: Write(GONE, _id),
    Upload.Removed: Write(GONE, _id),
}
CASES: LiteralString = """
SELECT case_id, kind, thing_id, video_id, round, position, opened_at, status, gone, decided_at,
       decided_by, stated_reason
FROM {schema}.cases WHERE
"""
OLDEST: LiteralString = (
    "status = 'open' AND NOT gone AND position > %(place)s ORDER BY position LIMIT %(limit)s"
)
GONE_LATEST: LiteralString = (
    "status = 'open' AND gone AND position < %(place)s ORDER BY position DESC LIMIT %(limit)s"
)
LATEST: LiteralString = (
    "status = %(status)s AND position < %(place)s ORDER BY position DESC LIMIT %(limit)s"
)
TALLIES: LiteralString = """
SELECT t.case_id, t.category, t.reports FROM {schema}.tallies t
JOIN {schema}.cases c ON c.case_id = t.case_id AND c.round = t.round
WHERE t.case_id = ANY (%s) ORDER BY t.reports DESC, t.category
"""
DETAILS: LiteralString = """
SELECT c.case_id, d.category, d.detail, d.reported_at FROM {schema}.cases c,
LATERAL (
    SELECT * FROM {schema}.details d WHERE d.case_id = c.case_id AND d.round = c.round
    ORDER BY d.position DESC LIMIT %s) AS d
WHERE c.case_id = ANY (%s) ORDER BY d.position DESC
"""
BLOCKS: LiteralString = """
SELECT blocked, position FROM {schema}.blocks WHERE blocker = %s AND position < %s
ORDER BY position DESC LIMIT %s
"""


class CaseRow(NamedTuple):
    """A reported thing; `position` is where its present round began."""

    case_id: UUID
    kind: str
    thing_id: UUID
    video_id: UUID
    round: int
    position: int
    opened_at: datetime
    status: str
    gone: bool
    decided_at: datetime | None
    decided_by: str | None
    stated_reason: str | None


class DetailRow(NamedTuple):
    """What a reporter said in more than a word."""

    case_id: UUID
    category: str
    detail: str
    reported_at: datetime


class BlockRow(NamedTuple):
    """A block that stands, and the position at which it was set."""

    blocked: str
    position: int


class Moderation(Projection):
    """What was reported and what became of it; and whom each user blocks."""

    name = "moderation"
    version = 2
    events = (*WRITES, Person.Forgotten)
    tables: ClassVar[LiteralString] = FIRST_TABLES + ";" + ADD_REPORTERS
    additions: ClassVar[Mapping[int, LiteralString]] = {2: ADD_REPORTERS}
    by_stream = True
    absorbing = (Comment.Deleted, Comment.Withdrawn, Upload.Removed, Person.Forgotten)
    personal = PERSONAL

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        write_by_kind(self, WRITES, batch, cursor)

    async def cases(
        self, conn: AsyncConnection[TupleRow], status: str, place: int, limit: int
    ) -> list[CaseRow]:
        """Return cases beyond a position: open ones from the oldest on, others from the newest.

        `gone` are open ones whose thing is no more, `removed` and `dismissed` those decided so.
        """
        order = {"open": OLDEST, "gone": GONE_LATEST}.get(status, LATEST)
        wanted = {"status": status, "place": place, "limit": limit}
        return await fetch_as(conn, CaseRow, self.sql(CASES + order), wanted)

    async def tallies(
        self, conn: AsyncConnection[TupleRow], cases: Sequence[UUID]
    ) -> dict[UUID, dict[str, int]]:
        """Return how many reported each of these in its present round, by reason."""
        found: dict[UUID, dict[str, int]] = {case: {} for case in cases}
        rows: Any = await conn.execute(self.sql(TALLIES), (list(cases),))
        for case, category, reports in await rows.fetchall():
            found[case][category] = reports
        return found

    async def details(
        self, conn: AsyncConnection[TupleRow], cases: Sequence[UUID], each: int
    ) -> list[DetailRow]:
        """Return the latest details of these in their present round, at most so many of each."""
        return await fetch_as(conn, DetailRow, self.sql(DETAILS), (each, list(cases)))

    async def blocks(
        self, conn: AsyncConnection[TupleRow], blocker: str, before: int, limit: int
    ) -> list[BlockRow]:
        """Return whom a user has blocked before a position, the latest first."""
        return await fetch_as(conn, BlockRow, self.sql(BLOCKS), (blocker, before, limit))
