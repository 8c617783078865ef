"""How far the analytics have taken the event log in: what lies behind that is not missing."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import TupleRow

from infra.advisory_locks import job_lock
from infra.errors import OperatorError

ROWS, VIDEOS = "analytics", "analytics_videos"
IN_POSTGRESQL = frozenset({"events", "telemetry"})

KNOWN = b"SELECT to_regclass('backlot_checkpoints') IS NOT NULL"
PLACES = b"""
SELECT source, position, updated_at FROM backlot_checkpoints
WHERE kind = 'consumer' AND subscription = %b
"""
RELAYED = b"SELECT position FROM backlot_checkpoints WHERE kind = 'relay' AND source = 'events'"
ACTIVE = b"""
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND classid = %b::bigint::oid AND objid = %b::bigint::oid
      AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


class NotTakenIn(OperatorError):
    """There is nothing to compare with, or what was recorded is still on its way."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The position up to which the log itself was read; `by_kafka` where topics are read now."""

    position: int
    by_kafka: bool


def taken(conn: Connection[TupleRow], consumer: str) -> Taken:
    """How far one of the keepers is; raises NotTakenIn where none has ever begun."""
    (known,) = conn.execute(KNOWN).fetchone() or (False,)
    found = conn.execute(PLACES, (consumer,)).fetchall() if known else []
    if not found:
        raise NotTakenIn(
            "The analytics have not taken anything in yet; a process with the role `consumers` does"
        )
    position = max((at for source, at, _ in found if source == "events"), default=0)
    # There may be places of the log from before, or of the topics.
    latest, _, _ = max(found, key=lambda place: place[2])
    return Taken(position, latest not in IN_POSTGRESQL)


def relayed(log_conn: Connection[TupleRow]) -> int:
    """The position up to which events are published."""
    (position,) = log_conn.execute(RELAYED).fetchone() or (0,)
    return int(position)


def is_active(conn: Connection[TupleRow], consumer: str) -> bool:
    """Whether any process runs the keeper at this moment."""
    class_id, key = job_lock(f"consumer {consumer}")
    (found,) = conn.execute(ACTIVE, (int(class_id), key)).fetchone() or (False,)
    return bool(found)
