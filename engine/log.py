"""The event log: events as compact JSON, upcast when they are read, and the log read in order.

What an event says about a person is encrypted with that person's key, where the mapper is given
keys: a field `Personal` of another field. Its value is then an object with the cipher text, bound
to stream, version and field. Whose key is destroyed has said nothing.

Positions are given without gaps and become visible in their order, so whatever lies at or below a
head that was seen is complete: no reader can skip a position.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from functools import cache
from hashlib import sha1
from os import urandom
from types import UnionType
from typing import Any, NamedTuple, Protocol, Union, cast, get_args, get_origin, get_type_hints
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import (
    JSONTranscoder,
    Mapper,
    MapperDeserialisationError,
    StoredEvent,
)
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.model import EVENTS as EVENT_CLASSES
from domain.model import ActorKind, Aggregate, Personal, Upcast, actor_kind
from engine.event_store import EVENTS
from infra.key_encryption import KEY_BYTES, NONCE_BYTES

COLUMNS = frozenset(("originator_id", "originator_version"))
SEALED = "aes256gcm"
"""The one member of an object that stands for an encrypted value: base64 of nonce and text."""
SEALED_BYTES = f'{{"{SEALED}":'.encode()
FROM_JSON: dict[type, Callable[[str], Any]] = {UUID: UUID, datetime: datetime.fromisoformat}

# Above every position, which are bigint.
END_OF_LOG = 2**63 - 1
WINDOW_BATCHES = 10
MAX_WINDOW_BYTES = 16 * 1024 * 1024

HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()

READ = f"""
SELECT notification_id, originator_id, originator_version, topic, state FROM (
    SELECT notification_id, originator_id, originator_version, topic, state,
           sum(octet_length(state)) OVER (ORDER BY notification_id) AS bytes
    FROM {EVENTS}
    WHERE notification_id > %b AND notification_id <= %b AND topic = ANY (%b::text[])
    ORDER BY notification_id
    LIMIT %b) AS e
WHERE bytes - octet_length(state) < %b
""".encode()
# Ids of streams are random or hashes, so that their last byte spreads them evenly.
READ_PART = READ.replace(
    b"ORDER BY notification_id\n",
    b"AND get_byte(uuid_send(originator_id), 15) %% %b = %b ORDER BY notification_id\n",
)

READ_ONE = f"""
SELECT notification_id, originator_id, originator_version, topic, state
FROM {EVENTS} WHERE notification_id = %s
""".encode()


class EventShape(NamedTuple):
    """How to make an event of one topic: its class, its upcast, its fields, those to convert.

    `later` are the fields that it got under the same topic, with what stands for them in events
    that were stored before.
    """

    event: type[Aggregate.Event]
    upcast: Upcast | None
    fields: frozenset[str]
    later: dict[str, Any]
    conversions: tuple[tuple[str, Callable[[str], Any]], ...]
    sealed: tuple[SealedField, ...]


NO_SHAPE = EventShape(Aggregate.Event, None, frozenset(), {}, (), ())


class SealedField(NamedTuple):
    """A field that is encrypted, the field with the person whose key that is, and what stands for
    the value once the key is destroyed.

    `encoded` is the name in UTF-8, `before_person` what stands before the person in a stored event.
    """

    name: str
    person: str
    blank: str | None
    encoded: bytes
    before_person: bytes


class Ciphers(Protocol):
    """The keys of persons; may ask a database."""

    def cipher(self, person: str) -> AESGCM | None:
        """Return a person's cipher; None where the key is destroyed. Raise KeyError of nobody."""

    def prepare(self, persons: Iterable[str]) -> None:
        """Read the keys of so many at once."""


