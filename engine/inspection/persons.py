"""The events about one person, found by the audit's index, and what of each is about that person.

The index knows who acted. So the streams in which a person has acted are found by it, and in them
whatever names the person, such as a translation of their comment. Kinds that name somebody who has
no part in the stream are found by their topics. What is not indexed yet is read from the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import LiteralString
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from domain.model import EVENTS as EVENT_CLASSES
from domain.model import Aggregate
from engine import log
from engine.event_store import EVENTS
from engine.inspection.index import Audit
from engine.log import MAPPER, Stored, topics_of
from engine.personal_data import (
    IN_THE_LOG,
    Left,
    PersonalEvents,
    PersonalStreams,
    PersonalTable,
    Row,
    given,
    read,
)

PERSONAL = (
    PersonalStreams(
        name="events",
        holds="what somebody did, and what became of it: the event log",
        kept="the event log is kept for good",
        forget=IN_THE_LOG,
    ),
    PersonalTable(
        name="audit.events",
        holds="who acted, by the position of each event: the audit's index",
        kept="follows the event log",
        table="{schema}.events",
        projection=Audit.name,
        columns=("actor",),
        shown=None,
        forget=Left("it says no more than the events: the pseudonym names nobody", for_good=True),
    ),
)

NOT_INDEXED: LiteralString = """
notification_id > (SELECT coalesce(max(position), 0) FROM backlot_checkpoints
                   WHERE kind = 'projection' AND subscription = 'audit')
AND position(%(needle)s::bytea IN state) > 0
"""
STREAMS_OF_PERSON: LiteralString = f"""
SELECT DISTINCT acted.originator_id FROM (
    SELECT e.originator_id FROM audit.events AS a
    JOIN {EVENTS} AS e ON e.notification_id = a.position WHERE a.actor = %(subject)s
    UNION ALL SELECT originator_id FROM {EVENTS} CROSS JOIN LATERAL audit.read(state) AS f
    WHERE f.actor = %(subject)s AND {NOT_INDEXED}) AS acted
"""
"""Asks for the ids of the streams in which a person has acted."""
COLUMNS: LiteralString = (
    "e.notification_id, e.originator_id, e.originator_version, e.topic, e.state"
)
IN_STREAMS = f"""
SELECT {COLUMNS} FROM ({STREAMS_OF_PERSON}) AS s
JOIN {EVENTS} AS e ON e.originator_id = s.originator_id
WHERE position(%(needle)s::bytea IN e.state) > 0 ORDER BY e.notification_id
""".encode()
BY_TOPIC = f"""
SELECT {COLUMNS} FROM (
    SELECT position FROM audit.events WHERE topic = ANY (%(topics)s)
    UNION SELECT notification_id FROM {EVENTS}
    WHERE topic = ANY (%(topics)s) AND {NOT_INDEXED}) AS found
JOIN {EVENTS} AS e ON e.notification_id = found.position
WHERE position(%(needle)s::bytea IN e.state) > 0 ORDER BY e.notification_id
""".encode()

STREAMS_WITH = f"""
SELECT originator_id FROM {EVENTS} WHERE originator_id = ANY (%s) AND topic = ANY (%s)
""".encode()
BEGUN_STREAMS = f"""
SELECT e.originator_id FROM audit.events AS a
JOIN {EVENTS} AS e ON e.notification_id = a.position
WHERE a.actor = %(subject)s AND a.topic = ANY (%(topics)s)
UNION SELECT originator_id FROM {EVENTS} CROSS JOIN LATERAL audit.read(state) AS f
WHERE f.actor = %(subject)s AND topic = ANY (%(topics)s) AND {NOT_INDEXED}
""".encode()


@cache
def personal_fields(topic: str) -> Mapping[str, str]:
    """Return the fields of a topic's events that tell something about a person, and which field
    has that person; of an unknown topic, that somebody acted."""
    return log.personal_fields(EVENT_CLASSES.get(topic, Aggregate.Event))


def events_in_streams(conn: Connection[TupleRow], subject: str) -> Iterator[list[Row]]:
    """Yield what an export shows of the events in a person's streams, some at a time, in order.

    Raise psycopg.Error.
    """
    return read(conn, IN_STREAMS, given(subject), partial(shown, subject, None))


def events_by_topic(
    conn: Connection[TupleRow], place: PersonalEvents, subject: str
) -> Iterator[list[Row]]:
    """Yield the same of the events of a place; raise psycopg.Error."""
    topics = [topic for event in place.events for topic in topics_of(event)]
    values = given(subject) | {"topics": topics}
    return read(conn, BY_TOPIC, values, partial(shown, subject, place.subject))


def begun(
    conn: Connection[TupleRow], event: type[Aggregate.Event], subject: str
) -> list[Aggregate.Event]:
    """Return a person's events of one kind, in their order; raise psycopg.Error."""
    topics = topics_of(event)
    with conn.transaction(), conn.cursor("begun") as cursor:
        cursor.execute(IN_STREAMS, given(subject))
        found = (Stored(*row) for row in cursor if row[3] in topics)
        return [stored.decode().event for stored in found if _is_about(stored, subject)]


def begun_streams(
    conn: Connection[TupleRow], events: Iterable[type[Aggregate.Event]], subject: str
) -> list[UUID]:
    """Return the streams in which a person has recorded one of these; raise psycopg.Error."""
    topics = [topic for event in events for topic in topics_of(event)]
    rows = conn.execute(BEGUN_STREAMS, given(subject) | {"topics": topics}).fetchall()
    return [stream for (stream,) in rows]


def streams_with(
    conn: Connection[TupleRow], event: type[Aggregate.Event], streams: list[UUID]
) -> set[UUID]:
    """Return those of the streams that have an event of one kind; raise psycopg.Error."""
    rows = conn.execute(STREAMS_WITH, (streams, topics_of(event))).fetchall()
    return {stream for (stream,) in rows}


def _is_about(stored: Stored, subject: str) -> bool:
    return shown(subject, None, tuple(stored)) is not None


def shown(subject: str, field: str | None, row: TupleRow) -> Row | None:
    """Return what an event says about a person; None where it names the person by chance only.

    What tells something about somebody else is left out. With a `field`, that has to name the
    person.
    """
    position, stream, version, topic, state = row
    payload = _payload(stream, version, topic, state)
    personal = personal_fields(topic)
    named = {name for name, whose in personal.items() if payload.get(whose) == subject}
    if not named or (field is not None and payload.get(field) != subject):
        return None
    said = {name: value for name, value in payload.items() if name not in personal or name in named}
    return {
        "position": position,
        "streamId": str(stream),
        "version": version,
        "topic": topic,
        "payload": said,
    }


def _payload(stream: UUID, version: int, topic: str, state: bytes) -> dict[str, object]:
    try:
        return MAPPER.payload(stream, version, topic, state)
    except ValueError:
        return {}
