"""The replays: what was asked for, how far each and its parts have come, and what came of it.

A row outlives the process that works on it, so that any process can go on, and operators see the
same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from threading import Event
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, Connection, Cursor
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from domain.model import FORGOTTEN
from engine.checkpoints import Checkpoint, SubscriptionKind
from engine.personal_data import Blanked, PersonalTable
from infra.errors import OperatorError

COLUMNS = b"""
SELECT id, name, version, schema, purpose, target, workers, state, paused, confirmed, requested_by,
       operation_id, started_at, updated_at, finished_at, position, events_applied, rate, error,
       result
FROM projections.replays
"""
BY_ID = COLUMNS + b"WHERE id = %s"
BY_OPERATION = COLUMNS + b"WHERE operation_id = %s"
UNFINISHED = COLUMNS + b"WHERE unfinished = %s"
NEWEST = COLUMNS + b"WHERE name = %s ORDER BY id DESC LIMIT 1"
LAST_DONE = (
    COLUMNS
    + b"WHERE name = %s AND state IN ('switched', 'kept', 'verified') AND purpose <> 'rollback' "
    b"ORDER BY id DESC LIMIT 1"
)
NEWEST_OF_ALL = COLUMNS + b"WHERE id IN (SELECT max(id) FROM projections.replays GROUP BY name)"
UNDER_WAY = COLUMNS + b"WHERE finished_at IS NULL ORDER BY id"

ENTER = b"""
UPDATE projections.replays SET state = %(state)s, error = %(error)s, updated_at = clock_timestamp(),
       result = coalesce(%(result)s, result),
       finished_at = CASE WHEN %(finished)s THEN clock_timestamp() END
WHERE id = %(id)s AND finished_at IS NULL
"""
# What was applied is read from the ledger, which is never behind or ahead of the rows.
CHECKPOINT = b"""
UPDATE projections.replays r
SET position = %s, rate = %s, updated_at = clock_timestamp(),
    events_applied = (SELECT coalesce(sum(l.applied), 0) FROM projections.ledger l
                      WHERE l.schema = r.schema)