class EventMapper(Mapper[UUID]):
    """The library's mapper for events that an aggregate declares; knows each topic, old and new.

    Without `ciphers` nothing is encrypted, and what is encrypted can't be read. Raise
    MapperDeserialisationError for a topic that no imported module declares, for a payload that does
    not fit its event, and for a cipher text of another event.
    """

    def __init__(self) -> None:
        super().__init__(JSONTranscoder())
        self.ciphers: Ciphers | None = None

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        payload = dict(vars(domain_event))
        stream, version = payload.pop("originator_id"), payload.pop("originator_version")
        topic = cast("Aggregate.Event", domain_event).TOPIC
        return StoredEvent(stream, version, topic, self.state(stream, version, topic, payload))

    def state(self, stream_id: UUID, version: int, topic: str, payload: dict[str, Any]) -> bytes:
        """Return what is stored of a payload, whose personal fields this encrypts in place."""
        if self.ciphers is not None and topic in EVENT_CLASSES:
            for field in _shape(topic).sealed:
                _seal(self.ciphers, payload, field, stream_id, version)
        return orjson.dumps(payload)

    def prepare(self, stored: Iterable[tuple[str, bytes]]) -> None:
        """Read at once the keys that events need, given their topics and states."""
        if self.ciphers is not None and (persons := set(_persons(stored))):
            self.ciphers.prepare(persons)

    def readable(self, event: Aggregate.Event) -> dict[str, Any]:
        """Return what an event says, as JSON values; nothing is encrypted."""
        payload: dict[str, Any] = orjson.loads(orjson.dumps(vars(event)))
        return {name: value for name, value in payload.items() if name not in COLUMNS}

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEventProtocol[UUID]:
        stream, version = cast("UUID", stored_event.originator_id), stored_event.originator_version
        event = self.decode(stream, version, stored_event.topic, stored_event.state)
        return cast("DomainEventProtocol[UUID]", event)

    def decode(self, stream_id: UUID, version: int, topic: str, state: bytes) -> Aggregate.Event:
        """Return the event that these four columns hold, in its newest shape."""
        try:
            shape = _shape(topic)
            payload = self._payload(stream_id, version, shape, state)
            if shape.upcast is not None:
                shape.upcast(payload)
            if shape.later:
                payload = {**shape.later, **payload}
            if not payload.keys() >= shape.fields:
                raise KeyError(*sorted(shape.fields - payload.keys()))
            for name, convert in shape.conversions:
                if payload[name] is not None:
                    payload[name] = convert(payload[name])
        except (KeyError, TypeError, ValueError, AttributeError, InvalidTag) as error:
            raise MapperDeserialisationError(
                f"Can't read version {version} of stream {stream_id} (topic {topic}): {error!r}"
            ) from error
        payload["originator_id"] = stream_id
        payload["originator_version"] = version
        event = object.__new__(shape.event)
        object.__setattr__(event, "__dict__", payload)
        return event

    def payload(self, stream_id: UUID, version: int, topic: str, state: bytes) -> dict[str, Any]:
        """Return what was recorded, in the shape of its time and readable.

        Raise ValueError where that is no JSON object, or can't be decrypted.
        """
        shape = _shape(topic) if topic in EVENT_CLASSES else NO_SHAPE
        try:
            return self._payload(stream_id, version, shape, state)
        except (KeyError, TypeError, AttributeError, InvalidTag) as error:
            raise ValueError(f"what was recorded can't be read: {error!r}") from error

    def _payload(
        self, stream_id: UUID, version: int, shape: EventShape, state: bytes
    ) -> dict[str, Any]:
        payload: dict[str, Any] = orjson.loads(state)
        for field in shape.sealed:
            if type(payload.get(field.name)) is dict:
                _open(self.ciphers, payload, field, stream_id, version)
        return payload

    @property
    def topics(self) -> frozenset[str]:
        """Every topic that this mapper can read."""
        return frozenset(EVENT_CLASSES)


def event_id(stream_id: UUID, version: int) -> UUID:
    """Return the id of an event outside the log: `uuid5(stream id, version)`, always the same."""
    digest = sha1(stream_id.bytes + b"%d" % version, usedforsecurity=False).digest()
    return UUID(bytes=digest[:16], version=5)


def topics_of(event: type[Aggregate.Event]) -> list[str]:
    """Return every topic under which an event may be stored: the present one and the old ones."""
    return [event.TOPIC, *event.UPCASTS]


def payload_fields(event: type[Aggregate.Event]) -> frozenset[str]:
    """Return the fields of an event's payload: stream and version have columns of their own."""
    return frozenset(field.name for field in fields(event)) - COLUMNS


def later_fields(event: type[Aggregate.Event]) -> dict[str, Any]:
    """Return the fields that events of the same topic may lack, and what they stand for then."""
    return {field.name: field.default for field in fields(event) if field.default is not MISSING}


@cache
def _shape(topic: str) -> EventShape:
    """Return how to make an event of this topic; raise KeyError where none is declared."""
    event = EVENT_CLASSES[topic]
    return EventShape(
        event,
        event.UPCASTS.get(topic),
        payload_fields(event),
        later_fields(event),
        tuple(_conversions(event)),
        tuple(_sealed(event)),
    )


def personal_fields(event: type[Aggregate.Event]) -> dict[str, str]:
    """Return the fields that tell something about a person, and which field has that person."""
    return {
        name: mark.subject
        for name, hint in get_type_hints(event, include_extras=True).items()
        for mark in get_args(hint)[1:]
        if isinstance(mark, Personal)
    }


def _sealed(event: type[Aggregate.Event]) -> Iterable[SealedField]:
    """Yield the fields that are encrypted: whatever is about a person, and is not the person."""
    hints = get_type_hints(event)
    for name, person in personal_fields(event).items():
        if name != person:
            blank = "" if hints[name] is str else None
            yield SealedField(name, person, blank, name.encode(), f'"{person}":"'.encode())


def _seal(
    ciphers: Ciphers, payload: dict[str, Any], field: SealedField, stream: UUID, version: int
) -> None:
    # Events of older releases may lack either.
    person, value = payload.get(field.person), payload.get(field.name)
    # A part of the system, or an operator at the command line, is no person.
    if value is None or type(person) is not str or actor_kind(person) is not ActorKind.USER:
        return
    nonce = urandom(NONCE_BYTES)
    # What is still said of somebody who is forgotten, nobody shall read: that key is kept nowhere.
    cipher = ciphers.cipher(person) or AESGCM(urandom(KEY_BYTES))
    text = cipher.encrypt(nonce, orjson.dumps(value), _about(stream, version, field))
    payload[field.name] = {SEALED: b2a_base64(nonce + text, newline=False).decode()}


