"""The tables of one copy as PostgreSQL's catalog has them: no list of ours can forget one."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import TupleRow, class_row

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


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns and their types by name, and the columns of its primary key, if any."""

    name: str
    columns: list[tuple[str, str]]
    key: list[str]

    def keyed_as(self, other: Table) -> bool:
        """Whether both have the same primary key, of the same types."""
        ours, theirs = dict(self.columns), dict(other.columns)
        return (
            self.key != []
            and self.key == other.key
            and all(ours[column] == theirs[column] for column in self.key)
        )


def tables_of(conn: Connection[TupleRow], schema: str) -> dict[str, Table]:
    """The tables in a schema by name, in the order of their names."""
    with conn.cursor(row_factory=class_row(Table)) as cursor:
        return {table.name: table for table in cursor.execute(TABLES, (schema,)).fetchall()}


def common_columns(one: Table, other: Table) -> list[str]:
    """Columns that both have, by name, whatever their order in the table."""
    theirs = dict(other.columns)
    return [name for name, _ in one.columns if name in theirs]


def differing_structure(live: Table, other: Table) -> list[str]:
    """How the columns and the keys of two tables differ, a sentence each; [] if they don't."""
    ours, theirs = dict(live.columns), dict(other.columns)
    told = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            told.append(f"column {name} is only in the live copy")
        elif name not in ours:
            told.append(f"column {name} is only in the other copy")
        elif ours[name] != theirs[name]:
            told.append(
                f"column {name} is {ours[name]} in the live copy, {theirs[name]} in the other"
            )
    if live.key != other.key:
        told.append(
            f"the primary key is ({', '.join(live.key)}) in the live copy, "
            f"({', '.join(other.key)}) in the other"
        )
    return told
