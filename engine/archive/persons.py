"""Whom stored events name, in whatever release they were recorded."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.model import EVENTS as EVENT_CLASSES
from domain.model import ActorKind, Aggregate, actor_kind
from engine.log import SEALED_BYTES, personal_fields
from engine.seals.chain import StoredRow

NO_PERSONS = (ActorKind.ANONYMOUS, ActorKind.SYSTEM)
"""Actors whose names are no persons', whatever they look like."""

FORMER = b"""
INSERT INTO public.backlot_former_names SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING
"""
UNREADABLE = b"""
INSERT INTO public.backlot_persons (pseudonym, lookup, fenced_at, forgotten_at)
SELECT pseudonym, lookup, now(), now()
FROM unnest(%s::text[], %s::bytea[]) AS p(pseudonym, lookup)
"""


@cache
def _fields(topic: str) -> Mapping[str, str]:
    return personal_fields(EVENT_CLASSES.get(topic, Aggregate.Event))


@cache
def person_fields(topic: str) -> Sequence[str]:
    """Return the fields of a topic's events that hold a person; of an unknown one, who acted."""
    return [name for name, whose in _fields(topic).items() if name == whose]


def has_texts(topic: str) -> bool:
    """Return whether a topic's events tell more about persons than who they are."""
    return len(_fields(topic)) > len(person_fields(topic))


def _sealed_for(topic: str, payload: Mapping[str, Any]) -> Iterator[str]:
    """Yield those with whose keys something in an event is encrypted."""
    for name, whose in _fields(topic).items():
        if name != whose and type(payload.get(name)) is dict and type(payload.get(whose)) is str:
            yield payload[whose]


def named_in(topic: str, payload: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each person that an event names, after the field that does."""
    for name in person_fields(topic):
        value = payload.get(name)
        if type(value) is not str or actor_kind(value) is not ActorKind.USER:
            continue
        if name != "actor" or payload.get("actor_kind") not in NO_PERSONS:
            yield name, value


class NamedPersons:
    """Collects whom a log names, for a store that gets no keys with it."""

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._sealed: set[str] = set()

    @property
    def sealed(self) -> bool:
        """Whether there are texts that can't be read without keys."""
        return bool(self._sealed)

    def take(self, row: StoredRow) -> None:
        """Take in the next event; one that nobody can read names nobody."""
        try:
            payload = orjson.loads(row.state or b"null")
        except ValueError:
            return
        if isinstance(payload, dict):
            topic = row.topic or ""
            self._named.update(name for _, name in named_in(topic, payload))
            if SEALED_BYTES in (row.state or b""):
                self._sealed.update(_sealed_for(topic, payload))

    def store(self, conn: Connection[TupleRow]) -> None:
        """Let users go on under their user ids, and nobody under what stands for a lost key.

        Within the caller's transaction; raise psycopg.Error.
        """
        sealed = sorted(self._sealed)
        conn.execute(FORMER, (sorted(self._named - self._sealed),))
        conn.execute(UNREADABLE, (sealed, [secrets.token_bytes(32) for _ in sealed]))
