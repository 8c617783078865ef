"""Compares two copies of a projection inside PostgreSQL, and names the keys that differ.

The rows never leave the server, so that it takes no memory here however much differs. A table
whose digests agree is done after one pass over each copy; only one that differs is joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow, class_row
from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

# A partition is read through the table that it belongs to.
TABLES = b"""
SELECT c.relname AS name,
       ARRAY(SELECT ROW(a.attname, format_type(a.atttypid, a.atttypmod))
             FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             ORDER BY a.attname COLLATE "C") AS columns,
       ARRAY(SELECT a.attname::text
             FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place),
                  pg_attribute a
             WHERE i.indrelid = c.oid AND i.indisprimary
                   AND a.attrelid = c.oid AND a.attnum = k.attnum
             ORDER BY k.place) AS key
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY c.relname COLLATE "C"
"""

# The same texts wherever the comparison runs, and a planner that may read whole tables.
SESSION = b"""
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO, YMD';
SET LOCAL intervalstyle = 'iso_8601';
SET LOCAL bytea_output = 'hex';
SET LOCAL extra_float_digits = 1;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_bitmapscan = on;
SET LOCAL work_mem = '64MB';
SET LOCAL statement_timeout = 0
"""

# The sum does not depend on the order in which the rows lie.
DIGEST = SQL("SELECT count(*), coalesce(sum({hash}), 0) FROM {table} t")

# Both give a row per key that differs: its texts, its digests, and how many of its rows the live
# copy lacks and how many only it has.
BY_KEY = SQL("""
SELECT ARRAY[{texts}]::text[] AS key, l.hash AS live, o.hash AS other,
       (l.hash IS NULL)::int AS missing, (o.hash IS NULL)::int AS extra, {aliases}
FROM (SELECT {columns}, {hash} AS hash FROM {live} t) l
FULL JOIN (SELECT {columns}, {hash} AS hash FROM {other} t) o USING ({aliases})
WHERE l.hash IS DISTINCT FROM o.hash""")
BY_ROW = SQL("""
SELECT key, l.hash AS live, o.hash AS other,
       greatest(coalesce(o.rows, 0) - coalesce(l.rows, 0), 0) AS missing,
       greatest(coalesce(l.rows, 0) - coalesce(o.rows, 0), 0) AS extra
FROM (SELECT ARRAY[{texts}]::text[] AS key, min({hash}) AS hash, count(*) AS rows
      FROM {live} t GROUP BY 1) l
FULL JOIN (SELECT ARRAY[{texts}]::text[] AS key, min({hash}) AS hash, count(*) AS rows
           FROM {other} t GROUP BY 1) o USING (key)
WHERE l.rows IS DISTINCT FROM o.rows""")

COUNT = SQL("""
SELECT coalesce(sum(missing), 0)::bigint, coalesce(sum(extra), 0)::bigint,
       count(*) FILTER (WHERE missing = 0 AND extra = 0)
FROM ({differing}) AS d""")
FIRST = SQL("""
SELECT key, live, other, missing, extra, NULL FROM ({differing}) AS d
ORDER BY {order} LIMIT {limit}""")
# Columns by name with the two values, where two rows have them otherwise; NULL without two rows.
CHANGES = """
(SELECT jsonb_object_agg(one.key, jsonb_build_array(one.value, two.value))
 FROM jsonb_each(to_jsonb({one})) AS one JOIN jsonb_each(to_jsonb({two})) AS two USING (key)
 WHERE one.value::text IS DISTINCT FROM two.value::text)"""
FIRST_BY_KEY = SQL(
    """
SELECT d.key, d.live, d.other, d.missing, d.extra, """
    + CHANGES.format(one="l", two="o")
    + """
FROM (SELECT * FROM ({differing}) AS d ORDER BY {order} LIMIT {limit}) AS d
LEFT JOIN {live} l ON ({live_key}) = ({aliases})
LEFT JOIN {other} o ON ({other_key}) = ({aliases})
ORDER BY {aliases}"""
)

NAMED_KEYS = 100
HASHES = 2**64
ONLY_LIVE = "the table is only in the live copy"
ONLY_OTHER = "the table is only in the other copy"


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns and their types by name, and the columns of its primary key, if any."""

    name: str
    columns: list[tuple[str, str]]
    key: list[str]

    def keyed_as(self, other: Table) -> bool:
        """Return whether both have the same primary key, of the same types."""
        ours, theirs = dict(self.columns), dict(other.columns)
        same_types = all(ours[column] == theirs.get(column) for column in self.key)
        return self.key != [] and self.key == other.key and same_types


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
        """Return it for JSON; with `values`, which are personal, only to be shown, never stored."""
        found = {
            "table": self.table,
            "key": self.key,
            "kind": str(self.kind),
            "live": self.live,
            "other": self.other,
            "columns": sorted(self.changes) or None,
            "changes": (values and self.changes) or None,
        }
        return {name: value for name, value in found.items() if value is not None}


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

    def as_dict(self, *, values: bool = False) -> dict[str, Any]:
        """Return what the command line's --json and the HTTP API show; `values` for operators."""
        return {
            "live": self.live,
            "other": self.other,
            "differs": self.differs,
            "total": self.total,
            "tables": [asdict(table) for table in self.tables],
            "keys": [key.as_dict(values=values) for key in self.keys],
        }


def tables_of(conn: Connection[TupleRow], schema: str) -> dict[str, Table]:
    """Return the tables in a schema by name, in the order of their names."""
    with conn.cursor(row_factory=class_row(Table)) as cursor:
        return {table.name: table for table in cursor.execute(TABLES, (schema,)).fetchall()}


