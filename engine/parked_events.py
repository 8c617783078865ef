"""Parked events, which a copy could not apply: shown, discarded, parked by order, tried again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import structlog
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, class_row
from pydantic.alias_generators import to_camel

from domain.text import shows
from engine import checkpoints, dead_letters
from engine.dead_letters import LetterStatus
from engine.event_store import EVENTS
from engine.inspection.names import named, persons_in, with_names
from engine.log import MAPPER, READ_ONE, Stored, topics_of
from engine.payload_mode import PayloadMode, mask_actor, present
from engine.projection import Projection, RangeProjection, account, try_event
from engine.subscription import notify
from infra.errors import OperatorError, describe, fault_of
from infra.http.shapes import rfc3339
from infra.pseudonyms import Pseudonyms

log = structlog.get_logger(__name__)

PAGE_EVENTS = 100

ROWS = f"""
SELECT p.subscription AS schema, p.position, e.topic, e.originator_id AS stream_id,
       e.originator_version AS version, p.error, p.attempts, p.rejected_at AS parked_at, p.status,
       p.decided_by, p.decided_at, p.reason
FROM backlot_dead_letters p
LEFT JOIN {EVENTS} e ON e.notification_id = p.position
WHERE p.kind = 'projection'
"""
SELECT = f"{ROWS} AND p.subscription = %(schema)s"
OF_ALL = f"""
{ROWS} AND p.subscription = ANY (%(schemas)s) AND p.status = 'parked'
AND (p.position, p.subscription COLLATE "C") > (%(position)s, %(schema)s COLLATE "C")
ORDER BY p.position, p.subscription COLLATE "C" LIMIT %(limit)s
""".encode()
PAGE = """
AND p.position > %(after)s AND (%(status)s::text IS NULL OR p.status = %(status)s)
ORDER BY p.position LIMIT %(limit)s
"""
AT = " AND p.position = %(position)s"
OF_TOPIC = " AND p.status = 'parked' AND e.topic = %(topic)s ORDER BY p.position"
# After so many the live copy gets its turn.
CHUNK_EVENTS = 200

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
WAITING = b"""
SELECT position FROM backlot_dead_letters
WHERE kind = 'projection' AND subscription = %s AND status = 'parked' ORDER BY position
"""
DISCARD = b"""
UPDATE backlot_dead_letters
SET status = 'discarded', decided_by = %s, decided_at = now(), reason = %s
WHERE kind = 'projection' AND subscription = %s AND position = ANY (%s) AND status = 'parked'
RETURNING position
"""
APPLIED = b"""
DELETE FROM backlot_dead_letters
WHERE kind = 'projection' AND subscription = %s AND position = %s
"""
FAILED = b"""
UPDATE backlot_dead_letters SET error = %s, attempts = attempts + 1
WHERE kind = 'projection' AND subscription = %s AND position = %s
"""
# Park every event of the same topic and error that is in the log now.
GIVE_ORDER = f"""
INSERT INTO projections.park_orders (projection, topic, fault, until, given_by, reason)
SELECT %(projection)s, e.topic, %(fault)s, (SELECT max(notification_id) FROM {EVENTS}), %(actor)s,
       %(reason)s
FROM {EVENTS} e WHERE e.notification_id = %(position)s
ON CONFLICT (projection, topic, fault) DO UPDATE
SET until = excluded.until, given_by = excluded.given_by, reason = excluded.reason,
    given_at = now()
""".encode()
ABSENT = "it is not parked, or not any more"
BLOCKED = "an earlier event of its stream is parked: retry that first, or replay"
OVERTAKEN = "later events of its stream were applied: a replay puts it in its place"


class NotParked(OperatorError):
    """No event that waits for a decision is set aside at that position."""


@dataclass(frozen=True, slots=True)
class ParkedRow:
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
        return _as_json(self)


@dataclass(frozen=True, slots=True)
class ParkedContent:
    """A parked event with its content, as far as the mode admits.

    `payload` is that of the newest version of the event, whose topic is `newest_topic`. Of an
    event that can't be read it is None; then `unreadable` says why, and `raw` is what is stored.
    """

    parked: ParkedRow
    actor: str | None = None
    recorded_at: datetime | None = None
    newest_topic: str | None = None
    payload: dict[str, Any] | None = None
    unreadable: str | None = None
    raw: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the parked event and these, without what is None."""
        content = _as_json(self)
        return {**content.pop("parked").as_dict(), **content}


