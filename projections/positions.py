"""How far each copy of a projection has come, and what it could not apply.

`projections.state` has a row per copy; the live copy's schema carries the projection's name. A row
moves only in the transaction that changes the copy's own tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, class_row

from engine.notifications import notify

TABLES = b"""
CREATE SCHEMA IF NOT EXISTS projections;
CREATE TABLE IF NOT EXISTS projections.state (
    schema text PRIMARY KEY,
    name text NOT NULL,
    version int NOT NULL,
    position bigint NOT NULL DEFAULT 0,
    status text NOT NULL DEFAULT 'running',
    error text,
    error_position bigint,
    updated_at timestamptz NOT NULL DEFAULT now())
WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE TABLE IF NOT EXISTS projections.parked (
    schema text NOT NULL REFERENCES projections.state ON UPDATE CASCADE ON DELETE CASCADE,
    position bigint NOT NULL,
    projection text NOT NULL,
    error text NOT NULL,
    attempts int NOT NULL DEFAULT 1,
    parked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schema, position));
DO $upgrade$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attname = 'status'
                   AND attrelid = 'projections.parked'::regclass) THEN
        ALTER TABLE projections.parked ADD status text NOT NULL DEFAULT 'parked',
            ADD decided_by text, ADD decided_at timestamptz, ADD reason text;
    END IF;
END $upgrade$
"""

LOOK = b"""
SELECT s.version, s.position, s.status, s.error, s.updated_at,
       (SELECT coalesce(max(notification_id), 0) FROM public.backlot_events) AS head
FROM projections.state s WHERE s.schema = %s
"""

# Taken first: until the transaction ends nobody renames the copy, or changes its rows, meanwhile.
HOLD = b"""
SELECT FROM projections.state
WHERE schema = %s AND version = %s AND position = %s AND status = 'running' FOR NO KEY UPDATE
"""

# Whoever reads the old position, or loses the right to run, changes nothing.
MOVE = b"""
UPDATE projections.state SET position = %s, updated_at = now()
WHERE schema = %s AND version = %s AND position = %s AND status = 'running'
"""

STOP = b"""
UPDATE projections.state SET position = %s, status = 'stopped', error = %s, error_position = %s,
       updated_at = now()
WHERE schema = %s AND version = %s AND position = %s AND status = 'running'
"""

RUN = b"""
UPDATE projections.state SET status = 'running', error = NULL, error_position = NULL
WHERE schema = %s AND status = ANY (%s)
"""

PAUSE = b"UPDATE projections.state SET status = 'paused' WHERE schema = %s AND status = 'running'"

# What operators decided about the event in the live copy holds for the copies built beside it.
PARK = b"""
INSERT INTO projections.parked
    (schema, position, projection, error, status, decided_by, decided_at, reason)
SELECT s.schema, %(position)s, s.name, %(error)s, coalesce(live.status, 'parked'),
       live.decided_by, live.decided_at, live.reason
FROM projections.state s LEFT JOIN projections.parked live
     ON live.schema = s.name AND live.schema <> s.schema AND live.position = %(position)s
WHERE s.schema = %(schema)s
ON CONFLICT (schema, position) DO UPDATE
SET error = excluded.error, attempts = parked.attempts + 1, parked_at = now(),
    status = excluded.status
"""

SAY_WHY = b"""
UPDATE projections.parked SET decided_by = %s, decided_at = now(), reason = %s
WHERE schema = %s AND position = %s
"""

DECIDED = b"""
SELECT FROM projections.parked WHERE schema = %s AND position = %s AND decided_by IS NOT NULL
"""

COUNT_PARKED = b"""
SELECT count(*) FROM projections.parked WHERE schema = %s AND status = 'parked'
"""


class Status(StrEnum):
    """What an operator or a poison event decided; it holds for every process."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Superseded(Exception):
    """Another runner moved the position, or an operator withdrew the right to run."""


class Place(Protocol):
    """Where it is written how far a copy has come, or one part of a copy that is built in parts.

    Each method raises Superseded when that is no longer at `before`.
    """

    def hold(self, cursor: Cursor[Any], before: int) -> None:
        """Lock it until the transaction ends; to be called before rows change."""

    def move(self, cursor: Cursor[Any], before: int, after: int) -> None:
        """Advance it, in the transaction that changed the rows."""

    def stop(self, cursor: Cursor[Any], before: int, *, culprit: int, error: str) -> None:
        """Halt in front of the event at `culprit`, which can't be applied."""