WHERE id = %s AND finished_at IS NULL
"""
SET_PAUSED = b"""
UPDATE projections.replays SET paused = %s, error = %s, updated_at = clock_timestamp()
WHERE id = %s AND finished_at IS NULL
"""

STOP_COPY = b"""
UPDATE backlot_checkpoints SET status = 'stopped', error = %s, error_position = %s
WHERE kind = 'projection' AND subscription = %s AND status = 'running'
"""
BEGIN_PARTS = b"""
INSERT INTO backlot_checkpoints (kind, subscription, partition, target, version)
SELECT 'replay', %s, part, %s, %s FROM generate_series(0, %s::int - 1) AS part
ON CONFLICT DO NOTHING
"""
PARTS = b"""
SELECT position, target FROM backlot_checkpoints
WHERE kind = 'replay' AND subscription = %s ORDER BY partition
"""
DROP_PARTS = b"DELETE FROM backlot_checkpoints WHERE kind = 'replay' AND subscription = %s"

SHOW_SECONDS = 0.25

RECORD = "needs no term: a record of what operators did"
PERSONAL = (
    PersonalTable(
        name="replays",
        holds="replays that an operator asked for, and the first keys of rows that differed",
        kept=RECORD,
        table="projections.replays",
        where="requested_by = %(subject)s "
        "OR position(convert_from(%(needle)s::bytea, 'UTF8') IN result::text) > 0",
        shown="id, name, purpose, state, started_at, finished_at",
        forget=Blanked(
            f"requested_by = CASE WHEN requested_by = %(subject)s THEN '{FORGOTTEN}' "
            "ELSE requested_by END, "
            "result = CASE WHEN position(convert_from(%(needle)s::bytea, 'UTF8') IN result::text) "
            "> 0 THEN NULL ELSE result END",
            "a result that names the person is deleted",
        ),
    ),
    PersonalTable(
        name="park_orders",
        holds="orders of an operator to set events aside, with the reason",
        kept=RECORD,
        table="projections.park_orders",
        columns=("given_by",),
        forget=Blanked(f"given_by = '{FORGOTTEN}', reason = ''", "the order stands"),
    ),
)


class Purpose(StrEnum):
    """What a copy is built for, or caught up for."""

    SWITCH = "switch"
    LOOK = "look"
    VERIFY = "verify"
    ROLLBACK = "rollback"


class ReplayState(StrEnum):
    """How far a replay is; one that waits does so until its difference is confirmed."""

    BUILDING = "building"
    CATCHING_UP = "catching-up"
    COMPARING = "comparing"
    WAITING = "waiting"
    SWITCHED = "switched"
    KEPT = "kept"
    VERIFIED = "verified"
    CANCELLED = "cancelled"
    FAILED = "failed"


FINAL = frozenset(
    ReplayState(state) for state in ("switched", "kept", "verified", "cancelled", "failed")
)


class ReplayError(OperatorError):
    """A replay that is not possible, or not now; the text says why."""


class ReplayUnderWay(ReplayError):
    """The projection has an unfinished replay."""


class NoReplay(ReplayError):
    """There is no replay to act on."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What is asked for: `to` is the position of a look at the past; `confirmed` asks nothing."""

    purpose: Purpose = Purpose.SWITCH
    to: int | None = None
    workers: int = 1
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is. `events` were applied; `rate` is in positions per second.

    `target` is the position that is to be reached; it moves while the log grows.
    """

    name: str
    state: ReplayState
    position: int
    target: int
    events: int
    rate: float
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay's row. `schema` is the copy that it builds; `rate` is in positions per second.

    `target` is None for a replay up to the live copy; `result` is a Difference as a dictionary.
    """

    id: int
    name: str
    version: int
    schema: str
    purpose: Purpose
    target: int | None
    workers: int
    state: ReplayState
    paused: bool
    confirmed: bool
    requested_by: str
    operation_id: UUID
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    position: int
    events_applied: int
    rate: float | None
    error: str | None
    result: dict[str, Any] | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "purpose", Purpose(self.purpose))
        object.__setattr__(self, "state", ReplayState(self.state))

    @property
    def finished(self) -> bool:
        return self.finished_at is not None

    @property
    def seconds(self) -> float:
        """How long it has taken: to its end, or to its last sign of life."""
        return ((self.finished_at or self.updated_at) - self.started_at).total_seconds()

    @property
    def rests(self) -> bool:
        """Whether there is nothing to do for now: it has ended, or waits for an operator."""
        asks = self.state is ReplayState.WAITING and not self.confirmed
        return self.finished or self.paused or asks

    def progress(self, target: int) -> Progress:
        """Return how far it is on the way to a position, at the rate that its row shows."""
        rate, events = self.rate or 0.0, self.events_applied
        eta = (target - self.position) / rate if rate > 0 else None
        return Progress(self.name, self.state, self.position, target, events, rate, eta)


Report = Callable[[Progress], None]


def find(conn: Connection[Any], replay_id: int) -> Replay:
    """Return the replay with this number; raise NoReplay."""
    found = _select(conn, BY_ID, replay_id).fetchone()
    if found is None:
        raise NoReplay(f"There is no replay {replay_id}.")
    return found


def of_operation(conn: Connection[Any], operation_id: UUID) -> Replay | None:
    """Return the replay that an operation has begun, if it has."""
    return _select(conn, BY_OPERATION, operation_id).fetchone()


def unfinished(conn: Connection[Any], name: str) -> Replay | None:
    """Return the replay of this projection that has not ended, if there is one."""
    return _select(conn, UNFINISHED, name).fetchone()


def newest(conn: Connection[Any], name: str) -> Replay | None:
    """Return the projection's last replay, ended or not, if there was one."""
    return _select(conn, NEWEST, name).fetchone()


def last_done(conn: Connection[Any], name: str) -> Replay | None:
    """Return the last replay of a projection that was built to its end, if there was one."""
    return _select(conn, LAST_DONE, name).fetchone()


def under_way(conn: Connection[Any]) -> list[Replay]:
    """Return every replay that has not ended, whether it works, rests or asks; oldest first."""
    return _select(conn, UNDER_WAY).fetchall()


