"""One event of the log as an inspector sees it, whether or not anybody can read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

import orjson
from eventsourcing.persistence import MapperDeserialisationError

from domain.model import Aggregate
from infra.codec import MAPPER
from projections.log import Stored

VERSION = re.compile(r"\.v[0-9]+$")
META = ("timestamp", "actor", "correlation_id", "causation_id")


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored event with what could be made of it.

    `payload` is the JSON object as it was recorded, without what the other fields hold; `event` is
    the event in its newest shape, or None with the `error` of reading it.
    """

    stored: Stored
    payload: dict[str, object] | None
    recorded_at: datetime | None
    actor: str | None
    correlation_id: str | None
    causation_id: str | None
    event: Aggregate.Event | None
    error: MapperDeserialisationError | None


def type_of(topic: str) -> str:
    """A topic without its version: `comment.posted` of `comment.posted.v1`."""
    return VERSION.sub("", topic)


def aggregate_of(topic: str) -> str:
    """The kind of aggregate that a topic belongs to: `comment` of `comment.posted.v1`."""
    return topic.partition(".")[0]


def read_entry(stored: Stored) -> Entry:
    """Make what can be made of a stored event; never fails."""
    content = _object(stored.state)
    told = content or {}
    return Entry(
        stored,
        None if content is None else {k: v for k, v in content.items() if k not in META},
        _time(told.get("timestamp")),
        _text(told.get("actor")),
        _text(told.get("correlation_id")),
        _text(told.get("causation_id")),
        *_decode(stored),
    )


def _decode(
    stored: Stored,
) -> tuple[Aggregate.Event | None, MapperDeserialisationError | None]:
    try:
        return MAPPER.decode(*stored[1:]), None
    except MapperDeserialisationError as error:
        return None, error


def _object(state: bytes) -> dict[str, object] | None:
    try:
        content = orjson.loads(state)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None else None
