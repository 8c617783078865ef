"""Applies parked events again, once what broke them is mended.

A retry comes late. Where other events of the same stream were applied in the meantime, or wait
before it, the rows would not be those that a replay gives: it is refused unless it is forced.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import structlog
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from engine import dead_letters
from engine.notifications import notify
from infra.codec import EventMapper, topics_of
from infra.errors import OperatorError, describe
from infra.event_store import EVENTS
from projections import ledger
from projections.log import Log, Stored
from projections.poison import try_event
from projections.projection import Projection, RangeProjection

log = structlog.get_logger(__name__)

CHUNK_EVENTS = 200
"""After so many the live copy gets its turn."""

HOLD = b"""
SELECT version, position, accounted_after FROM backlot_checkpoints
WHERE kind = 'projection' AND subscription = %s FOR NO KEY UPDATE
"""
EVENT = f"""
SELECT e.notification_id, e.originator_id, e.originator_version, e.topic, e.state,
       EXISTS (
           SELECT FROM {EVENTS} o
           JOIN backlot_dead_letters q ON q.kind = p.kind AND q.subscription = p.subscription
                                       AND q.position = o.notification_id
           WHERE o.originator_id = e.originator_id AND q.status = 'parked'
                 AND o.originator_version < e.originator_version),
       EXISTS (
           SELECT FROM {EVENTS} o
           WHERE o.originator_id = e.originator_id AND o.topic = ANY (%(topics)s::text[])
                 AND o.originator_version > e.originator_version
                 AND o.notification_id <= %(reached)s
                 AND NOT EXISTS (SELECT FROM backlot_dead_letters q
                                 WHERE q.kind = p.kind AND q.subscription = p.subscription
                                       AND q.position = o.notification_id))
FROM backlot_dead_letters p JOIN {EVENTS} e ON e.notification_id = p.position
WHERE p.kind = 'projection' AND p.subscription = %(schema)s AND p.position = %(position)s
      AND p.position <= %(reached)s
FOR UPDATE OF p
""".encode()
ABSENT = "it is not parked, or not any more"
BLOCKED = "an earlier event of its stream is parked: retry that first, or replay"
OVERTAKEN = "later events of its stream were applied: a replay puts it in its place"


class Outcome(StrEnum):
    """What became of an event; `blocked`, `overtaken` and `absent` ones were not tried."""

    APPLIED = "applied"
    FAILED = "failed"
    BLOCKED = "blocked"
    OVERTAKEN = "overtaken"
    ABSENT = "absent"


class CannotRetry(OperatorError):
    """The copy is not there, or can't take single events, or is of another version."""


@dataclass(frozen=True, slots=True)
class Retried:
    """An event that was to be tried again, and, unless it is applied, why not."""

    position: int
    outcome: Outcome
    detail: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As the command line's --json and the HTTP API tell it."""
        told: dict[str, Any] = {"position": self.position, "outcome": str(self.outcome)}
        return told if self.detail is None else {**told, "detail": self.detail}


class Held(NamedTuple):
    """A copy that nobody else changes meanwhile, and from where its ledger accounts."""

    reached: int
    accounted_after: int


def retry(
    conn: Connection[TupleRow],
    projection: Projection,
    chosen: Collection[int] | None = None,
    *,
    mapper: EventMapper,
    force: bool = False,
) -> list[Retried]:
    """Try parked events again, in the order of their positions: the chosen ones, or all.

    A chosen one may be discarded; all are those that wait for a decision. Each is tried under a
    savepoint, and up to 200 share a transaction, during which the live copy waits. Raises
    CannotRetry, and what the database raises when it is away: then nothing of the last
    transaction happened.
    """
    if isinstance(projection, RangeProjection):
        raise CannotRetry(f"{projection.name} is made from stretches of the log: replay it.")
    trial = Trial(conn, projection, mapper, force)
    if chosen is None:
        results = trial.run(dead_letters.waiting(conn, projection.schema))
        # What another retry or a decision has taken in the meantime was not asked for.
        return [result for result in results if result.outcome is not Outcome.ABSENT]
    return trial.run(sorted(set(chosen)))


class Trial:
    """Trying events again in one copy."""

    def __init__(
        self, conn: Connection[TupleRow], projection: Projection, mapper: EventMapper, force: bool
    ) -> None:
        self._conn = conn
        self._projection = projection
        self._log = Log(projection.events, mapper=mapper, batch_events=1)
        self._force = force
        self._topics = [topic for event in projection.events for topic in topics_of(event)]

    def run(self, positions: Sequence[int]) -> list[Retried]:
        """Try them, some per transaction."""
        results: list[Retried] = []
        for start in range(0, len(positions), CHUNK_EVENTS):
            results += self._chunk(positions[start : start + CHUNK_EVENTS])
        for result in results:
            self._tell(result)
        return results

    def _chunk(self, positions: Sequence[int]) -> list[Retried]:
        schema = self._projection.schema
        with self._conn.transaction(), self._conn.cursor(binary=True) as cursor:
            held = self._hold(cursor)
            results = [self._one(cursor, held, position) for position in positions]
            applied = [r.position for r in results if r.outcome is Outcome.APPLIED]
            ledger.add(cursor, schema, sorted(at for at in applied if at > held.accounted_after))
            notify(cursor)
        return results

    def _hold(self, cursor: Cursor[TupleRow]) -> Held:
        """Lock the copy's row before its rows, as a runner does, so that neither waits in turn."""
        projection = self._projection
        # Where a switch gave the name to another copy just now, the second look finds that.
        found = self._look(cursor) or self._look(cursor)
        if found is None:
            raise CannotRetry(f"There is no copy {projection.schema} of {projection.name}.")
        version, reached, accounted_after = found
        if version != projection.version:
            raise CannotRetry(
                f"{projection.schema} is of version {version}, and this release has version "
                f"{projection.version} of {projection.name}: replay it."
            )
        return Held(reached, accounted_after)

    def _look(self, cursor: Cursor[TupleRow]) -> TupleRow | None:
        return cursor.execute(HOLD, (self._projection.schema,)).fetchone()

    def _one(self, cursor: Cursor[TupleRow], held: Held, position: int) -> Retried:
        schema = self._projection.schema
        values = {"schema": schema, "position": position, "topics": self._topics}
        row = cursor.execute(EVENT, values | {"reached": held.reached}).fetchone()
        if row is None:
            return Retried(position, Outcome.ABSENT, ABSENT)
        *columns, blocked, overtaken = row
        if blocked and not self._force:
            return Retried(position, Outcome.BLOCKED, BLOCKED)
        if overtaken and not self._force:
            return Retried(position, Outcome.OVERTAKEN, OVERTAKEN)
        error = try_event(self._conn, cursor, self._projection, self._log, Stored(*columns))
        if error is None:
            dead_letters.applied(cursor, schema, position)
            return Retried(position, Outcome.APPLIED)
        dead_letters.failed_again(cursor, schema, position, describe(error))
        return Retried(position, Outcome.FAILED, describe(error))

    def _tell(self, result: Retried) -> None:
        log.info(
            "projection_event_retried",
            projection=self._projection.name,
            position=result.position,
            outcome=str(result.outcome),
            detail=result.detail,
        )
