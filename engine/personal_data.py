"""Where something about a person is held: declared by each feature, so that it can be found.

A place says what it holds, how a person's part of it is found, what an export shows of that, how
long it is kept, and what becomes of it when the person is forgotten. A person is one opaque string;
nothing here knows that it is a user id.

Statements get the person as `%(subject)s`, and as `%(needle)s` in the bytes that JSON has for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from itertools import chain
from typing import Any, LiteralString, cast

import orjson
from psycopg import Connection
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Composed, Identifier
from pydantic.alias_generators import to_camel

from domain.model import Aggregate

Pace = Callable[[], AbstractContextManager[None]]
"""What a batch of a purge runs in, which may leave the database to others behind it."""

Row = Mapping[str, object]
"""What an export shows of one thing; names in camelCase."""

ROWS_AT_ONCE = 500
COPIES = b"""
SELECT subscription FROM backlot_checkpoints WHERE kind = 'projection' AND projection = %s
ORDER BY subscription <> projection, subscription
"""
# A copy that an earlier release made may lack a column.
EXISTS = b"""
SELECT to_regclass(%(table)s) IS NOT NULL AND NOT EXISTS (
    SELECT unnest(%(columns)s::text[]) EXCEPT
    SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%(table)s))
"""
GLOB = re.compile(r"([\\*?\[\]^-])")


@dataclass(frozen=True)
class Deleted:
    """What names somebody who is forgotten is deleted."""

    def __str__(self) -> str:
        return "deleted"


@dataclass(frozen=True)
class Blanked:
    """The rows of somebody who is forgotten stay, with other values in some columns.

    `values` is what UPDATE sets; afterwards the place finds the row no more.
    """

    values: LiteralString
    why: str

    def __str__(self) -> str:
        return f"named by nobody: {self.why}"


@dataclass(frozen=True)
class Rewritten:
    """A function makes the rows of somebody who is forgotten those of nobody, and says how many.

    It is given a connection in autocommit mode and what each batch runs in, and may be killed and
    called again.
    """

    by: Callable[[Connection[TupleRow], str, Pace], int]
    why: str

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True)
class Left:
    """A purge does nothing here, for a reason.

    `for_good` is what goes on to hold the pseudonym of somebody who is forgotten, who is nobody by
    then; else something other than a purge takes it away.
    """

    why: str
    for_good: bool = False

    def __str__(self) -> str:
        return self.why


IN_THE_LOG = Left("texts can't be decrypted, and the pseudonym names nobody", for_good=True)
"""What becomes of events."""

Forgetting = Deleted | Blanked | Rewritten | Left
"""What becomes of a person's part of a place when the person is forgotten."""


@dataclass(frozen=True, kw_only=True)
class PersonalPlace:
    """A place where something about persons is held.

    `name` is that of its part in an export, and of the part's file. `kept` says how long, or why
    that needs no term; `setting` is the variable that decides it, where one does. `forget` is what
    becomes of it when the person is forgotten; every place has to say.
    """

    name: str
    holds: str
    kept: str
    setting: str | None = None
    forget: Forgetting | None = None

    @property
    def source(self) -> str:
        """Where the place is, in words."""
        return self.name

    @property
    def stays(self) -> bool:
        """Whether it goes on to hold the pseudonym of somebody who is forgotten."""
        return isinstance(self.forget, Left) and self.forget.for_good


@dataclass(frozen=True, kw_only=True)
class PersonalTable(PersonalPlace):
    """Rows of a table that name a person in one of `columns`, or that `where` finds.

    `{schema}` in `table` is that of each copy of the `projection`. `shown` are the columns that an
    export shows; None where a row tells more about others, so that it is only counted. `others` are
    those of them that name somebody else. `emptied` is what UPDATE sets, where events remove the
    rows of somebody who is forgotten, so that a restored database shows no text until then.
    """

    table: LiteralString
    columns: tuple[LiteralString, ...] = ()
    where: LiteralString | None = None
    shown: LiteralString | None = "*"
    others: tuple[LiteralString, ...] = ()
    emptied: LiteralString | None = None
    projection: str | None = None
    analytics: bool = False

    @property
    def source(self) -> str:
        schema = self.projection or ""
        return f"table {self.table.format(schema=schema)}" + " (analytics)" * self.analytics

    @property
    def condition(self) -> LiteralString:
        """What a person's rows fulfil."""
        named = " OR ".join([f"{column} = %(subject)s" for column in self.columns])
        return self.where or named

    @property
    def hide(self) -> LiteralString | None:
        """What one statement does to the rows of somebody who is forgotten, before events do more.

        It begins what a condition ends; None where there is no text.
        """
        emptied: LiteralString = f"UPDATE {self.table} AS t SET {self.emptied} WHERE "
        return emptied if self.emptied else self.purge

    @property
    def purge(self) -> LiteralString | None:
        """What one statement does to the rows of somebody who is forgotten; None where it is none.

        It begins what a condition ends.
        """
        match self.forget:
            case Deleted():
                return f"DELETE FROM {self.table} AS t WHERE "
            case Blanked(values=values):
                return f"UPDATE {self.table} AS t SET {values} WHERE "
        return None


@dataclass(frozen=True, kw_only=True)
class PersonalEvents(PersonalPlace):
    """Events that name a person in `subject`, in streams in which the person may not have acted."""

    events: tuple[type[Aggregate.Event], ...]
    subject: str
    shown: bool = True

    @property
    def source(self) -> str:
        return "the event log"


