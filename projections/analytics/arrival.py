"""How far the consumers of the analytics are, and the wait for what is on its way to them."""

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
from projections.analytics.reconciliation import ROWS

COUNTS_CONSUMER, VIDEOS_CONSUMER = "analytics", "analytics_videos"
ENGAGED_CONSUMER = "recommendations"
# With Kafka the checkpoints of a consumer are offsets. Beside them it keeps, under these sources,
# the position of the log and of the telemetry up to which it has everything.
BY_KAFKA = {"events": "kafka:events", "telemetry": "kafka:telemetry"}
IN_POSTGRESQL = frozenset({"events", "telemetry"})

KNOWN = b"SELECT to_regclass('backlot_checkpoints') IS NOT NULL"
CHECKPOINTS = b"""
SELECT source, position, updated_at FROM backlot_checkpoints
WHERE kind = 'consumer' AND subscription = %b
"""
REACHED = b"""
SELECT subscription,
       coalesce(max(position) FILTER (WHERE source IN ('events', 'kafka:events')), 0),
       coalesce(max(position) FILTER (WHERE source IN ('telemetry', 'kafka:telemetry')), 0),
       NULL::int
FROM backlot_checkpoints WHERE kind = 'consumer' GROUP BY subscription
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
    """Return how far a consumer is; raise NotTakenIn where it has never begun."""
    (known,) = conn.execute(KNOWN).fetchone() or (False,)
    found = conn.execute(CHECKPOINTS, (consumer,)).fetchall() if known else []
    if not found:
        raise NotTakenIn(
            "The analytics have not taken anything in yet; a process with the role `consumers` does"
        )
    position = max((at for source, at, _ in found if source == "events"), default=0)
    # Checkpoints of the log and of the topics may stand side by side; the newest is in use.
    latest, _, _ = max(found, key=lambda checkpoint: checkpoint[2])
    return Taken(position, latest not in IN_POSTGRESQL)


def relayed_position(log_conn: Connection[TupleRow]) -> int:
    """Return the position up to which the relay has published events."""
    (position,) = log_conn.execute(RELAYED).fetchone() or (0,)
    return int(position)


def is_active(conn: Connection[TupleRow], consumer: str) -> bool:
    """Return whether any process runs the consumer at this moment."""
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
    """The events up to `goal`, which are stored or on their way through Kafka."""

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
        """Return the position up to which likes and comments have to be stored."""
        found = self._taken()
        return self._goal if found.by_kafka else found.position

    def await_relay(self, waiting: Callable[[], None]) -> None:
        """Return once the relay has published all up to `goal`, where Kafka brings it.

        Call `waiting` now and then. Raise NotTakenIn when the relay or the consumer does not work.
        """
        deadline = time.monotonic() + self._means.arrival_seconds
        while self._taken().by_kafka:
            if not is_active(self._conn, COUNTS_CONSUMER):
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
        """Return whether something is missing that Kafka may still bring."""
        missing = any(table.missing for table in found.tables if table.table == ROWS)
        return missing and self._taken().by_kafka

    def give_up(self, found: Iterable[Difference]) -> None:
        """Raise NotTakenIn where what was waited for long enough is still coming."""
        if any(self.misses(each) for each in found):
            raise NotTakenIn(
                "Events are still coming in through Kafka: wait until the lag of the consumer "
                f"`{COUNTS_CONSUMER}` is 0 (`backlot_consumer_lag_messages`), and ask again."
            )

    def _taken(self) -> Taken:
        return taken(self._conn, COUNTS_CONSUMER)