class NotStopped(OperatorError):
    """The projection does not stand in front of an event that it can't apply."""


class NoReason(OperatorError):
    """An event is left out only for a reason that is written down."""


class RetryOutcome(StrEnum):
    """What became of an event; `blocked`, `overtaken` and `absent` ones were not tried."""

    APPLIED = "applied"
    FAILED = "failed"
    BLOCKED = "blocked"
    OVERTAKEN = "overtaken"
    ABSENT = "absent"


class CannotRetry(OperatorError):
    """The copy is not there, or can't take single events, or is of another version."""


@dataclass(frozen=True, slots=True)
class RetriedEvent:
    """An event that was to be tried again, and, unless it is applied, why not."""

    position: int
    outcome: RetryOutcome
    detail: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what the command line's --json and the HTTP API show."""
        result: dict[str, Any] = {"position": self.position, "outcome": str(self.outcome)}
        return result if self.detail is None else {**result, "detail": self.detail}


def parked(
    conn: Connection[TupleRow],
    schema: str,
    *,
    status: LetterStatus | None = None,
    after: int = 0,
    limit: int = PAGE_EVENTS,
) -> list[ParkedRow]:
    """Return the next events that a copy has set aside after a position, of any status or one."""
    values = {"schema": schema, "status": status, "after": after, "limit": limit}
    with conn.cursor(row_factory=class_row(ParkedRow)) as cursor:
        return cursor.execute((SELECT + PAGE).encode(), values).fetchall()


def parked_of_all(
    conn: Connection[TupleRow],
    schemas: Sequence[str],
    *,
    behind: tuple[int, str] = (0, ""),
    limit: int = PAGE_EVENTS,
) -> list[ParkedRow]:
    """Return what waits for a decision in any of these copies, by position and then by copy.

    `behind` names the last one that is known.
    """
    values = {"schemas": list(schemas), "position": behind[0], "schema": behind[1]}
    with conn.cursor(row_factory=class_row(ParkedRow)) as cursor:
        return cursor.execute(OF_ALL, {**values, "limit": limit}).fetchall()


def find(conn: Connection[TupleRow], schema: str, position: int) -> ParkedRow:
    """Return the event that is set aside at a position; raise NotParked."""
    with conn.cursor(row_factory=class_row(ParkedRow)) as cursor:
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
    with conn.cursor(row_factory=class_row(ParkedRow)) as cursor:
        values = {"schema": schema, "topic": like.topic}
        waiting = cursor.execute((SELECT + OF_TOPIC).encode(), values).fetchall()
    return [each.position for each in waiting if fault_of(each.error) == fault_of(like.error)]


def show(
    conn: Connection[TupleRow],
    schema: str,
    position: int,
    *,
    mode: PayloadMode = PayloadMode.FULL,
    persons: Pseudonyms | None = None,
) -> ParkedContent:
    """Return one of them with its content, upcast to its newest version; raise NotParked.

    Those whom it names have their names, where `persons` are given.
    """
    found = find(conn, schema, position)
    row = conn.execute(READ_ONE, (position,)).fetchone()
    if row is None:
        return ParkedContent(found, unreadable="It is not in the log any more.")
    stored = Stored(*row)
    try:
        event = stored.decode().event
    except MapperDeserialisationError as error:
        raw = stored.state.decode(errors="backslashreplace")
        return ParkedContent(
            found, unreadable=describe(error), raw=raw if mode is PayloadMode.FULL else None
        )
    payload = MAPPER.readable(event)
    if persons is not None:
        (found,) = with_deciders((found,), persons)
        payload = named(event.TOPIC, payload, persons.names(persons_in(event.TOPIC, payload)))
    return ParkedContent(
        found,
        actor=mask_actor(payload["actor"], mode),
        recorded_at=event.timestamp,
        newest_topic=event.TOPIC,
        payload=present(payload, mode),
    )


def with_deciders(rows: Sequence[ParkedRow], persons: Pseudonyms) -> list[ParkedRow]:
    """Return the rows with the names of those who decided about the events."""
    names = persons.names({row.decided_by for row in rows if row.decided_by is not None})
    return [replace(row, decided_by=with_names(row.decided_by, names)) for row in rows]


