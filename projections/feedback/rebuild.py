"""Makes what comes of reports again from the telemetry, compares it, and puts it in place.

The telemetry holds every report that was acknowledged within the retention, so that nothing else is
needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import orjson
from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from domain.feedback import CHOSEN, SHOWN
from engine.comparison import Difference, compare
from engine.installation import migrate
from engine.telemetry import TelemetryEvent
from infra.advisory_locks import Lock, hold
from projections.feedback.reports import CONSUMER, SCHEMA, TABLES, prune, report_of, store
from projections.integration_events import NotPublishable, from_telemetry

NAME = "feedback"
NEXT = f"{SCHEMA}__next"
PARTS = ("reports", "hours", "comparisons")
BATCH_REPORTS = 5_000

MAKE = "CREATE TABLE {next}.{part} (LIKE {schema}.{part} INCLUDING ALL)"
REPLACE = "DELETE FROM {schema}.{part}; INSERT INTO {schema}.{part} SELECT * FROM {next}.{part}"
# Of lists given before the retention, the telemetry has not all reports any more: what they came to
# stays as it is.
SUMMED = {"hours": "hour", "comparisons": "given_at"}
DROP_OLD = "DELETE FROM {next}.{part} WHERE {at} < %s"
KEEP_OLD = "INSERT INTO {next}.{part} SELECT * FROM {schema}.{part} WHERE {at} < %s"
# Where Kafka brings the reports, the position up to which all of them have come.
REACHED = b"""
SELECT coalesce(max(position), 0) FROM backlot_checkpoints
WHERE kind = 'consumer' AND subscription = %s AND source IN ('telemetry', 'kafka:telemetry')
"""
READ = b"""
SELECT seq, event_id, topic, video_id, user_id, happened_at, details, correlation_id
FROM public.backlot_telemetry WHERE seq <= %s AND topic = ANY (%s) ORDER BY seq
"""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How far the telemetry was taken in, of which so many events were read, and what differs."""

    position: int
    events: int
    difference: Difference


class FeedbackRebuild:
    """Compares the feedback with what the telemetry tells, and puts that in its place."""

    def __init__(
        self, log_conn: Connection[TupleRow], conn: Connection[TupleRow], kept_since: datetime
    ) -> None:
        """`log_conn` is where the telemetry is, `conn` where the feedback is; of both no other use.

        Reports of lists given before `kept_since` are not kept, and their sums stay as they are.
        """
        self._log_conn, self._conn, self._kept_since = log_conn, conn, kept_since
        migrate(conn, TABLES)

    def compare(self) -> Rebuilt:
        """Find what differs, and change nothing; raise psycopg.Error."""
        with self._next(rolls_back=True) as found:
            return found

    def mend(self, _: object) -> int:
        """Put what the telemetry tells in place, now; return in how many places it differs then."""
        with hold(self._conn, Lock.FEEDBACK_ROWS), self._next():
            for part in PARTS:
                names = {"schema": SCHEMA, "next": NEXT, "part": part}
                self._conn.execute(REPLACE.format(**names).encode())
            left = compare(self._conn, SCHEMA, NEXT).total
            self._conn.execute(f"DROP SCHEMA {NEXT} CASCADE".encode())
        return left

    @contextmanager
    def _next(self, *, rolls_back: bool = False) -> Iterator[Rebuilt]:
        """Make all again beside, in a transaction which sees rows and checkpoint of one moment."""
        self._conn.isolation_level = IsolationLevel.REPEATABLE_READ
        try:
            with self._conn.transaction(force_rollback=rolls_back):
                ((position,),) = self._conn.execute(REACHED, (CONSUMER,)).fetchall()
                self._conn.execute(f"CREATE SCHEMA {NEXT}".encode())
                for part in PARTS:
                    names = {"schema": SCHEMA, "next": NEXT, "part": part}
                    self._conn.execute(MAKE.format(**names).encode())
                events = self._fill(position)
                for schema in (SCHEMA, NEXT):
                    prune(self._conn, self._kept_since, schema)
                for part, at in SUMMED.items():
                    names = {"schema": SCHEMA, "next": NEXT, "part": part, "at": at}
                    for statement in (DROP_OLD, KEEP_OLD):
                        self._conn.execute(statement.format(**names).encode(), (self._kept_since,))
                yield Rebuilt(position, events, compare(self._conn, SCHEMA, NEXT))
        finally:
            self._conn.isolation_level = None

    def _fill(self, until: int) -> int:
        """Store the reports up to a position; return how many there are."""
        count = 0
        with self._log_conn.transaction(), self._log_conn.cursor("feedback_reports") as cursor:
            cursor.execute(READ, (until, [SHOWN, CHOSEN]))
            while rows := cursor.fetchmany(BATCH_REPORTS):
                reports = []
                for seq, *fields in rows:
                    try:
                        message = from_telemetry(seq, TelemetryEvent(*fields))
                        value = orjson.loads(message.value)
                        reports.append(report_of(message.topic, message.id, value))
                    except (NotPublishable, KeyError, TypeError, ValueError):
                        # The consumer has set it aside, too.
                        continue
                store(self._conn, reports, NEXT)
                count += len(reports)
        return count
