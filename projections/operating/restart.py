"""What a projection does once an operator has let it go on: it moves, or stops again."""

from __future__ import annotations

import time
from threading import Event
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from engine.checkpoints import Status
from infra.advisory_locks import copy_lock
from infra.event_store import EVENTS

PATIENCE_SECONDS = 10.0
LOOK_SECONDS = 0.02
NOBODY = "no process runs it now; one with the role `projections` goes on with it"
STILL = "it is still at its next events"

LOOK = f"""
SELECT position, status, error, error_position,
       (SELECT coalesce(max(notification_id), 0) FROM {EVENTS}) AS head,
       EXISTS (SELECT FROM pg_locks
               WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s
                     AND database = (SELECT oid FROM pg_database
                                     WHERE datname = current_database())) AS active
FROM backlot_checkpoints WHERE kind = 'projection' AND subscription = %s
""".encode()


class ObservedCopy(NamedTuple):
    """A copy as it stands, and whether any process runs it."""

    position: int
    status: str
    error: str | None
    error_position: int | None
    head: int
    active: bool

    @property
    def stopped(self) -> bool:
        """Whether it stands in front of an event that it can't apply."""
        return self.status == Status.STOPPED

    def has_gone_on(self, before: int) -> bool:
        """Whether it has applied something since it stood there, or has nothing to apply."""
        return self.position > before or self.position >= self.head


def await_restart(
    conn: Connection[TupleRow], schema: str, before: int, stopping: Event
) -> tuple[ObservedCopy | None, str | None]:
    """Wait until a copy that was let go on at `before` moves or stops again; ten seconds at most.

    Returns what was seen last (None without such a copy), and why no more can be said of it.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while (seen := _look(conn, schema)) is not None:
        if seen.stopped or seen.has_gone_on(before) or seen.status == Status.PAUSED:
            return seen, None
        if not seen.active:
            return seen, NOBODY
        if time.monotonic() > until or stopping.wait(LOOK_SECONDS):
            return seen, STILL
    return None, None


def _look(conn: Connection[TupleRow], schema: str) -> ObservedCopy | None:
    with conn.cursor(row_factory=class_row(ObservedCopy)) as cursor:
        class_id, key = copy_lock(schema)
        return cursor.execute(LOOK, (int(class_id), key, schema)).fetchone()