@dataclass(frozen=True, kw_only=True)
class PersonalStreams(PersonalPlace):
    """Events of all kinds in the streams in which a person has acted."""

    @property
    def source(self) -> str:
        return "the event log"


@dataclass(frozen=True, kw_only=True)
class PersonalKeys(PersonalPlace):
    """Keys of Redis that name a person: a glob with `{subject}`, or `{digest}`.

    The digest is the first 32 hexadecimal digits of the SHA-256.
    """

    pattern: str

    @property
    def source(self) -> str:
        return f"Redis, {self.pattern}"

    def of(self, subject: str) -> str:
        """Return the glob of one person's keys."""
        return self._filled(GLOB.sub(r"\\\1", subject), _digest(subject))

    def only_key(self, subject: str) -> str | None:
        """Return the one key that a person may have; None where there may be several."""
        return None if "*" in self.pattern else self._filled(subject, _digest(subject))

    def holds_key(self, key: str) -> bool:
        """Return whether a key is one of these, whoever it names."""
        return fnmatchcase(key, self._filled("*", "*"))

    def _filled(self, subject: str, digest: str) -> str:
        return self.pattern.replace("{digest}", digest).replace("{subject}", subject)


@dataclass(frozen=True, kw_only=True)
class PersonalEntries(PersonalPlace):
    """Entries of hashes in Redis whose values name a person; `pattern` is a glob of the hashes.

    A hash is called as what orders its entries, a list or a sorted set, with `suffix` after that.
    """

    pattern: str
    suffix: str

    @property
    def source(self) -> str:
        return f"Redis, {self.pattern}"

    def holds_key(self, key: str) -> bool:
        """Return whether a key is one of these."""
        return fnmatchcase(key, self.pattern)


@dataclass(frozen=True, kw_only=True)
class PersonalObjects(PersonalPlace):
    """Objects in the store: those whose keys the person's events of one kind have.

    After an event of `disowned_by` they are somebody else's.
    """

    begun_by: type[Aggregate.Event]
    disowned_by: type[Aggregate.Event]

    @property
    def source(self) -> str:
        return "the object store"


@dataclass(frozen=True, kw_only=True)
class Unsearched(PersonalPlace):
    """A place that this program can't search by person; `keys` are globs of what is in Redis."""

    where: str
    keys: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return self.where


def _digest(subject: str) -> str:
    return sha256(subject.encode()).hexdigest()[:32]


def json_bytes(subject: str) -> bytes:
    """Return the person as JSON has it in stored events, messages and answers."""
    return orjson.dumps(subject)


def given(subject: str) -> dict[str, object]:
    """Return what the statements of all places are given."""
    return {"subject": subject, "needle": json_bytes(subject)}


def count_rows(
    conn: Connection[TupleRow], place: PersonalTable, subject: str, copy: str | None = None
) -> int:
    """Return how many rows the table has of a person, in all copies together or in one of them.

    A copy that is dropped meanwhile, as after a replay, has none. Raise psycopg.Error.
    """
    begin: LiteralString = f"SELECT count(*) FROM {place.table} AS t WHERE "
    found = 0
    for statement in statements(conn, place, begin, copy=copy):
        with suppress(UndefinedTable), conn.transaction():
            ((count,),) = conn.execute(statement, given(subject)).fetchall()
            found += count
    return found


def rows_of(conn: Connection[TupleRow], place: PersonalTable, subject: str) -> Iterator[list[Row]]:
    """Yield what the live copy shows of a person, some rows at a time; raise psycopg.Error.

    The rows are read as they are asked for, in a transaction that lasts until the end.
    """
    if place.shown is None:
        return
    begin = f"SELECT to_jsonb(found) FROM (SELECT {place.shown} FROM {place.table} AS t WHERE "
    for statement in statements(conn, place, begin, ") AS found", copy=place.projection):
        yield from read(conn, statement, given(subject), _named)


def read(
    conn: Connection[TupleRow],
    statement: bytes | Composed,
    values: Mapping[str, object],
    shown: Any,
) -> Iterator[list[Row]]:
    """Yield what `shown` makes of the rows of a query, without those of which it makes None."""
    with conn.transaction(), conn.cursor("personal_data") as cursor:
        cursor.execute(statement, values)
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            yield [made for made in map(shown, rows) if made is not None]


def _named(row: TupleRow) -> Row:
    return {to_camel(name): value for name, value in cast("Row", row[0]).items()}


def statements(
    conn: Connection[TupleRow],
    place: PersonalTable,
    begin: LiteralString,
    end: LiteralString = "",
    *,
    copy: str | None = None,
) -> Iterable[Composed]:
    """Yield a statement per copy of the table, with the condition between its two parts.

    None where a database lacks the table or a column; with a `copy`, for that one alone.
    """
    schemas = ["public"]
    if place.projection is not None:
        copies = conn.execute(COPIES, (place.projection,)).fetchall()
        schemas = [schema for (schema,) in copies if copy in (None, schema)]
    for schema in schemas:
        name = SQL(place.table).format(schema=Identifier(schema))
        asked = {"table": name.as_string(), "columns": list(place.columns)}
        (exists,) = conn.execute(EXISTS, asked).fetchone() or (False,)
        if exists:
            text = SQL(begin + place.condition + end)
            yield text.format(schema=Identifier(schema))


def flat(batches: Iterable[list[Row]]) -> Iterator[Row]:
    """Yield the rows of batches one by one."""
    return chain.from_iterable(batches)
