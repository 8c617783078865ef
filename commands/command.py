"""What a command is, and what it sees while it is decided."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.model import Aggregate, Origin

R = TypeVar("R")
A = TypeVar("A", bound=Aggregate)

Lookup = Callable[[Cursor[TupleRow], Sequence[Any]], Sequence[Any]]
"""Reads for many commands of one type, in one query, what their answers include beside streams."""


class Aggregates:
    """The aggregates of a batch: each command sees what those before it decided."""

    def __init__(self, known: dict[UUID, Aggregate]) -> None:
        self._known = known

    def get(self, aggregate: type[A], stream_id: UUID) -> A:
        """The aggregate of a stream that the command declared; blank (version 0) when it is new."""
        found = self._known.get(stream_id)
        if found is None:
            found = self._known[stream_id] = aggregate.blank(stream_id)
        if not isinstance(found, aggregate):
            # A stream id of another kind, sent by a client: for this command it does not exist.
            return aggregate.blank(stream_id)
        return found


@dataclass(frozen=True)
class Command(ABC, Generic[R]):
    """A wish, with everything needed to decide it."""

    @abstractmethod
    def streams(self) -> Sequence[UUID]:
        """The streams to load; `decide` may touch no others."""

    @abstractmethod
    def decide(self, aggregates: Aggregates, origin: Origin, found: Any) -> R:
        """Check the rules, let the aggregates record, and return the answer.

        `found` is what the lookup registered for this command type read, else None. May run more
        than once (after a conflict), each time on freshly loaded aggregates. Raises DomainError.
        """
