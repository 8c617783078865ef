"""The operations that operators requested, and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar, LiteralString
from uuid import UUID

import orjson
from psycopg import AsyncConnection, Connection, Cursor
from psycopg.rows import TupleRow

from domain.model import FORGOTTEN, Aggregate
from domain.operation import Members, Operation
from domain.person import Person
from engine.personal_data import Blanked, PersonalTable
from engine.projection import Batch, Projection, Write, write_by_kind
from infra.advisory_locks import operation_lock
from infra.postgres.connection import fetch_as

TABLES: LiteralString = """
CREATE TABLE {schema}.operations (
    operation_id uuid PRIMARY KEY,
    action text NOT NULL,
    subject text NOT NULL,
    parameters jsonb NOT NULL,
    requested_by text NOT NULL,
    requested_at timestamptz NOT NULL,
    correlation_id text NOT NULL,
    position bigint NOT NULL,
    outcome text,
    result jsonb,
    finished_at timestamptz);
CREATE INDEX operations_open ON {schema}.operations (position) WHERE outcome IS NULL
"""

PERSONAL = (
    PersonalTable(
        name="operations.operations",
        holds="what an operator asked for, and what came of it",
        kept="follows the event log",
        table="{schema}.operations",
        projection="operations",
        where="requested_by = %(subject)s "
        "OR position(convert_from(%(needle)s::bytea, 'UTF8') IN result::text) > 0",
        shown="operation_id, action, subject, parameters, requested_at, outcome, finished_at",
        forget=Blanked(
            f"requested_by = CASE WHEN requested_by = %(subject)s THEN '{FORGOTTEN}' "
            "ELSE requested_by END, "
            "parameters = CASE WHEN requested_by = %(subject)s THEN parameters - 'reason' "
            "ELSE parameters END, "
            "result = CASE WHEN position(convert_from(%(needle)s::bytea, 'UTF8') IN result::text) "
            "> 0 THEN NULL ELSE result END",
            "their reasons, and a result that names the person, are deleted",
        ),
    ),
)

REQUEST: LiteralString = """
INSERT INTO {schema}.operations (operation_id, action, subject, parameters, requested_by,
                                 requested_at, correlation_id, position)
SELECT id, action, subject, parameters::jsonb, actor, at, correlation_id, position
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::timestamptz[],
            %b::text[], %b::bigint[])
    AS e(id, action, subject, parameters, actor, at, correlation_id, position)
"""
FINISH: LiteralString = """
UPDATE {schema}.operations o
SET outcome = e.outcome, result = e.result::jsonb, finished_at = e.at
FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::timestamptz[]) AS e(id, outcome, result, at)
WHERE o.operation_id = e.id
"""

OPEN: LiteralString = """
SELECT operation_id FROM {schema}.operations WHERE outcome IS NULL ORDER BY position
"""
OUTCOMES: LiteralString = """
SELECT operation_id, outcome FROM {schema}.operations
WHERE operation_id = ANY (%s) AND outcome IS NOT NULL
"""
BY_ID: LiteralString = """
SELECT operation_id, action, subject, parameters, requested_by, requested_at, correlation_id,
       outcome, result, finished_at,
       EXISTS (SELECT FROM pg_locks
               WHERE locktype = 'advisory' AND classid = %(class)s AND objid = %(key)s AND granted
                     AND database = (SELECT oid FROM pg_database
                                     WHERE datname = current_database())) AS claimed
FROM {schema}.operations WHERE operation_id = %(id)s
"""


def _requested(position: int, event: Operation.Requested) -> tuple[Any, ...]:
    return (
        event.originator_id,
        event.action,
        event.subject,
        orjson.dumps(event.asked).decode(),
        event.actor,
        event.timestamp,
        event.correlation_id,
        position,
    )


def _finished(_: int, event: Operation.Finished) -> tuple[Any, ...]:
    result = orjson.dumps(event.result).decode()
    return (event.originator_id, event.outcome, result, event.timestamp)


WRITES: Mapping[type[Aggregate.Event], Write] = MappingProxyType(
    {Operation.Requested: Write(REQUEST, _requested), Operation.Finished: Write(FINISH, _finished)}
)


@dataclass(frozen=True, slots=True)
class OperationRow:
    """An operation; `claimed` says whether a process carries it out at this moment."""

    operation_id: UUID
    action: str
    subject: str
    parameters: Members
    requested_by: str
    requested_at: datetime
    correlation_id: str
    outcome: str | None
    result: Members | None
    finished_at: datetime | None
    claimed: bool

    @property
    def status(self) -> str:
        """Requested, running, or the outcome: done, failed, cancelled or refused."""
        return self.outcome or ("running" if self.claimed else "requested")


class Operations(Projection):
    """Each operation with its request and its end."""

    name = "operations"
    version = 1
    events = (*WRITES, Person.Forgotten)
    personal = PERSONAL
    tables: ClassVar[LiteralString] = TABLES

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        write_by_kind(self, WRITES, batch, cursor)

    def unfinished(self, conn: Connection[TupleRow]) -> list[UUID]:
        """Return the ids of all operations that did not end yet, oldest first."""
        return [operation_id for (operation_id,) in conn.execute(self.sql(OPEN)).fetchall()]

    async def operation(
        self, conn: AsyncConnection[TupleRow], operation_id: UUID
    ) -> OperationRow | None:
        """Return an operation; None where nobody requested it."""
        class_id, key = operation_lock(operation_id)
        values = {"class": int(class_id), "key": key, "id": operation_id}
        found = await fetch_as(conn, OperationRow, self.sql(BY_ID), values)
        return found[0] if found else None

    async def outcomes(
        self, conn: AsyncConnection[TupleRow], ids: Sequence[UUID]
    ) -> dict[UUID, str]:
        """Return how those operations ended that have ended."""
        found = await conn.execute(self.sql(OUTCOMES), (list(ids),))
        return dict(await found.fetchall())