async def newest_of_all(conn: AsyncConnection[Any]) -> dict[str, Replay]:
    """Return the last replay, ended or not, of each projection that had one, by name."""
    async with conn.cursor(row_factory=class_row(Replay)) as cursor:
        await cursor.execute(NEWEST_OF_ALL)
        return {replay.name: replay for replay in await cursor.fetchall()}


def _select(conn: Connection[Any], query: bytes, *values: object) -> Cursor[Replay]:
    return conn.cursor(row_factory=class_row(Replay)).execute(query, values)


def enter(
    conn: Connection[TupleRow],
    replay: Replay,
    state: ReplayState,
    *,
    error: str | None = None,
    result: dict[str, Any] | None = None,
) -> bool:
    """Write down the next state; return False when the replay has ended meanwhile."""
    values = {
        "id": replay.id,
        "state": state,
        "error": error,
        "result": None if result is None else Jsonb(result),
        "finished": state in FINAL,
    }
    return conn.execute(ENTER, values).rowcount == 1


def checkpoint(conn: Connection[TupleRow], replay: Replay, position: int, rate: float) -> None:
    """Show how far it is, and how fast (positions per second)."""
    conn.execute(CHECKPOINT, (position, rate, replay.id))


def set_paused(
    conn: Connection[TupleRow], replay: Replay, paused: bool, error: str | None = None
) -> None:
    """Let it rest, or go on; `error` is of the event that it can't apply, if it rests for one."""
    conn.execute(SET_PAUSED, (paused, error, replay.id))


def tell_nobody(news: object) -> None:
    """Ignore the news."""


@dataclass(slots=True)
class ProgressMeter:
    """Measures one stretch of a replay, from the position `first` to `goal`, and reports it."""

    conn: Connection[TupleRow]
    replay: Replay
    first: int
    goal: int
    report: Report
    stopping: Event
    started: float = field(default_factory=time.monotonic)
    shown: float = field(default_factory=time.monotonic)

    def at(self, position: int) -> bool:
        """Report the position, four times a second; return False when the work is to end there.

        That is when this process stops, and when the replay was paused or cancelled.
        """
        now = time.monotonic()
        if self.stopping.is_set():
            return False
        if now - self.shown < SHOW_SECONDS:
            return True
        self.shown = now
        return self.show(position)

    def show(self, position: int) -> bool:
        """Do the same at once."""
        seconds = time.monotonic() - self.started
        rate = (position - self.first) / seconds if seconds > 0 else 0.0
        checkpoint(self.conn, self.replay, position, rate)
        seen = find(self.conn, self.replay.id)
        self.report(seen.progress(self.goal))
        return not seen.rests and not self.stopping.is_set()


@dataclass(frozen=True, slots=True)
class PartCheckpoint(Checkpoint):
    """The checkpoint of a part; a part that stops has the whole copy stop."""

    def stop(self, cursor: Cursor[Any], before: int, *, culprit: int, error: str) -> None:
        """Halt the copy: the process that watches the parts stops the other ones."""
        self.move(cursor, before, max(before, culprit - 1))
        cursor.execute(STOP_COPY, (error, culprit, self.subscription))


def of_part(schema: str, version: int, number: int) -> Checkpoint:
    """Return the checkpoint of a part, by number (from 0), of a copy that is being built."""
    return PartCheckpoint(SubscriptionKind.REPLAY, schema, version, partition=number)


def begin_parts(
    conn: Connection[Any], schema: str, version: int, *, count: int, target: int
) -> int:
    """Begin the parts of a copy where there are none; return the position that they are to reach.

    The parts that exist keep their target.
    """
    conn.execute(BEGIN_PARTS, (schema, target, version, count))
    return max(target for _, target in parts(conn, schema))


def parts(conn: Connection[Any], schema: str) -> list[tuple[int, int]]:
    """Return the position and the target of each part, by number."""
    return conn.execute(PARTS, (schema,)).fetchall()


def drop_parts(conn: Connection[Any], schema: str) -> None:
    """Forget the parts of a copy; waits for the processes that are applying to them."""
    conn.execute(DROP_PARTS, (schema,))
