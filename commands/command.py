"""What a command is, and what it sees while it is decided."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from eventsourcing.domain import CanMutateAggregate
from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.model import Aggregate, Origin

R = TypeVar("R")
A = TypeVar("A", bound=Aggregate)

Lookup = Callable[[Cursor[TupleRow], Sequence[Any]], Sequence[Any]]
"""Reads for many commands of one type, in one query, what their answers include beside streams."""


class Slot:
    """A stream in a batch: its aggregate as far as known, and the group that changes it.

    `broken` says why nobody can read the stream.
    """

    __slots__ = ("aggregate", "broken", "group")

    def __init__(self, aggregate: Aggregate | None) -> None:
        self.aggregate = aggregate
        self.broken: Exception | None = None
        self.group: Any = None

    def has_changed(self) -> bool:
        """Whether the aggregate recorded something that nobody collected yet."""
        return self.aggregate is not None and bool(self.aggregate.pending_events)

    def collect(self) -> Sequence[CanMutateAggregate[UUID]]:
        """Take what the aggregate recorded."""
        return self.aggregate.collect_events() if self.aggregate is not None else ()


class Aggregates:
    """The aggregates of a batch: each command sees what those before it decided."""

    def __init__(self, slots: Mapping[UUID, Slot]) -> None:
        self._slots = slots

    def get(self, aggregate: type[A], stream_id: UUID) -> A:
        """The aggregate of a stream that the command declared; blank (version 0) when it is new."""
        slot = self._slots[stream_id]
        found = slot.aggregate
        if isinstance(found, aggregate):
            return found
        blank = aggregate.blank(stream_id)
        # A stream with events of another kind, whose id a client sent, does not exist for this
        # command. An empty one is of the kind that was asked for last: nobody can block it by
        # naming its id as something else in the same batch.
        if found is None or found.version == 0:
            slot.aggregate = blank
        return blank


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
