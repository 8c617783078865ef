"""How far the relay is, and what it could not publish: in PostgreSQL, moved together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow

from infra.advisory_locks import Lock, lock_in_transaction

TABLES = b"""
CREATE TABLE IF NOT EXISTS backlot_relay (
    source text PRIMARY KEY,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 20);
CREATE TABLE IF NOT EXISTS backlot_undelivered (
    source text NOT NULL,
    position bigint NOT NULL,
    topic text NOT NULL,
    reason text NOT NULL,
    message_id uuid,
    key text,
    value bytea,
    noticed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, position))
"""
BEGIN = b"""
INSERT INTO backlot_relay (source, position) VALUES ('events', 0), ('telemetry', 0)
ON CONFLICT DO NOTHING
"""
READ = b"SELECT source, position FROM backlot_relay"
MOVE = b"""
UPDATE backlot_relay SET position = %b, updated_at = now() WHERE source = %b AND position = %b
"""
SET_ASIDE = b"""
INSERT INTO backlot_undelivered (source, position, topic, reason, message_id, key, value)
VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""


class Superseded(Exception):
    """Another relay has moved the position."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Something recorded that can't be published, with the message where it makes one."""

    position: int
    topic: str
    reason: str
    message_id: UUID | None = None
    key: str | None = None
    value: bytes | None = None


def install(conn: Connection[Any]) -> None:
    """Create the tables where they are missing."""
    with conn.transaction():
        # CREATE … IF NOT EXISTS races with itself when several processes start at once.
        lock_in_transaction(conn, Lock.RELAY_TABLES)
        conn.execute(TABLES)


def begin(conn: Connection[TupleRow]) -> dict[str, int]:
    """How far each source is published; at first, nothing is."""
    conn.execute(BEGIN)
    return dict(conn.execute(READ).fetchall())


def published(conn: Connection[TupleRow]) -> list[tuple[str, int]]:
    """How far each source is published; none where no relay has ever run."""
    try:
        return conn.execute(READ, prepare=True).fetchall()
    except UndefinedTable:
        return []


def move(
    conn: Connection[TupleRow],
    source: str,
    before: int,
    after: int,
    undelivered: Iterable[Undelivered],
) -> None:
    """Advance the position, and set aside what could not be published; raises Superseded."""
    with conn.transaction():
        for each in undelivered:
            held = (each.topic, each.reason, each.message_id, each.key, each.value)
            conn.execute(SET_ASIDE, (source, each.position, *held))
        if conn.execute(MOVE, (after, source, before), prepare=True).rowcount != 1:
            raise Superseded(f"The relay is no longer at {source} {before}.")
