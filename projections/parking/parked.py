"""Shows the events that a copy could not apply and set aside, and what operators decided."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from infra.codec import EventMapper
from infra.errors import OperatorError, describe, fault_of
from infra.event_store import EVENTS
from infra.privacy import PayloadMode, mask_actor, present
from infra.utc import rfc3339
from projections.log import READ_ONE, Stored

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


class ParkedStatus(StrEnum):
    """Whether the event waits for a decision, or somebody decided to leave it out."""

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
        """As the command line's --json and the HTTP API tell it; without what is None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {_camel(name): _plain(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Shown:
    """A parked event with its content, as far as the mode admits.

    `payload` is that of the newest version of the event, whose topic is `newest_topic`. Of an
    event that nobody can read it is None; then `unreadable` says why, and `raw` is what is stored.
    """

    parked: Parked
    actor: str | None = None
    recorded_at: datetime | None = None
    newest_topic: str | None = None
    payload: dict[str, Any] | None = None
    unreadable: str | None = None
    raw: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields of the parked event and these, without what is None."""
        names = ("actor", "recorded_at", "newest_topic", "payload", "unreadable", "raw")
        values = {_camel(name): _plain(getattr(self, name)) for name in names}
        told = {name: value for name, value in values.items() if value is not None}
        return {**self.parked.as_dict(), **told}


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
    """The event that is set aside at a position; raises NotParked."""
    with conn.cursor(row_factory=class_row(Parked)) as cursor:
        values = {"schema": schema, "position": position}
        found = cursor.execute((SELECT + AT).encode(), values).fetchone()
    if found is None:
        raise NotParked(f"{schema} has set no event aside at position {position}.")
    return found


def alike(conn: Connection[TupleRow], schema: str, position: int) -> list[int]:
    """Where events wait that are of the topic of the one at a position and failed as it did.

    It is among them if it waits itself. Raises NotParked.
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
    """One of them with its content, upcast to its newest version; raises NotParked."""
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
