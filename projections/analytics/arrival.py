"""What was recorded and is not stored yet is on its way: how much has to be there, and the wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.comparison import Difference
from infra.advisory_locks import job_lock
from infra.errors import OperatorError
from projections.analytics import comparison

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

LOOK_SECONDS = 0.5


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


def relayed_position(log_conn: Connection[TupleRow]) -> int:
    """The position up to which events are published."""
    (position,) = log_conn.execute(RELAYED).fetchone() or (0,)
    return int(position)


def is_active(conn: Connection[TupleRow], consumer: str) -> bool:
    """Whether any process runs the keeper at this moment."""
    class_id, key = job_lock(f"consumer {consumer}")
    (found,) = conn.execute(ACTIVE, (int(class_id), key)).fetchone() or (False,)
    return bool(found)


@dataclass(frozen=True, slots=True)
class AnalyticsMeans:
    """Where the analytics are kept, and how they are counted.

    `repeat` is how long a view stands for its repetitions, `arrival_seconds` how long is waited for
    what is on its way, and `settle_seconds` without change after which nothing more is expected.
    """

    url: str
    repeat: timedelta
    arrival_seconds: float = 60.0
    settle_seconds: float = 10.0


class Arrival:
    """What came before `goal`: told by the keeper's place, or else waited for until Kafka has
    brought it."""

    def __init__(
        self,
        log_conn: Connection[TupleRow],
        conn: Connection[TupleRow],
        means: AnalyticsMeans,
        goal: int,
    ) -> None:
        self._log_conn, self._conn = log_conn, conn
        self._means = means
        self._goal = goal

    def due(self) -> int:
        """The position up to which likes and comments have to be stored."""
        found = self._taken()
        return self._goal if found.by_kafka else found.position

    def await_relay(self, waiting: Callable[[], None]) -> None:
        """Return once what was recorded before the start is published, where Kafka brings it.

        `waiting` is called now and then. Raises NotTakenIn.
        """
        deadline = time.monotonic() + self._means.arrival_seconds
        while self._taken().by_kafka:
            if not is_active(self._conn, ROWS):
                raise NotTakenIn(
                    "No process takes in what Kafka brings: start one with the role "
                    "`consumers`, and ask again."
                )
            relayed = relayed_position(self._log_conn)
            if relayed >= self._goal:
                return
            if time.monotonic() > deadline:
                raise NotTakenIn(
                    f"The relay is at position {relayed} of {self._goal}: what was recorded is "
                    "not in Kafka yet. See that Kafka and a process with the role `relay` run."
                )
            waiting()
            time.sleep(LOOK_SECONDS)

    def misses(self, found: Difference) -> bool:
        """Whether something is missing that Kafka may still bring."""
        missing = any(table.missing for table in found.tables if table.table == comparison.ROWS)
        return missing and self._taken().by_kafka

    def give_up(self, found: Iterable[Difference]) -> None:
        """What keeps changing was waited for long enough; raises NotTakenIn where it is coming."""
        if any(self.misses(each) for each in found):
            raise NotTakenIn(
                "Events are still coming in through Kafka: wait until the lag of the consumer "
                f"`{ROWS}` is 0 (`backlot_consumer_lag_messages`), and ask again."
            )

    def _taken(self) -> Taken:
        return taken(self._conn, ROWS)