def _as_json(row: ParkedRow | ParkedContent) -> dict[str, Any]:
    values = {to_camel(field.name): getattr(row, field.name) for field in fields(row)}
    return {name: _plain(value) for name, value in values.items() if value is not None}


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
) -> ParkedRow:
    """Leave a parked event out of this copy, and of those that are built and can't apply it either.

    Raise NotParked, and NoReason where none is given.
    """
    if not discard_all(conn, schema, [position], reason=reason, actor=actor):
        raise NotParked(f"No event of {schema} waits for a decision at position {position}.")
    return find(conn, schema, position)


def discard_all(
    conn: Connection[TupleRow], schema: str, positions: Sequence[int], *, reason: str, actor: str
) -> list[int]:
    """Leave several out; return those that waited for a decision. Raise NoReason."""
    _demand(reason)
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute(DISCARD, (actor, reason, schema, list(positions)))
        found = sorted(position for (position,) in cursor.fetchall())
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
) -> ParkedRow:
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
            order = {"projection": name, "fault": fault_of(error), "position": position}
            cursor.execute(GIVE_ORDER, order | {"actor": actor, "reason": reason})
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
    force: bool = False,
) -> list[RetriedEvent]:
    """Try parked events again, in the order of their positions: the chosen ones, or all.

    A chosen one may be discarded; all are those that wait for a decision. Each is tried under a
    savepoint, and up to 200 share a transaction, during which the live copy waits. Raise
    CannotRetry, and what the database raises when it is away: then nothing of the last
    transaction happened.
    """
    name, schema = projection.name, projection.schema
    if isinstance(projection, RangeProjection):
        raise CannotRetry(f"{name} is made from stretches of the log: replay it.")
    waiting = conn.execute(WAITING, (schema,)).fetchall() if chosen is None else []
    positions = [at for (at,) in waiting] if chosen is None else sorted(set(chosen))
    results: list[RetriedEvent] = []
    for start in range(0, len(positions), CHUNK_EVENTS):
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            reached, accounted_after = _hold(cursor, projection)
            asked = {"schema": schema, "reached": reached}
            asked["topics"] = [topic for event in projection.events for topic in topics_of(event)]
            chunk = [
                _retry_one(conn, cursor, projection, asked | {"position": position}, force)
                for position in positions[start : start + CHUNK_EVENTS]
            ]
            applied = [each.position for each in chunk if each.outcome is RetryOutcome.APPLIED]
            account(cursor, schema, [at for at in applied if at > accounted_after])
            notify(cursor)
        results += chunk
    for each in results:
        outcome = {"outcome": str(each.outcome), "detail": each.detail}
        log.info("projection_event_retried", projection=name, position=each.position, **outcome)
    # Of all that waited, what another retry or a decision has taken since was not asked for.
    return [
        each for each in results if chosen is not None or each.outcome is not RetryOutcome.ABSENT
    ]


def _hold(cursor: Cursor[TupleRow], projection: Projection) -> tuple[int, int]:
    """Lock the copy's row before its rows, as a runner does, so that neither waits in turn.

    Return how far the copy is, and after which position its ledger accounts.
    """
    name, schema = projection.name, projection.schema
    # Where a switch gave the name to another copy just now, the second look finds that.
    for _ in range(2):
        if found := cursor.execute(HOLD, (schema,)).fetchone():
            break
    else:
        raise CannotRetry(f"There is no copy {schema} of {name}.")
    version, reached, accounted_after = found
    if version != projection.version:
        raise CannotRetry(
            f"{schema} is of version {version}, and this release has version "
            f"{projection.version} of {name}: replay it."
        )
    return reached, accounted_after


def _retry_one(
    conn: Connection[TupleRow],
    cursor: Cursor[TupleRow],
    projection: Projection,
    asked: dict[str, Any],
    force: bool,
) -> RetriedEvent:
    schema, position = asked["schema"], asked["position"]
    row = cursor.execute(EVENT, asked).fetchone()
    if row is None:
        return RetriedEvent(position, RetryOutcome.ABSENT, ABSENT)
    *columns, blocked, overtaken = row
    if blocked and not force:
        return RetriedEvent(position, RetryOutcome.BLOCKED, BLOCKED)
    if overtaken and not force:
        return RetriedEvent(position, RetryOutcome.OVERTAKEN, OVERTAKEN)
    error = try_event(conn, cursor, projection, Stored(*columns))
    if error is None:
        cursor.execute(APPLIED, (schema, position))
        return RetriedEvent(position, RetryOutcome.APPLIED)
    cursor.execute(FAILED, (describe(error), schema, position))
    return RetriedEvent(position, RetryOutcome.FAILED, describe(error))
