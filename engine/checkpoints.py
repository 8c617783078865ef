"""Checkpoints: how far each subscription has come; one table for projections, consumers, the relay.

A checkpoint whose subscription writes rows lies in their database and moves in the transaction that
changes them, so each event counts exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, class_row

from engine.event_store import EVENTS
from engine.subscription import Place, notify

LOOK = f"""
SELECT version, position, status, error, updated_at,
       (SELECT coalesce(max(notification_id), 0) FROM {EVENTS}) AS head
FROM backlot_checkpoints WHERE kind = 'projection' AND subscription = %s
""".encode()

# A process that reads an old position, or loses the right to run, changes nothing.
RUNNING_AT = """
WHERE kind = %s AND subscription = %s AND source = %s AND partition = %s AND version = %s
      AND position = %s AND status = 'running'
"""
# Until the transaction ends, no other process renames the copy, or changes its rows.
HOLD = f"SELECT FROM backlot_checkpoints {RUNNING_AT} FOR NO KEY UPDATE".encode()
MOVE = f"UPDATE backlot_checkpoints SET position = %s, updated_at = now() {RUNNING_AT}".encode()
STOP = f"""
UPDATE backlot_checkpoints
SET position = %s, status = 'stopped', error = %s, error_position = %s, updated_at = now()
{RUNNING_AT}
""".encode()
STOP_COPY = b"""
UPDATE backlot_checkpoints SET status = 'stopped', error = %s, error_position = %s
WHERE kind = 'projection' AND subscription = %s AND status = 'running'
"""
RUN = b"""
UPDATE backlot_checkpoints SET status = 'running', error = NULL, error_position = NULL
WHERE kind = 'projection' AND subscription = %s AND status = ANY (%s)
"""
PAUSE = b"""
UPDATE backlot_checkpoints SET status = 'paused'
WHERE kind = 'projection' AND subscription = %s AND status = 'running'
"""
STOPPED = b"""
SELECT error_position, error FROM backlot_checkpoints
WHERE kind = 'projection' AND subscription = %s AND status = 'stopped'
      AND position = error_position - 1
FOR NO KEY UPDATE
"""
SKIP = b"""
UPDATE backlot_checkpoints
SET position = error_position, status = 'running', error = NULL, error_position = NULL,
    updated_at = now()
WHERE kind = 'projection' AND subscription = %s
"""
CREATE = b"""
INSERT INTO backlot_checkpoints (kind, subscription, projection, version)
VALUES ('projection', %s, %s, %s)
"""
LOCK = b"""
SELECT version, position FROM backlot_checkpoints
WHERE kind = 'projection' AND subscription = %s FOR UPDATE
"""
SET_VERSION = b"""
UPDATE backlot_checkpoints SET version = %s WHERE kind = 'projection' AND subscription = %s
"""
DROP_PARTS = b"DELETE FROM backlot_checkpoints WHERE kind = 'replay' AND subscription = %s"
COPIES = b"""
SELECT subscription FROM backlot_checkpoints
WHERE kind = 'projection' AND projection = %s AND starts_with(subscription, %s)
"""
BEGIN = b"""
INSERT INTO backlot_checkpoints (kind, subscription, source)
SELECT %s, %s, unnest(%s::text[]) ON CONFLICT DO NOTHING
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
POSITIONS = b"""
SELECT source, partition, position FROM backlot_checkpoints
WHERE kind = %s AND subscription = %s ORDER BY source, partition
"""
SET = b"""
INSERT INTO backlot_checkpoints (kind, subscription, source, partition, position)
SELECT %b, %b, * FROM unnest(%b::text[], %b::int[], %b::bigint[])
ON CONFLICT (kind, subscription, source, partition)
DO UPDATE SET position = excluded.position, updated_at = now()
"""


class SubscriptionKind(StrEnum):
    """What has checkpoints and dead letters: a copy of a read model, a part of one, and so on."""

    PROJECTION = "projection"
    REPLAY = "replay"
    CONSUMER = "consumer"
    RELAY = "relay"


class CheckpointStatus(StrEnum):
    """What an operator or a poison event decided; it holds for every process."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Superseded(Exception):
    """Another process moved the checkpoint, or an operator withdrew the right to run."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The checkpoint of one subscription in one partition of one source.

    Each method raises Superseded when it is no longer running at `before`.
    """

    kind: SubscriptionKind
    subscription: str
    version: int = 0
    source: str = "events"
    partition: int = 0

    def hold(self, cursor: Cursor[Any], before: int) -> None:
        """Lock it until the transaction ends; to be called before rows change.

        Names are resolved statement by statement: without the lock, a switch in the middle of a
        transaction would put some rows into one copy, and the others with the position into
        another.
        """
        self._require(cursor.execute(HOLD, (*self._key, before)).rowcount, before)

    def move(self, cursor: Cursor[Any], before: int, after: int) -> None:
        """Advance it, in the transaction that changed the rows."""
        self._require(cursor.execute(MOVE, (after, *self._key, before)).rowcount, before)

    def stop(self, cursor: Cursor[Any], before: int, *, culprit: int, error: str) -> None:
        """Halt in front of the event at `culprit`, which can't be applied."""
        values = (max(before, culprit - 1), error, culprit, *self._key, before)
        self._require(cursor.execute(STOP, values).rowcount, before)

    @property
    def _key(self) -> tuple[str, str, str, int, int]:
        return self.kind, self.subscription, self.source, self.partition, self.version

    def _require(self, rows: int, before: int) -> None:
        if rows != 1:
            raise Superseded(f"{self.subscription} is no longer running at position {before}.")


