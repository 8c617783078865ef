"""Compares two copies of a projection inside PostgreSQL, and names the keys that differ.

The rows never leave the server, so that it takes no memory here however much differs. A table
whose digests agree is done after one pass over each copy; only one that differs is joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.sql import Composed

from projections.proving.comparing_sql import SESSION, Comparison
from projections.proving.tables import Table, differing_structure, tables_of

NAMED_KEYS = 100
HASHES = 2**64
ONLY_LIVE = "the table is only in the live copy"
ONLY_OTHER = "the table is only in the other copy"


class Kind(StrEnum):
    """What is wrong with the live copy if the other one is right."""

    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class TableDigest:
    """What one copy's table holds: its number of rows, and a hash of all in whatever order."""

    rows: int
    digest: str

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "digest": self.digest}


@dataclass(frozen=True, slots=True)
class DifferentKey:
    """A row that differs: its primary key (without one, all columns) and each copy's digest.

    `changes` are the columns that differ, each with the live copy's value and the other one's.
    """

    table: str
    key: dict[str, str | None]
    kind: Kind
    live: str | None
    other: str | None
    changes: Mapping[str, Sequence[object]] = field(default_factory=dict)

    def as_dict(self, *, values: bool = False) -> dict[str, Any]:
        """For JSON; values are for the eyes of an operator, and nowhere kept: people wrote them."""
        told: dict[str, Any] = {"table": self.table, "key": self.key, "kind": str(self.kind)}
        digests = {"live": self.live, "other": self.other}
        told |= {name: digest for name, digest in digests.items() if digest is not None}
        if self.changes:
            told["columns"] = sorted(self.changes)
        if self.changes and values:
            told["changes"] = self.changes
        return told


@dataclass(slots=True)
class TableDifference:
    """What a table came to: rows that the live copy lacks, only it has, has otherwise.

    `structure` says which columns differ; the digest of a copy without the table is None.
    """

    table: str
    live: TableDigest | None = None
    other: TableDigest | None = None
    missing: int = 0
    extra: int = 0
    different: int = 0
    structure: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.missing + self.extra + self.different

    def as_dict(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "live": self.live.as_dict() if self.live else None,
            "other": self.other.as_dict() if self.other else None,
            "missing": self.missing,
            "extra": self.extra,
            "different": self.different,
            "structure": self.structure,
        }


@dataclass(slots=True)
class Difference:
    """Two copies compared: each table in the order of names, and the first keys that differ."""

    live: str
    other: str
    tables: list[TableDifference] = field(default_factory=list)
    keys: list[DifferentKey] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many rows differ, in all tables."""
        return sum(table.total for table in self.tables)

    @property
    def differs(self) -> bool:
        return self.total > 0 or any(table.structure for table in self.tables)

    @property
    def digests(self) -> dict[str, tuple[TableDigest | None, TableDigest | None]]:
        """Per table: the live copy's digest and the other one's."""
        return {table.table: (table.live, table.other) for table in self.tables}

    def as_dict(self, *, values: bool = False) -> dict[str, Any]:
        """As the command line's --json and the HTTP API tell it; with `values` for people."""
        return {
            "live": self.live,
            "other": self.other,
            "differs": self.differs,
            "total": self.total,
            "tables": [table.as_dict() for table in self.tables],
            "keys": [key.as_dict(values=values) for key in self.keys],
        }


def compare(
    conn: Connection[TupleRow], live_schema: str, other_schema: str, *, limit: int = NAMED_KEYS
) -> Difference:
    """Compare every table of two schemas; the first `limit` keys that differ are named.

    For copies that are written meanwhile the caller opens a REPEATABLE READ transaction, so that
    all is seen at one moment. Changes nothing, the caller's session included.
    """
    result = Difference(live_schema, other_schema)
    with conn.transaction(force_rollback=True):
        conn.execute(SESSION)
        ours, theirs = tables_of(conn, live_schema), tables_of(conn, other_schema)
        for name in sorted(ours.keys() | theirs.keys()):
            sides = ours.get(name), theirs.get(name)
            _compare_table(conn, result, sides, limit - len(result.keys))
    return result


def _compare_table(
    conn: Connection[TupleRow],
    result: Difference,
    sides: tuple[Table | None, Table | None],
    limit: int,
) -> None:
    live, other = sides
    if live is not None and other is not None:
        _compare_both(conn, result, live, other, limit)
    elif live is not None:
        digest = _digest(conn, Comparison((result.live, result.live), live, live), 0)
        table = TableDifference(live.name, live=digest, extra=digest.rows, structure=[ONLY_LIVE])
        result.tables.append(table)
    elif other is not None:
        digest = _digest(conn, Comparison((result.other, result.other), other, other), 0)
        table = TableDifference(other.name, other=digest, missing=digest.rows)
        table.structure = [ONLY_OTHER]
        result.tables.append(table)


def _compare_both(
    conn: Connection[TupleRow], result: Difference, live: Table, other: Table, limit: int
) -> None:
    comparison = Comparison((result.live, result.other), live, other)
    table = TableDifference(live.name, structure=differing_structure(live, other))
    table.live, table.other = _digest(conn, comparison, 0), _digest(conn, comparison, 1)
    result.tables.append(table)
    if table.live == table.other:
        return
    table.missing, table.extra, table.different = _row(conn, comparison.count())
    if limit > 0:
        for row in conn.execute(comparison.first(limit)).fetchall():
            result.keys.append(_named(live.name, comparison.named, row))


def _digest(conn: Connection[TupleRow], comparison: Comparison, side: int) -> TableDigest:
    rows, total = _row(conn, comparison.digest(side))
    return TableDigest(rows, _hex(int(total)))


def _named(table: str, columns: list[str], row: TupleRow) -> DifferentKey:
    key, live, other, missing, extra, changes = row
    kind = Kind.MISSING if missing else Kind.EXTRA if extra else Kind.DIFFERENT
    ours, theirs = (None if value is None else _hex(value) for value in (live, other))
    named = dict(zip(columns, key, strict=True))
    return DifferentKey(table, named, kind, ours, theirs, changes or {})


def _row(conn: Connection[TupleRow], query: Composed) -> TupleRow:
    (row,) = conn.execute(query).fetchall()
    return row


def _hex(value: int) -> str:
    return f"{value % HASHES:016x}"
