"""Parked events, which a copy could not apply: shown, discarded, parked by order, tried again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import structlog
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, class_row

from domain.text import shows
from engine import checkpoints, dead_letters, ledger
from engine.applier import try_event
from engine.codec import EventMapper, topics_of
from engine.event_store import EVENTS
from engine.log import READ_ONE, Log, Stored
from engine.notifications import notify
from engine.privacy import PayloadMode, mask_actor, present
from engine.projection import Projection, RangeProjection
from infra.errors import OperatorError, describe, fault_of
from infra.http.shapes import rfc3339

log = structlog.get_logger(__name__)

PAGE_EVENTS = 100

SELECT = f"""
SELECT p.subscription AS schema, p.position, e.topic, e.originator_id AS stream_id,
       e.originator_version AS version, p.error, p.attempts, p.rejected_at AS parked_at, p.status,
       p.decided_by, p.decided_at, p.reason
FROM backlot_dead_letters p
LEFT JOIN {EVENTS} e ON e.notification_id = p.position
WHERE p.kind = 'projection' AND p.subscription = %(schema)s
"""
PAGE = """
AND p.position > %(after)s AND (%(status)s::text IS NULL OR p.status = %(status)s)
ORDER BY p.position LIMIT %(limit)s
"""
AT = " AND p.position = %(position)s"
OF_TOPIC = " AND p.status = 'parked' AND e.topic = %(topic)s ORDER BY p.position"
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


class ParkedStatus(StrEnum):
    """Whether the event waits for a decision, or an operator decided to leave it out."""

    PARKED = "parked"
    DISCARDED = "discarded"


class NotParked(OperatorError):
    """No event that waits for a decision is set aside at that position."""


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that one copy has set aside; where the log lost it, it has no topic and stream.

    Who decided, when and why: of the operator who discarded it, or had it parked.
    """

    schema: str
    position: int
    topic: str | None
    stream_id: UUID | None
    version: int | None
    error: str
    attempts: int
    parked_at: datetime
    status: str
    decided_by: str | None
    decided_at: datetime | None
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return what the command line's --json and the HTTP API show; without what is None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {_camel(name): _plain(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Shown:
    """A parked event with its content, as far as the mode admits.

    `payload` is that of the newest version of the event, whose topic is `newest_topic`. Of an
    event that can't be read it is None; then `unreadable` says why, and `raw` is what is stored.
    """

    parked: Parked
    actor: str | None = None
    recorded_at: datetime | None = None
    newest_topic: str | None = None
    payload: dict[str, Any] | None = None
    unreadable: str | None = None
    raw: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the parked event and these, without what is None."""
        names = ("actor", "recorded_at", "newest_topic", "payload", "unreadable", "raw")
        values = {_camel(name): _plain(getattr(self, name)) for name in names}
        known = {name: value for name, value in values.items() if value is not None}
        return {**self.parked.as_dict(), **known}


class NotStopped(OperatorError):
    """The projection does not stand in front of an event that it can't apply."""


class NoReason(OperatorError):
    """An event is left out only for a reason that is written down."""


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
        """Return what the command line's --json and the HTTP API show."""
        result: dict[str, Any] = {"position": self.position, "outcome": str(self.outcome)}
        return result if self.detail is None else {**result, "detail": self.detail}


class Held(NamedTuple):
    """A copy that is locked against other changes, and from where its ledger accounts."""

    reached: int
    accounted_after: int


def parked(
    conn: Connection[TupleRow],
    schema: str,
    *,
    status: ParkedStatus | None = None,
    after: int = 0,
    limit: int = PAGE_EVENTS,
) -> list[Parked]:
    """The next events that a copy has set aside after a position, of any status or one."""
    values = {"schema": schema, "status": status, "after": after, "limit": limit}
    with conn.cursor(row_factory=class_row(Parked)) as cursor:
        return cursor.execute((SELECT + PAGE).encode(), values).fetchall()


def find(conn: Connection[TupleRow], schema: str, position: int) -> Parked:
    """Return the event that is set aside at a position; raise NotParked."""
    with conn.cursor(row_factory=class_row(Parked)) as cursor:
        values = {"schema": schema, "position": position}
        found = cursor.execute((SELECT + AT).encode(), values).fetchone()
    if found is None:
        raise NotParked(f"{schema} has set no event aside at position {position}.")
    return found


