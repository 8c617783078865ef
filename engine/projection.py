"""What a read model is: the events that it wants, its tables, and how a copy of it is brought on.

A projection lives in a PostgreSQL schema of its own and writes its SQL with `{schema}` in the
place of that name, so that a second copy can be built beside the live one. An `Applier` takes
stretches of the log into either copy: rows, ledger and position together, so that each event
counts exactly once in both. A position says how far a copy has come. The ledger says that nothing
was left out or counted twice on the way, and in which block of positions it was if something was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any, ClassVar, Literal, LiteralString, NamedTuple, Self, TypeVar, cast

import structlog
from psycopg import Connection, Cursor, ProgrammingError
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from domain.model import Aggregate
from engine import dead_letters
from engine.checkpoints import Checkpoint, Superseded, of_copy
from engine.connections import is_outage
from engine.event_store import EVENTS
from engine.log import Log, LogWindow, Recorded, Stored, topics_of
from engine.personal_data import PersonalPlace, PersonalTable, given
from infra.errors import describe
from infra.postgres.connection import column

log = structlog.get_logger(__name__)

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
    # What the tables hold about persons. A projection that has any also wants the event by which a
    # person is forgotten, as an absorbing one: nothing names the person after it.
    personal: ClassVar[tuple[PersonalPlace, ...]] = ()

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

    def apply_all(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        """Apply these events; of whomever one of them forgets, purge the rows after all others."""
        persons = [vars(event)[event.FORGETS] for _, event in batch if event.FORGETS is not None]
        others = [each for each in batch if each.event.FORGETS is None] if persons else batch
        if others:
            self.apply(others, cursor)
        for person in persons:
            self.forget(person, cursor)

    def forget(self, person: str, cursor: Cursor[TupleRow]) -> None:
        """Purge the rows of a person, by what is declared of each table."""
        for place in self.personal:
            if isinstance(place, PersonalTable) and place.purge is not None:
                cursor.execute(self.sql(place.purge + place.condition), given(person))

    def sql(self, text: LiteralString) -> bytes:
        """Return the statement for this copy's schema, made once per text."""
        statement = self._statements.get(text)
        if statement is None:
            statement = SQL(text).format(schema=Identifier(self.schema)).as_bytes(None)
            self._statements[text] = statement
        return statement


def last_told(
    stream: LiteralString, field: LiteralString, *kinds: type[Aggregate.Event]
) -> LiteralString:
    """Return SQL that reads a field of the last event of some kinds in a stream, as text.

    For `additions` that keep what the log has told before; the field has to be readable there.
    """
    topics: LiteralString = ", ".join(f"'{t}'" for kind in kinds for t in topics_of(kind))
    return f"""(
    SELECT convert_from(state, 'UTF8')::json->>'{field}' FROM {EVENTS}
    WHERE originator_id = {stream} AND topic IN ({topics})
    ORDER BY originator_version DESC LIMIT 1)"""


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


BLOCK_POSITIONS = 10_000
"""Positions 1 to 10,000 are block 0, and so on: a million events cost a copy a hundred rows."""

# In the order of the blocks, so that two processes that apply to one copy never deadlock.
ACCOUNT = b"""
INSERT INTO projections.ledger AS l (schema, block, applied, positions)
SELECT %b, * FROM unnest(%b::bigint[], %b::bigint[], %b::numeric[])
ON CONFLICT (schema, block) DO UPDATE
SET applied = l.applied + excluded.applied, positions = l.positions + excluded.positions
"""
ACCOUNT_RANGE = b"""
INSERT INTO projections.ledger AS l (schema, block, applied, positions)
SELECT %(schema)s, block, until - after, (until - after) * (after + 1 + until)::numeric / 2
FROM (SELECT block, greatest(%(after)s, block * %(size)s) AS after,
             least(%(until)s, (block + 1) * %(size)s) AS until
      FROM generate_series(%(after)s::bigint / %(size)s, (%(until)s::bigint - 1) / %(size)s)
           AS block) AS blocks
ON CONFLICT (schema, block) DO UPDATE
SET applied = l.applied + excluded.applied, positions = l.positions + excluded.positions
"""


def account(cursor: Cursor[Any], schema: str, positions: Sequence[int]) -> None:
    """Account events that are applied in this transaction: their number, and their positions' sum.

    The positions are in rising order. To be called last, before the copy's position moves.
    """
    rows, begin = [], 0
    while begin < len(positions):
        block = (positions[begin] - 1) // BLOCK_POSITIONS
        end = bisect_right(positions, (block + 1) * BLOCK_POSITIONS, begin)
        rows.append((block, end - begin, sum(positions[begin:end])))
        begin = end
    if rows:
        cursor.execute(ACCOUNT, (schema, *map(list, zip(*rows, strict=True))), prepare=True)


