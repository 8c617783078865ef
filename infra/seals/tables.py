"""The seals' tables, their connections, and the leaves as PostgreSQL computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import TupleRow

from infra.advisory_locks import Lock, lock_in_transaction
from infra.connecting import open_connection
from infra.seals.chain import EVENT_TAG, Seal

PAGE_SEALS = 20

# EXTERNAL: hashes can't be compressed, so nobody should try. Verifications are kept as they were
# answered, with the seal up to which a good one has proved the log.
TABLES: LiteralString = """
CREATE TABLE IF NOT EXISTS public.backlot_seals (
    number bigint PRIMARY KEY,
    first bigint NOT NULL,
    last bigint NOT NULL,
    leaves bytea NOT NULL,
    hash bytea NOT NULL,
    previous bytea NOT NULL,
    signature bytea,
    key_id text,
    sealed_at timestamptz NOT NULL DEFAULT now());
ALTER TABLE public.backlot_seals ALTER COLUMN leaves SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS public.backlot_verifications (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    verified_at timestamptz NOT NULL DEFAULT now(),
    complete boolean NOT NULL,
    ok boolean NOT NULL,
    report jsonb NOT NULL,
    seal bigint,
    seal_hash bytea)
"""

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
HEAD = b"SELECT coalesce(max(notification_id), 0) FROM public.backlot_events"


def connect(database_url: str, purpose: str) -> Connection[TupleRow]:
    """A connection in autocommit mode for keyed queries; raises OperationalError."""
    connection = open_connection(database_url, purpose)
    # Every query is keyed, and the planner must not think otherwise while the table is small.
    connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
    return connection


def install(conn: Connection[Any]) -> None:
    """Make the tables where they are missing."""
    with conn.transaction():
        lock_in_transaction(conn, Lock.SEAL_TABLES)
        row = conn.execute("SELECT to_regclass('public.backlot_verifications') IS NULL").fetchone()
        if row is None or row[0]:
            conn.execute(TABLES)


def head(conn: Connection[TupleRow]) -> int:
    """The last position of the log; 0 when it is empty."""
    row = conn.execute(HEAD).fetchone()
    return int(row[0]) if row else 0


def last_seal(conn: Connection[TupleRow]) -> Seal | None:
    """The newest seal."""
    with conn.cursor(binary=True) as cursor:
        row = cursor.execute(LAST, prepare=True).fetchone()
    return Seal(*row) if row else None


def seals(conn: Connection[TupleRow], after: int, until: int) -> Iterator[Seal]:
    """The seals numbered above `after` up to `until`, in order, a few at a time."""
    page: Sequence[TupleRow] = ()
    while True:
        with conn.cursor(binary=True) as cursor:
            page = cursor.execute(PAGE, (after, until)).fetchall()
        yield from (Seal(*row) for row in page)
        if len(page) < PAGE_SEALS:
            return
        after = page[-1][0]


def insert_seal(conn: Connection[TupleRow], seal: Seal) -> None:
    """Keep a seal. Raises UniqueViolation where its number is taken."""
    values = (
        seal.number, seal.first, seal.last, seal.leaves, seal.hash, seal.previous,
        seal.signature, seal.key_id, seal.sealed_at,
    )  # fmt: skip
    conn.execute(INSERT, values)