@dataclass(frozen=True, slots=True)
class PartCheckpoint(Checkpoint):
    """The checkpoint of a part; a part that stops has the whole copy stop."""

    def stop(self, cursor: Cursor[Any], before: int, *, culprit: int, error: str) -> None:
        """Halt the copy: the process that watches the parts stops the other ones."""
        self.move(cursor, before, max(before, culprit - 1))
        cursor.execute(STOP_COPY, (error, culprit, self.subscription))


@dataclass(frozen=True, slots=True)
class Seen:
    """A copy's checkpoint, and the end of the log at the same moment."""

    version: int
    position: int
    status: str
    error: str | None
    updated_at: datetime
    head: int


def of_copy(schema: str, version: int) -> Checkpoint:
    """Return the checkpoint of a copy of a projection."""
    return Checkpoint(SubscriptionKind.PROJECTION, schema, version)


def of_part(schema: str, version: int, number: int) -> Checkpoint:
    """Return the checkpoint of a part, by number (from 0), of a copy that is being built."""
    return PartCheckpoint(SubscriptionKind.REPLAY, schema, version, partition=number)


def look(conn: Connection[TupleRow], schema: str) -> Seen | None:
    """Return the state of one copy; None before it was made."""
    with conn.cursor(row_factory=class_row(Seen)) as cursor:
        return cursor.execute(LOOK, (schema,)).fetchone()


def retry(conn: Connection[TupleRow], schema: str) -> bool:
    """Let a copy that a poison event stopped try again; return whether it was stopped."""
    return conn.execute(RUN, (schema, [CheckpointStatus.STOPPED])).rowcount == 1


def pause(conn: Connection[Any], schema: str) -> bool:
    """Have the copy rest where it stands, in any process; return False if it did not run."""
    changed = conn.execute(PAUSE, (schema,)).rowcount == 1
    notify(conn)
    return changed


def resume(conn: Connection[Any], schema: str) -> bool:
    """Have a paused or stopped copy go on; return False if it was neither."""
    statuses = [CheckpointStatus.PAUSED, CheckpointStatus.STOPPED]
    changed = conn.execute(RUN, (schema, statuses)).rowcount == 1
    notify(conn)
    return changed


def culprit_of(cursor: Cursor[Any], schema: str) -> tuple[int, str] | None:
    """Return the event that a copy stopped in front of, with its error, and lock the copy."""
    return cast("tuple[int, str] | None", cursor.execute(STOPPED, (schema,)).fetchone())


def skip(cursor: Cursor[Any], schema: str) -> None:
    """Let a stopped copy run behind the event that it stopped in front of."""
    cursor.execute(SKIP, (schema,))
    notify(cursor)


def create(conn: Connection[Any], schema: str, projection: str, version: int) -> None:
    """Begin the checkpoint of a new copy at position 0."""
    conn.execute(CREATE, (schema, projection, version))


def lock(conn: Connection[Any], schema: str) -> tuple[int, int] | None:
    """Keep a copy as it is until the transaction ends; return its version and its position."""
    return cast("tuple[int, int] | None", conn.execute(LOCK, (schema,)).fetchone())


def set_version(conn: Connection[Any], schema: str, version: int) -> None:
    """Say that a copy is of this version now."""
    conn.execute(SET_VERSION, (version, schema))


def drop_parts(conn: Connection[Any], schema: str) -> None:
    """Forget the parts of a copy; waits for the processes that are applying to them."""
    conn.execute(DROP_PARTS, (schema,))


def copies(conn: Connection[Any], projection: str, prefix: str) -> list[str]:
    """Return the schemas of a projection's copies that begin with a prefix."""
    return [schema for (schema,) in conn.execute(COPIES, (projection, prefix)).fetchall()]


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


def begin(
    conn: Connection[Any], kind: SubscriptionKind, subscription: str, sources: Iterable[str]
) -> None:
    """Begin a subscription at position 0 of each source where it has no checkpoint."""
    conn.execute(BEGIN, (kind, subscription, list(sources)))


def positions(conn: Connection[Any], kind: SubscriptionKind, subscription: str) -> dict[Place, int]:
    """Return how far a subscription has come in each partition of its sources."""
    rows = conn.execute(POSITIONS, (kind, subscription)).fetchall()
    return {(source, partition): position for source, partition, position in rows}


def set_positions(
    conn: Connection[Any], kind: SubscriptionKind, subscription: str, moved: Mapping[Place, int]
) -> None:
    """Write down how far a subscription has come; one that only its leader calls."""
    if moved:
        rows = [(source, partition, at) for (source, partition), at in moved.items()]
        columns = map(list, zip(*rows, strict=True))
        conn.execute(SET, (kind, subscription, *columns), prepare=True)