def account_range(cursor: Cursor[Any], schema: str, after: int, until: int) -> None:
    """Account every event of a stretch of the log; its first position is `after` + 1."""
    if after < until:
        size = BLOCK_POSITIONS
        values = {"schema": schema, "after": after, "until": until, "size": size}
        cursor.execute(ACCOUNT_RANGE, values)


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction came to: the copy's new position, events applied, whether some broke.

    `until` is where it stands now, which is before the broken event when that stopped it.
    """

    until: int
    applied: int
    broken: bool = False


def try_event(
    conn: Connection[TupleRow], cursor: Cursor[TupleRow], projection: Projection, stored: Stored
) -> Exception | None:
    """Apply one event under a savepoint; return what it broke on, and raise an outage."""
    try:
        with conn.transaction():
            projection.apply_all([stored.decode()], cursor)
    except Exception as error:
        if is_outage(error):
            raise
        return error
    return None


class Applier:
    """Moves one copy along the log, a transaction at a time."""

    def __init__(
        self,
        projection: Projection,
        *,
        batch_events: int,
        place: Checkpoint | None = None,
        log: Log | None = None,
    ) -> None:
        """`place` and `log` are the copy's row and its topics, unless it is built in parts."""
        self.projection = projection
        self.place = place or of_copy(projection.schema, projection.version)
        self.log = log or Log(projection.events, batch_events=batch_events)
        self._batch_events = batch_events

    def advance(self, conn: Connection[TupleRow], before: int, head: int) -> Step:
        """Read and take in the next window after `before`, at most up to `head`; see `take_in`."""
        return self.take_in(conn, before, self.read(conn, before, head))

    def read(self, conn: Connection[TupleRow], before: int, head: int) -> LogWindow:
        """Return the next window after `before`, at most up to `head`.

        Without events where the projection reads the log by itself.
        """
        if isinstance(self.projection, RangeProjection):
            return LogWindow([], min(head, before + self._batch_events))
        return self.log.read(conn, before, head)

    def decode(self, window: LogWindow) -> Batch:
        """Return the window's events in their newest shape; raise MapperDeserialisationError."""
        return [stored.decode() for stored in window.events]

    def take_in(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, batch: Batch | None = None
    ) -> Step:
        """Apply a window, whose events are in `batch` where they are decoded already.

        An event that can't be applied is parked, or stops the copy, by the projection's policy.
        Raise Superseded when the copy is no longer running at `before`, and what the database
        raises when it is away.
        """
        try:
            return self._apply(conn, before, window, batch)
        except Exception as error:
            if isinstance(error, Superseded) or is_outage(error):
                raise
            if isinstance(self.projection, RangeProjection):
                return self._stop(conn, before, error)
            return self.sort_out(conn, before, window, error)

    def _apply(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, batch: Batch | None
    ) -> Step:
        """Apply a window as a whole; raise whatever the projection does on an event it can't."""
        projection, until = self.projection, window.until
        with conn.cursor(binary=True) as cursor:
            if isinstance(projection, RangeProjection):
                with conn.transaction():
                    self.place.hold(cursor, before)
                    projection.apply_range(before, until, cursor)
                    account_range(cursor, projection.schema, before, until)
                    self.place.move(cursor, before, until)
                return Step(until, until - before)
            if not window.events:
                self.place.move(cursor, before, until)
                return Step(until, 0)
            batch = batch or self.decode(window)
            with conn.transaction():
                self.place.hold(cursor, before)
                projection.apply_all(batch, cursor)
                account(cursor, projection.schema, [recorded.position for recorded in batch])
                self.place.move(cursor, before, until)
        return Step(until, len(batch))

    def sort_out(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, error: Exception
    ) -> Step:
        """Apply a window that failed as a whole, each event under a savepoint, in one transaction.

        A culprit is parked, or the copy stops in front of it. Raise what is not an event's fault:
        an outage, or Superseded.
        """
        projection, until = self.projection, window.until
        log.warning("projection_batch_failed", projection=projection.name, error=describe(error))
        applied: list[int] = []
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            self.place.hold(cursor, before)
            for stored in window.events:
                fault = try_event(conn, cursor, projection, stored)
                if fault is None:
                    applied.append(stored.position)
                elif not self._park(cursor, stored, fault):
                    break
            else:
                fault = None
            account(cursor, projection.schema, applied)
            if fault is None:
                self.place.move(cursor, before, until)
            else:
                until = stored.position - 1
                self.place.stop(cursor, before, culprit=stored.position, error=describe(fault))
                self._log("projection_stopped", stored, fault)
        return Step(until, len(applied), broken=True)

    def _park(self, cursor: Cursor[TupleRow], stored: Stored, error: Exception) -> bool:
        """Set an event aside by the projection's policy, or as an operator decided or ordered.

        Return False where the copy has to stop.
        """
        # A missing table or column breaks every event; parking them all would hide it.
        if isinstance(error, ProgrammingError):
            return False
        name, schema = self.projection.name, self.projection.schema
        position, fault = stored.position, describe(error)
        order = dead_letters.parking_order(cursor, name, stored.topic, position, fault)
        # What holds for the live copy does for this one: else nobody could rebuild it.
        decided = dead_letters.is_decided(cursor, name, position)
        if not (decided or order or self.projection.on_poison == "park"):
            return False
        dead_letters.park(cursor, schema, position, fault)
        if order and not dead_letters.is_decided(cursor, schema, position):
            dead_letters.say_why(cursor, schema, position, *order)
        self._log("projection_event_parked", stored, error)
        return True

    def _log(self, what: str, stored: Stored, error: Exception) -> None:
        log.error(
            what,
            projection=self.projection.name,
            position=stored.position,
            stream=str(stored.stream_id),
            topic=stored.topic,
            error=describe(error),
            exc_info=error,
        )

    def _stop(self, conn: Connection[TupleRow], before: int, error: Exception) -> Step:
        """Stop a copy that its own SQL makes: whatever breaks it, no single event is to blame."""
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            self.place.stop(cursor, before, culprit=before + 1, error=describe(error))
        name, position = self.projection.name, before + 1
        log.error("projection_stopped", projection=name, position=position, exc_info=error)
        return Step(before, 0, broken=True)
