"""Events to compact JSON and back, upcasting old versions on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from datetime import datetime
from hashlib import sha1
from types import UnionType
from typing import Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints
from uuid import UUID

import orjson
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import (
    Mapper,
    MapperDeserialisationError,
    StoredEvent,
    Transcoder,
)

from domain.model import EVENTS, Aggregate, Upcast

COLUMNS = frozenset(("originator_id", "originator_version"))
FROM_JSON: dict[type, Callable[[str], Any]] = {UUID: UUID, datetime: datetime.fromisoformat}


class EventShape(NamedTuple):
    """How to make an event of one topic: its class, its upcast, its fields, those to convert."""

    event: type[Aggregate.Event]
    upcast: Upcast | None
    fields: frozenset[str]
    conversions: tuple[tuple[str, Callable[[str], Any]], ...]


class JSONCodec(Transcoder):
    """Plain JSON: UUIDs and times as strings, which the event's annotations turn back."""

    def encode(self, obj: Any) -> bytes:
        return orjson.dumps(obj)

    def decode(self, data: bytes) -> Any:
        return orjson.loads(data)


class EventMapper(Mapper[UUID]):
    """The library's mapper for events that an aggregate declares; knows each topic, old and new.

    Raise MapperDeserialisationError for a topic that no imported module declares, and for a
    payload that does not fit its event.
    """

    def __init__(self) -> None:
        super().__init__(JSONCodec())
        self._shapes: dict[str, EventShape] = {}

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        payload = dict(vars(domain_event))
        stream, version = payload.pop("originator_id"), payload.pop("originator_version")
        topic = cast("Aggregate.Event", domain_event).TOPIC
        return StoredEvent(stream, version, topic, orjson.dumps(payload))

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEventProtocol[UUID]:
        event = self.decode(
            cast("UUID", stored_event.originator_id),
            stored_event.originator_version,
            stored_event.topic,
            stored_event.state,
        )
        return cast("DomainEventProtocol[UUID]", event)

    def decode(self, stream_id: UUID, version: int, topic: str, state: bytes) -> Aggregate.Event:
        """Return the event that these four columns hold, in its newest shape."""
        try:
            shape = self._shapes.get(topic) or self.shape(topic)
            payload = orjson.loads(state)
            if shape.upcast is not None:
                shape.upcast(payload)
            if not payload.keys() >= shape.fields:
                raise KeyError(*sorted(shape.fields - payload.keys()))
            for name, convert in shape.conversions:
                if payload[name] is not None:
                    payload[name] = convert(payload[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MapperDeserialisationError(
                f"Can't read version {version} of stream {stream_id} (topic {topic}): {error!r}"
            ) from error
        payload["originator_id"] = stream_id
        payload["originator_version"] = version
        event = object.__new__(shape.event)
        object.__setattr__(event, "__dict__", payload)
        return event

    def shape(self, topic: str) -> EventShape:
        """Return how to make an event of this topic; raise KeyError where none is declared."""
        event = EVENTS[topic]
        shape = EventShape(
            event, event.UPCASTS.get(topic), payload_fields(event), tuple(_conversions(event))
        )
        self._shapes[topic] = shape
        return shape

    @property
    def topics(self) -> frozenset[str]:
        """Every topic that this mapper can read."""
        return frozenset(EVENTS)


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


def _conversions(event: type[Aggregate.Event]) -> Iterable[tuple[str, Callable[[str], Any]]]:
    hints = get_type_hints(event)
    for name in payload_fields(event):
        annotation = hints[name]
        optional = get_origin(annotation) in (Union, UnionType)
        for candidate in get_args(annotation) if optional else (annotation,):
            if candidate in FROM_JSON:
                yield name, FROM_JSON[candidate]


MAPPER = EventMapper()
"""Reads and writes every event of this program; it has no state."""
