"""What a read model is: the events that it wants, its tables, how it applies, what can be asked.

A projection lives in a PostgreSQL schema of its own and writes its SQL with `{schema}` in the
place of that name, so that a second copy can be built beside the live one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any, ClassVar, Literal, LiteralString, NamedTuple, Self, TypeVar, cast

from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from domain.model import Aggregate
from engine.log import Recorded
from infra.postgres.connection import column

OnPoison = Literal["stop", "park"]

GATHER_SECONDS = 0.05


Batch = Sequence[Recorded]


class Write(NamedTuple):
    """How one kind of event is written: a statement over arrays, and an event's values in it."""

    statement: LiteralString
    values: Callable[[int, Any], tuple[Any, ...]]


Writes = Mapping[type[Aggregate.Event], Write]


class Projection(ABC):
    """A read model. Another `version` means that its rows have to be built again.

    `on_poison` says what happens on an event that can't be applied: 'stop' halts this projection
    there, 'park' sets the event aside and goes on.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    events: ClassVar[tuple[type[Aggregate.Event], ...]]
    tables: ClassVar[LiteralString]
    on_poison: OnPoison = "stop"
    # Under load, events that arrive within this time share a transaction.
    gather_seconds: ClassVar[float] = GATHER_SECONDS
    # Whether that time ends at once when a query waits for this projection.
    hurries: ClassVar[bool] = True
    # Whether a replay may apply streams side by side: then rows do not depend on the order of
    # events of different streams. Those of `absorbing` are applied once all the others have been;
    # each makes an end of what it is about, whatever comes before or after it.
    by_stream: ClassVar[bool] = False
    absorbing: ClassVar[tuple[type[Aggregate.Event], ...]] = ()
    # What makes a copy of the version before one of this version in its place, by version: for
    # tables and columns that no event recorded before this release has anything to say of.
    additions: ClassVar[Mapping[int, LiteralString]] = MappingProxyType({})
    # The same read model as earlier releases made it, each a class with its own `version`, `tables`
    # and `apply`: a live copy of theirs goes on until a replay has built the new one.
    former: ClassVar[tuple[type[Projection], ...]] = ()

    def __init__(self, schema: str | None = None) -> None:
        """`schema` names the PostgreSQL schema of this copy; the live copy's is the name."""
        self.schema = schema or self.name
        self._statements: dict[str, bytes] = {}

    def beside(self, schema: str) -> Self:
        """Return the same projection for another copy."""
        return type(self)(schema)

    @property
    def versions(self) -> frozenset[int]:
        """Return the versions of live copies that this release can apply events to."""
        return frozenset({self.version, *(kind.version for kind in self.former)})

    def of_version(self, version: int) -> Projection | None:
        """Return what applies events to a copy of that version.

        None where this release lacks the code.
        """
        if version == self.version:
            return self
        return next((kind(self.schema) for kind in self.former if kind.version == version), None)

    def grows_from(self, version: int) -> bool:
        """Return whether a live copy of that version can be made one of this version in place."""
        return all(step in self.additions for step in range(version + 1, self.version + 1))

    @abstractmethod
    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        """Change the tables by these events, in order of position; the runner commits.

        Whatever it raises, other than for a lost connection, makes the batch a poisonous one.
        """

    def sql(self, text: LiteralString) -> bytes:
        """Return the statement for this copy's schema, made once per text."""
        statement = self._statements.get(text)
        if statement is None:
            statement = SQL(text).format(schema=Identifier(self.schema)).as_bytes(None)
            self._statements[text] = statement
        return statement


P = TypeVar("P", bound=Projection)


class ReadModels:
    """The live read models of a program, each found by its class."""

    def __init__(self, kinds: Iterable[type[Projection]]) -> None:
        self._models = {kind: kind() for kind in kinds}

    def __getitem__(self, kind: type[P]) -> P:
        """Return the read model of this class; raise KeyError where the program has none."""
        return cast("P", self._models[kind])

    def all(self) -> tuple[Projection, ...]:
        return tuple(self._models.values())

    def by_name(self) -> dict[str, Projection]:
        return {projection.name: projection for projection in self.all()}


class RangeProjection(Projection):
    """A read model that its own SQL makes from a stretch of the log, without decoding an event."""

    events = ()

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        """Never called: it has no events to be given."""
        raise TypeError(f"{self.name} is made from stretches of the log")

    @abstractmethod
    def apply_range(self, after: int, until: int, cursor: Cursor[TupleRow]) -> None:
        """Take in every event after position `after` up to `until`; the runner commits.

        Whatever is stored there must be taken: there is no single event to be set aside.
        """


def write_by_kind(
    projection: Projection, writes: Writes, batch: Batch, cursor: Cursor[TupleRow]
) -> None:
    """Run each kind's statement on as many events at once as the order within streams admits."""
    for _ in writing_by_kind(projection, writes, batch, cursor):
        pass


def writing_by_kind(
    projection: Projection, writes: Writes, batch: Batch, cursor: Cursor[TupleRow]
) -> Iterator[type[Aggregate.Event]]:
    """Yield each kind when its statement has run, while the cursor holds what that returned."""
    for kind, group in by_kind(batch):
        statement, values = writes[kind]
        rows = (values(position, event) for position, event in group)
        cursor.execute(projection.sql(statement), columns(rows))
        yield kind


def by_kind(batch: Batch) -> Iterator[tuple[type[Aggregate.Event], list[Recorded]]]:
    """Yield the events in groups of one class and one stream version.

    The order within each stream stays, that between streams does not, and no group holds two
    events of one stream.
    """

    def step(recorded: Recorded) -> tuple[int, str]:
        return recorded.event.originator_version, type(recorded.event).TOPIC

    for _, group in groupby(sorted(batch, key=step), key=step):
        events = list(group)
        yield type(events[0].event), events


def columns(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return rows as one array per column, as `unnest` wants them."""
    return [column(values) for values in zip(*rows, strict=True)]
