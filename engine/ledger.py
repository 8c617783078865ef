"""What each copy has applied, accounted per block of positions in the transaction that applies it.

A position says how far a copy has come; the ledger says that nothing was left out or counted twice
on the way, and in which block it was if something was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from psycopg import Connection, Cursor

BLOCK_POSITIONS = 10_000
"""Positions 1 to 10,000 are block 0, and so on: a million events cost a copy a hundred rows."""

# In the order of the blocks, so that two processes that apply to one copy never deadlock.
ADD = b"""
INSERT INTO projections.ledger AS l (schema, block, applied, positions)
SELECT %b, * FROM unnest(%b::bigint[], %b::bigint[], %b::numeric[])
ON CONFLICT (schema, block) DO UPDATE
SET applied = l.applied + excluded.applied, positions = l.positions + excluded.positions
"""

ADD_RANGE = b"""
INSERT INTO projections.ledger AS l (schema, block, applied, positions)
SELECT %(schema)s, block, until - after, (until - after) * (after + 1 + until)::numeric / 2
FROM (SELECT block, greatest(%(after)s, block * %(size)s) AS after,
             least(%(until)s, (block + 1) * %(size)s) AS until
      FROM generate_series(%(after)s::bigint / %(size)s, (%(until)s::bigint - 1) / %(size)s)
           AS block) AS blocks
ON CONFLICT (schema, block) DO UPDATE
SET applied = l.applied + excluded.applied, positions = l.positions + excluded.positions
"""

RENAME = b"UPDATE projections.ledger SET schema = %s WHERE schema = %s"
DROP = b"DELETE FROM projections.ledger WHERE schema = %s"


def block_of(position: int) -> int:
    """Return the block in which a position (from 1) is accounted."""
    return (position - 1) // BLOCK_POSITIONS


def add(cursor: Cursor[Any], schema: str, positions: Sequence[int]) -> None:
    """Account events that are applied in this transaction: their number, and their positions' sum.

    The positions are in rising order. To be called last, before the copy's position moves.
    """
    rows = [(block, len(part), sum(part)) for block, part in _by_block(positions)]
    if rows:
        cursor.execute(ADD, (schema, *map(list, zip(*rows, strict=True))), prepare=True)


def _by_block(positions: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
    begin = 0
    while begin < len(positions):
        block = block_of(positions[begin])
        end = bisect_right(positions, (block + 1) * BLOCK_POSITIONS, begin)
        yield block, positions[begin:end]
        begin = end


def add_range(cursor: Cursor[Any], schema: str, after: int, until: int) -> None:
    """Account every event of a stretch of the log; its first position is `after` + 1."""
    if after < until:
        size = BLOCK_POSITIONS
        cursor.execute(ADD_RANGE, {"schema": schema, "after": after, "until": until, "size": size})


def rename(conn: Connection[Any], schema: str, name: str) -> None:
    """Have the accounts of a copy follow its schema."""
    conn.execute(RENAME, (name, schema))


def drop(conn: Connection[Any], schema: str) -> None:
    """Forget the accounts of a copy."""
    conn.execute(DROP, (schema,))
