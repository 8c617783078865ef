"""The seals' tables, their connections, and the leaves as PostgreSQL computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.log import HEAD
from engine.seals.chain import EVENT_TAG, Seal
from infra.postgres.connection import open_connection

PAGE_SEALS = 20

TAG = f"'\\x{EVENT_TAG.hex()}'::bytea"
# The encoding of `chain.leaf`; a test compares the two on odd data.
LEAF = f"""sha256({TAG} || int8send(notification_id) || uuid_send(originator_id)
    || int8send(originator_version)
    || coalesce(int4send(octet_length(convert_to(topic, 'UTF8'))) || convert_to(topic, 'UTF8'),
                int4send(-1))
    || coalesce(int4send(octet_length(state)) || state, int4send(-1)))"""

COLUMNS = "number, first, last, leaves, hash, previous, signature, key_id, sealed_at"
INSERT = f"""
INSERT INTO public.backlot_seals ({COLUMNS}) VALUES (%s, %s, %s, %b, %b, %b, %b, %s, %s)
""".encode()
LAST = f"SELECT {COLUMNS} FROM public.backlot_seals ORDER BY number DESC LIMIT 1".encode()
PAGE = f"""
SELECT {COLUMNS} FROM public.backlot_seals
WHERE number > %s AND number <= %s ORDER BY number LIMIT {PAGE_SEALS}
""".encode()


def connect(database_url: str, purpose: str) -> Connection[TupleRow]:
    """Return a connection in autocommit mode for keyed queries; raise OperationalError."""
    connection = open_connection(database_url, purpose)
    # Every query is keyed, and the planner must not think otherwise while the table is small.
    connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
    return connection


def head(conn: Connection[TupleRow]) -> int:
    """Return the last position of the log; 0 when it is empty."""
    row = conn.execute(HEAD).fetchone()
    return int(row[0]) if row else 0


def last_seal(conn: Connection[TupleRow]) -> Seal | None:
    """Return the newest seal."""
    with conn.cursor(binary=True) as cursor:
        row = cursor.execute(LAST, prepare=True).fetchone()
    return Seal(*row) if row else None


def seals(conn: Connection[TupleRow], after: int, until: int) -> Iterator[Seal]:
    """Yield the seals numbered above `after` up to `until`, in order, a few at a time."""
    page: Sequence[TupleRow] = ()
    while True:
        with conn.cursor(binary=True) as cursor:
            page = cursor.execute(PAGE, (after, until)).fetchall()
        yield from (Seal(*row) for row in page)
        if len(page) < PAGE_SEALS:
            return
        after = page[-1][0]


def insert_seal(conn: Connection[TupleRow], seal: Seal) -> None:
    """Keep a seal. Raise UniqueViolation where its number is taken."""
    values = (
        seal.number, seal.first, seal.last, seal.leaves, seal.hash, seal.previous,
        seal.signature, seal.key_id, seal.sealed_at,
    )  # fmt: skip
    conn.execute(INSERT, values)
