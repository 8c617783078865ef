"""What a command is, and what it sees while it is decided."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from uuid import UUID

from eventsourcing.domain import CanMutateAggregate
from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.model import Aggregate, Origin

R = TypeVar("R")
F = TypeVar("F")
A = TypeVar("A", bound=Aggregate)

Reader = Callable[[Cursor[TupleRow], Sequence[Any]], Sequence[Any]]
"""Return the answers to lookups of one type, in their order."""


@dataclass(frozen=True)
class Command(ABC, Generic[R]):
    """A wish, with everything needed to decide it."""

    @abstractmethod
    def streams(self) -> Sequence[UUID]:
        """Return the streams to load; `decide` may touch no others."""

    def lookups(self) -> Sequence[Lookup[Any]]:
        """Return what has to be looked up beside the streams."""
        return ()

    @abstractmethod
    def decide(self, aggregates: Aggregates, origin: Origin) -> R:
        """Check the rules, let the aggregates record, and return the answer.

        May run more than once (after a conflict), each time on freshly loaded aggregates. Raise
        DomainError.
        """


class Query(Command[R]):
    """A question to the log. The bus decides it like a command, and it records nothing.

    So it sees what is recorded now, and not what a read model has reached.
    """


class Lookup(ABC, Generic[F]):
    """A question whose answer a command's own answer includes, and which no stream holds.

    A subclass is a port: the bus gets a reader for it, which answers many lookups in one query.
    """

    @property
    @abstractmethod
    def default(self) -> F:
        """The answer on a bus without a reader."""


class Slot:
    """A stream in a batch: its aggregate as far as known, and the group that changes it.

    `broken` is the error of a stream that can't be read.
    """

    __slots__ = ("aggregate", "broken", "group")

    def __init__(self, aggregate: Aggregate | None) -> None:
        self.aggregate = aggregate
        self.broken: Exception | None = None
        self.group: Any = None

    def has_changed(self) -> bool:
        """Return whether the aggregate recorded something that is not collected yet."""
        return self.aggregate is not None and bool(self.aggregate.pending_events)

    def collect(self) -> Sequence[CanMutateAggregate[UUID]]:
        """Take what the aggregate recorded."""
        return self.aggregate.collect_events() if self.aggregate is not None else ()


class Aggregates:
    """The aggregates of a batch: each command sees what those before it decided.

    Beside them are the answers to the commands' lookups.
    """

    def __init__(
        self,
        slots: Mapping[UUID, Slot],
        answers: Mapping[Lookup[Any], Any] = MappingProxyType({}),
    ) -> None:
        self._slots = slots
        self._answers = answers

    def get(self, aggregate: type[A], stream_id: UUID) -> A:
        """Return the aggregate of a declared stream; blank (version 0) when it is new."""
        slot = self._slots[stream_id]
        found = slot.aggregate
        if isinstance(found, aggregate):
            return found
        blank = aggregate.blank(stream_id)
        # A stream with events of another kind, whose id a client sent, does not exist for this
        # command. An empty one is of the kind that was asked for last: no client can block
        # it by naming its id as something else in the same batch.
        if found is None or found.version == 0:
            slot.aggregate = blank
        return blank

    def look_up(self, lookup: Lookup[F]) -> F:
        """Return the answer to a lookup that the command declared."""
        answer: F = self._answers.get(lookup, lookup.default)
        return answer