def _open(
    ciphers: Ciphers | None,
    payload: dict[str, Any],
    field: SealedField,
    stream: UUID,
    version: int,
) -> None:
    if ciphers is None:
        raise ValueError(f"{field.name} is encrypted, and no keys are at hand")
    cipher = ciphers.cipher(payload[field.person])
    if cipher is None:
        payload[field.name] = field.blank
        return
    sealed = a2b_base64(payload[field.name][SEALED])
    about = _about(stream, version, field)
    text = cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
    payload[field.name] = orjson.loads(text)


def _about(stream: UUID, version: int, field: SealedField) -> bytes:
    return b"%b %d %b" % (stream.bytes, version, field.encoded)


def _persons(stored: Iterable[tuple[str, bytes]]) -> Iterable[str]:
    for topic, state in stored:
        if topic in EVENT_CLASSES and SEALED_BYTES in state:
            for field in _shape(topic).sealed:
                if (person := _person(state, field)) is not None:
                    yield person


def _person(state: bytes, field: SealedField) -> str | None:
    """Return whose key a stored event needs; None where that does not show without reading it.

    To read the JSON of every event twice would cost a replay more than decrypting does.
    """
    begin = state.find(field.before_person) + len(field.before_person)
    end = state.find(b'"', begin)
    person = state[begin:end]
    if begin < len(field.before_person) or end < 0 or b"\\" in person:
        return None
    # What is no text is told where it is decoded.
    return person.decode(errors="replace")


def _conversions(event: type[Aggregate.Event]) -> Iterable[tuple[str, Callable[[str], Any]]]:
    hints = get_type_hints(event)
    for name in payload_fields(event):
        annotation = hints[name]
        optional = get_origin(annotation) in (Union, UnionType)
        for candidate in get_args(annotation) if optional else (annotation,):
            if candidate in FROM_JSON:
                yield name, FROM_JSON[candidate]


MAPPER = EventMapper()
"""Reads and writes every event of this program; whoever composes the program gives it the keys."""


class Stored(NamedTuple):
    """An event as it lies in the log."""

    position: int
    stream_id: UUID
    version: int
    topic: str
    state: bytes

    def decode(self) -> Recorded:
        """Return the event in its newest shape; raise MapperDeserialisationError."""
        position, stream_id, version, topic, state = self
        return Recorded(position, MAPPER.decode(stream_id, version, topic, state))


class Recorded(NamedTuple):
    """An event and its position in the log (from 1)."""

    position: int
    event: Aggregate.Event


class StreamShare(NamedTuple):
    """One of `of` parts of all streams, by number (from 0): processes share the log by them."""

    number: int
    of: int


@dataclass(frozen=True, slots=True)
class LogWindow:
    """The wanted events of a stretch of the log, which ends with the position `until`."""

    events: list[Stored]
    until: int


class Log:
    """The log as one projection sees it: only its topics, a bounded window at a time."""

    def __init__(
        self,
        wanted: Iterable[type[Aggregate.Event]],
        *,
        batch_events: int,
        part: StreamShare | None = None,
    ) -> None:
        self._part = part
        self._topics = [topic for event in wanted for topic in topics_of(event)]
        self._batch_events = batch_events

    def read(self, conn: Connection[TupleRow], after: int, head: int) -> LogWindow:
        """Return the next wanted events, at most `batch_events` and about 16 MiB of them.

        The window reaches at most ten batches far, so that no read takes long however rare the
        wanted events are.
        """
        until = min(head, after + WINDOW_BATCHES * self._batch_events)
        part = (self._part.of, self._part.number) if self._part else ()
        limits = (after, until, self._topics, *part, self._batch_events, MAX_WINDOW_BYTES)
        with conn.cursor(binary=True) as cursor:
            read = READ_PART if self._part else READ
            rows = cursor.execute(read, limits, prepare=True).fetchall()
        events = [Stored(*row) for row in rows]
        MAPPER.prepare((event.topic, event.state) for event in events)
        cut = len(events) >= self._batch_events
        cut |= sum(len(event.state) for event in events) >= MAX_WINDOW_BYTES
        return LogWindow(events, events[-1].position if cut else until)

    def recorded_at(self, conn: Connection[TupleRow], position: int) -> datetime | None:
        """Return when the event at a position was recorded; None when it can't be read."""
        with conn.cursor(binary=True) as cursor:
            row = cursor.execute(READ_ONE, (position,)).fetchone()
        return recorded_at(Stored(*row)) if row else None


def recorded_at(stored: Stored) -> datetime | None:
    """Return when a stored event was recorded; None when it can't be read."""
    try:
        return MAPPER.decode(*stored[1:]).timestamp
    except MapperDeserialisationError:
        return None