def differing_structure(live: Table, other: Table) -> list[str]:
    """Return how the columns and the keys of two tables differ, a sentence each; [] if equal."""
    ours, theirs = dict(live.columns), dict(other.columns)
    differences = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            differences.append(f"column {name} is only in the live copy")
        elif name not in ours:
            differences.append(f"column {name} is only in the other copy")
        elif ours[name] != theirs[name]:
            differences.append(
                f"column {name} is {ours[name]} in the live copy, {theirs[name]} in the other"
            )
    if live.key != other.key:
        differences.append(
            f"the primary key is ({', '.join(live.key)}) in the live copy, "
            f"({', '.join(other.key)}) in the other"
        )
    return differences


class Comparison:
    """The statements for one table that both copies have; rows are compared by common columns."""

    def __init__(self, schemas: tuple[str, str], live: Table, other: Table) -> None:
        theirs = dict(other.columns)
        columns = [name for name, _ in live.columns if name in theirs]
        self.key = live.key if live.keyed_as(other) else []
        self.named = self.key or columns
        self._tables = [Identifier(schema, live.name) for schema in schemas]
        self._aliases = [Identifier(f"k{place}") for place in range(len(self.key))]
        row = _listed(Identifier("t", column) for column in columns)
        self._hash = SQL("hashtextextended(ROW({})::text, 0)").format(row)

    def digest(self, side: int) -> Composed:
        """Rows and the sum of their hashes: of the live copy (0) or the other one (1)."""
        return DIGEST.format(hash=self._hash, table=self._tables[side])

    def count(self) -> Composed:
        """Return how many rows are missing, extra and different."""
        return COUNT.format(differing=self._differing())

    def first(self, limit: int) -> Composed:
        """Return the first keys that differ: key, both hashes, rows missing and extra, changes."""
        order = _listed(self._aliases or [Identifier("key")])
        what = {"differing": self._differing(), "order": order, "limit": Literal(limit)}
        if not self.key:
            return FIRST.format(**what)
        live, other = self._tables
        return FIRST_BY_KEY.format(
            **what,
            live=live,
            other=other,
            live_key=_listed(Identifier("l", column) for column in self.key),
            other_key=_listed(Identifier("o", column) for column in self.key),
            aliases=_listed(SQL("d.{}").format(alias) for alias in self._aliases),
        )

    def _differing(self) -> Composed:
        live, other = self._tables
        columns = [Identifier("t", column) for column in self.named]
        what = {"hash": self._hash, "live": live, "other": other}
        if not self.key:
            return BY_ROW.format(**what, texts=_texts(columns))
        pairs = zip(columns, self._aliases, strict=True)
        return BY_KEY.format(
            **what,
            texts=_texts(self._aliases),
            aliases=_listed(self._aliases),
            columns=_listed(SQL("{} AS {}").format(*pair) for pair in pairs),
        )


def _listed(parts: Iterable[Composable]) -> Composed:
    return SQL(", ").join(parts)


def _texts(parts: Sequence[Composable]) -> Composed:
    return _listed(SQL("{}::text").format(part) for part in parts)


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
            _compare_table(conn, result, ours.get(name), theirs.get(name), limit)
    return result


def _compare_table(
    conn: Connection[TupleRow],
    result: Difference,
    live: Table | None,
    other: Table | None,
    limit: int,
) -> None:
    ours, theirs = live or other, other or live
    if ours is None or theirs is None:
        return
    comparison = Comparison((result.live, result.other), ours, theirs)
    table = TableDifference(ours.name, structure=differing_structure(ours, theirs))
    result.tables.append(table)
    if live is not None:
        table.live = _digest(conn, comparison, 0)
    if other is not None:
        table.other = _digest(conn, comparison, 1)
    if table.other is None and table.live is not None:
        table.extra, table.structure = table.live.rows, [ONLY_LIVE]
    elif table.live is None and table.other is not None:
        table.missing, table.structure = table.other.rows, [ONLY_OTHER]
    elif table.live != table.other:
        _compare_rows(conn, result, comparison, table, limit)


def _compare_rows(
    conn: Connection[TupleRow],
    result: Difference,
    comparison: Comparison,
    table: TableDifference,
    limit: int,
) -> None:
    table.missing, table.extra, table.different = _row(conn, comparison.count())
    if (left := limit - len(result.keys)) > 0:
        for row in conn.execute(comparison.first(left)):
            result.keys.append(_named(table.table, comparison.named, row))


def rows_by_key(
    conn: Connection[TupleRow], schema: str, named: Iterable[tuple[str, Mapping[str, str | None]]]
) -> list[dict[str, Any] | None]:
    """Return the rows of a copy with these keys, each named by its table and its primary key.

    What the copy does not have, or has no such key for, is None. Rows are personal: only to be
    shown, never stored.
    """
    tables = tables_of(conn, schema)
    return [_row_by_key(conn, schema, tables.get(table), key) for table, key in named]


def _row_by_key(
    conn: Connection[TupleRow], schema: str, table: Table | None, key: Mapping[str, str | None]
) -> dict[str, Any] | None:
    if table is None or not table.key or key.keys() != {*table.key}:
        return None
    types = dict(table.columns)
    conditions = [
        SQL("t.{} = CAST({} AS {})").format(
            Identifier(column),
            Literal(key[column]),
            SQL(types[column]),
        )
        for column in table.key
    ]
    query = SQL("SELECT to_jsonb(t) FROM {} t WHERE {}").format(
        Identifier(schema, table.name), SQL(" AND ").join(conditions)
    )
    row = conn.execute(query).fetchone()
    return None if row is None else row[0]


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
