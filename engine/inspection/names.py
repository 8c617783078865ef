"""User ids in place of pseudonyms, in what operators are shown of events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from domain.model import EVENTS as EVENT_CLASSES
from domain.model import Aggregate
from engine.log import personal_fields


@cache
def person_fields(topic: str) -> frozenset[str]:
    """Return the fields of a topic's events that are a person; of an unknown topic, who acted."""
    marked = personal_fields(EVENT_CLASSES.get(topic, Aggregate.Event))
    return frozenset(name for name, person in marked.items() if name == person)


def persons_in(topic: str, payload: Mapping[str, object] | None) -> Iterator[str]:
    """Yield those whom an event of a topic names."""
    for name in person_fields(topic):
        if payload is not None and isinstance(who := payload.get(name), str):
            yield who


def with_names(value: Any, names: Mapping[str, str]) -> Any:
    """Return a JSON value with names in place of pseudonyms, wherever these are all of a text."""
    match value:
        case str():
            return names.get(value, value)
        case dict():
            return {key: with_names(each, names) for key, each in value.items()}
        case list():
            return [with_names(each, names) for each in value]
    return value


def named(topic: str, payload: Mapping[str, object], names: Mapping[str, str]) -> dict[str, Any]:
    """Return an event's payload with the names of the persons in it; texts stay what they are."""
    fields = person_fields(topic)
    return {
        name: with_names(value, names) if name in fields else value
        for name, value in payload.items()
    }