@dataclass(frozen=True, slots=True)
class CopyPlace:
    """The row of a copy."""

    schema: str
    version: int

    def hold(self, cursor: Cursor[Any], before: int) -> None:
        hold(cursor, self.schema, self.version, before)

    def move(self, cursor: Cursor[Any], before: int, after: int) -> None:
        move(cursor, self.schema, self.version, before, after)

    def stop(self, cursor: Cursor[Any], before: int, *, culprit: int, error: str) -> None:
        stop(cursor, self.schema, self.version, before, culprit=culprit, error=error)


@dataclass(frozen=True, slots=True)
class Seen:
    """A copy's row, and the end of the log at the same moment."""

    version: int
    position: int
    status: str
    error: str | None
    updated_at: datetime
    head: int


def look(conn: Connection[TupleRow], schema: str) -> Seen | None:
    """The state of one copy; None before it was installed."""
    with conn.cursor(row_factory=class_row(Seen)) as cursor:
        return cursor.execute(LOOK, (schema,)).fetchone()


def hold(cursor: Cursor[Any], schema: str, version: int, before: int) -> None:
    """Lock the copy at a position before its rows change; raises Superseded as `move` does.

    Names are resolved statement by statement: without the lock, a switch in the middle of a
    transaction would put some rows into one copy, and the others with the position into another.
    """
    if cursor.execute(HOLD, (schema, version, before)).rowcount != 1:
        raise Superseded(f"{schema} is no longer running at position {before}.")


def move(cursor: Cursor[Any], schema: str, version: int, before: int, after: int) -> None:
    """Advance the position; raises Superseded when it is no longer the one that was read."""
    if cursor.execute(MOVE, (after, schema, version, before)).rowcount != 1:
        raise Superseded(f"{schema} is no longer running at position {before}.")


def stop(
    cursor: Cursor[Any],
    schema: str,
    version: int,
    before: int,
    *,
    culprit: int,
    error: str,
) -> None:
    """Halt the copy in front of an event that it can't apply; raises Superseded as `move` does."""
    values = (max(before, culprit - 1), error, culprit, schema, version, before)
    if cursor.execute(STOP, values).rowcount != 1:
        raise Superseded(f"{schema} is no longer running at position {before}.")


def park(cursor: Cursor[Any], schema: str, position: int, error: str) -> None:
    """Set an event aside, with what went wrong."""
    cursor.execute(PARK, {"position": position, "error": error, "schema": schema})


def say_why(cursor: Cursor[Any], schema: str, position: int, actor: str, reason: str) -> None:
    """Keep with an event that is set aside who wanted that, and why."""
    cursor.execute(SAY_WHY, (actor, reason, schema, position))


def is_decided(cursor: Cursor[Any], name: str, position: int) -> bool:
    """Whether an operator has set the event aside in the live copy, though it stops there."""
    return cursor.execute(DECIDED, (name, position)).rowcount == 1


def count_parked(conn: Connection[TupleRow], schema: str) -> int:
    """How many events of this copy are set aside and wait for somebody's decision."""
    row = conn.execute(COUNT_PARKED, (schema,)).fetchone()
    return int(row[0]) if row else 0


def retry(conn: Connection[TupleRow], schema: str) -> bool:
    """Let a copy that a poison event stopped try again; returns whether it was stopped."""
    return conn.execute(RUN, (schema, [Status.STOPPED])).rowcount == 1


def pause(conn: Connection[Any], schema: str) -> bool:
    """Have the copy rest where it stands, in whichever process it runs; False if it did not run."""
    changed = conn.execute(PAUSE, (schema,)).rowcount == 1
    notify(conn)
    return changed


def resume(conn: Connection[Any], schema: str) -> bool:
    """Have a paused or stopped copy go on; False if it was neither."""
    changed = conn.execute(RUN, (schema, [Status.PAUSED, Status.STOPPED])).rowcount == 1
    notify(conn)
    return changed