def alike(conn: Connection[TupleRow], schema: str, position: int) -> list[int]:
    """Return where events wait that are of the topic of the one at a position and failed as it did.

    It is among them if it waits itself. Raise NotParked.
    """
    like = find(conn, schema, position)
    with conn.cursor(row_factory=class_row(Parked)) as cursor:
        values = {"schema": schema, "topic": like.topic}
        waiting = cursor.execute((SELECT + OF_TOPIC).encode(), values).fetchall()
    return [each.position for each in waiting if fault_of(each.error) == fault_of(like.error)]


def show(
    conn: Connection[TupleRow],
    schema: str,
    position: int,
    *,
    mapper: EventMapper,
    mode: PayloadMode = PayloadMode.FULL,
) -> Shown:
    """Return one of them with its content, upcast to its newest version; raise NotParked."""
    found = find(conn, schema, position)
    row = conn.execute(READ_ONE, (position,)).fetchone()
    if row is None:
        return Shown(found, unreadable="It is not in the log any more.")
    stored = Stored(*row)
    try:
        event = mapper.decode(*stored[1:])
    except MapperDeserialisationError as error:
        raw = stored.state.decode(errors="backslashreplace")
        return Shown(
            found, unreadable=describe(error), raw=raw if mode is PayloadMode.FULL else None
        )
    return Shown(
        found,
        actor=mask_actor(event.actor, mode),
        recorded_at=event.timestamp,
        newest_topic=event.TOPIC,
        payload=present(orjson.loads(mapper.to_stored_event(event).state), mode),
    )


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    return str(value) if isinstance(value, UUID) else value


def remedy(name: str) -> str:
    """Return what an operator does about a projection that an event has stopped."""
    return (
        f"remove the cause and `backlot projections resume {name}`, or go on without the event: "
        f"`backlot projections parked park {name} --reason …`"
    )


def discard(
    conn: Connection[TupleRow], schema: str, position: int, *, reason: str, actor: str
) -> Parked:
    """Leave a parked event out of this copy, and of those that are built and can't apply it either.

    Raise NotParked, and NoReason where none is given.
    """
    if not discard_all(conn, schema, [position], reason=reason, actor=actor):
        raise NotParked(f"No event of {schema} waits for a decision at position {position}.")
    return find(conn, schema, position)


def discard_all(
    conn: Connection[TupleRow], schema: str, positions: Sequence[int], *, reason: str, actor: str
) -> list[int]:
    """The same with several; return those that waited for a decision. Raise NoReason."""
    _demand(reason)
    with conn.transaction(), conn.cursor() as cursor:
        found = dead_letters.discard(cursor, schema, positions, actor=actor, reason=reason)
        notify(cursor)
    for position in found:
        log.warning("projection_event_discarded", projection=schema, position=position, actor=actor)
    return found


def park_and_go_on(
    conn: Connection[TupleRow],
    projection: Projection,
    *,
    reason: str,
    actor: str,
    all_like: int | None = None,
) -> Parked:
    """Park the event that a projection stopped in front of, and let it run behind that.

    `all_like` is that event's position, to have every event parked that is in the log now, of its
    topic, and fails with its error. Raise NotStopped, and NoReason where none is given.
    """
    _demand(reason)
    name, schema = projection.name, projection.schema
    if isinstance(projection, RangeProjection):
        raise NotStopped(f"{name} is made from stretches of the log: no single event is at fault.")
    with conn.transaction(), conn.cursor() as cursor:
        culprit = checkpoints.culprit_of(cursor, schema)
        if culprit is None:
            raise NotStopped(f"{schema} is not stopped in front of an event.")
        position, error = culprit
        if all_like not in (None, position):
            raise NotStopped(f"{schema} is stopped in front of {position}, not of {all_like}.")
        dead_letters.park(cursor, schema, position, error)
        dead_letters.say_why(cursor, schema, position, actor, reason)
        if all_like is not None:
            dead_letters.order_parking(cursor, name, position, error, reason=reason, actor=actor)
        checkpoints.skip(cursor, schema)
        log.warning("projection_event_parked", projection=name, position=position, actor=actor)
    return find(conn, schema, position)


def _demand(reason: str) -> None:
    if not shows(reason):
        raise NoReason("Say why: the reason is kept with the event.")


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
    savepoint, and up to 200 share a transaction, during which the live copy waits. Raise
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
            self._log_result(result)
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

    def _log_result(self, result: Retried) -> None:
        log.info(
            "projection_event_retried",
            projection=self._projection.name,
            position=result.position,
            outcome=str(result.outcome),
            detail=result.detail,
        )
