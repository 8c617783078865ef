"""What consumers have done, in PostgreSQL: how far they are, what they handled, what is dead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from engine.messages import Dead, Place, Raw, Received
from infra.advisory_locks import Lock, lock_in_transaction

KEEP_DAYS = 7

TABLES = b"""
CREATE TABLE IF NOT EXISTS backlot_consumer_places (
    consumer text NOT NULL,
    source text NOT NULL,
    partition int NOT NULL,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, source, partition)) WITH (fillfactor = 20);
CREATE TABLE IF NOT EXISTS processed_messages (
    consumer text NOT NULL,
    message_id uuid NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_id));
CREATE INDEX IF NOT EXISTS processed_messages_at ON processed_messages USING brin (processed_at);
CREATE TABLE IF NOT EXISTS backlot_dead_messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer text NOT NULL,
    topic text NOT NULL,
    source text NOT NULL,
    partition int NOT NULL,
    position bigint NOT NULL,
    message_id uuid,
    key text,
    value bytea,
    headers jsonb NOT NULL,
    reason text NOT NULL,
    attempts int NOT NULL DEFAULT 1,
    status text NOT NULL DEFAULT 'dead',
    died_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (consumer, source, partition, position));
CREATE INDEX IF NOT EXISTS backlot_dead_messages_wanted
    ON backlot_dead_messages (consumer) WHERE status = 'redrive'
"""

PLACES = b"SELECT source, partition, position FROM backlot_consumer_places WHERE consumer = %s"
MOVE = b"""
INSERT INTO backlot_consumer_places AS p (consumer, source, partition, position)
SELECT %b, * FROM unnest(%b::text[], %b::int[], %b::bigint[])
ON CONFLICT (consumer, source, partition)
DO UPDATE SET position = excluded.position, updated_at = now()
"""
KNOWN = b"""
SELECT message_id FROM processed_messages WHERE consumer = %b AND message_id = ANY (%b::uuid[])
"""
HANDLED = b"""
INSERT INTO processed_messages (consumer, message_id) SELECT %b, unnest(%b::uuid[])
ON CONFLICT DO NOTHING
"""
BURY = b"""
INSERT INTO backlot_dead_messages AS d
    (consumer, topic, source, partition, position, message_id, key, value, headers, reason)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (consumer, source, partition, position) DO UPDATE
SET reason = excluded.reason, attempts = d.attempts + 1, status = 'dead', died_at = now(),
    message_id = coalesce(excluded.message_id, d.message_id)
"""
WANTED = b"""
SELECT topic, source, partition, position, key, value, headers FROM backlot_dead_messages
WHERE consumer = %s AND status = 'redrive' ORDER BY id LIMIT %s
"""
REVIVED = b"""
DELETE FROM backlot_dead_messages
WHERE consumer = %s AND source = %s AND partition = %s AND position = %s
"""
PRUNE = b"DELETE FROM processed_messages WHERE processed_at < now() - make_interval(days => %s)"
COUNT = b"SELECT count(*) FROM backlot_dead_messages WHERE consumer = %s"


def install(conn: Connection[Any]) -> None:
    """Create the tables where they are missing."""
    with conn.transaction():
        # CREATE … IF NOT EXISTS races with itself when several processes start at once.
        lock_in_transaction(conn, Lock.CONSUMER_TABLES)
        conn.execute(TABLES)


def places(conn: Connection[TupleRow], consumer: str) -> dict[Place, int]:
    """How far the consumer is in each source."""
    rows = conn.execute(PLACES, (consumer,)).fetchall()
    return {(source, partition): position for source, partition, position in rows}


def known(conn: Connection[TupleRow], consumer: str, ids: Sequence[UUID]) -> set[UUID]:
    """Which of the messages the consumer has handled before."""
    with conn.cursor(binary=True) as cursor:
        return {id_ for (id_,) in cursor.execute(KNOWN, (consumer, list(ids)), prepare=True)}


def settle(
    conn: Connection[TupleRow],
    consumer: str,
    handled: Iterable[Received],
    dead: Iterable[Dead],
    moved: Mapping[Place, int],
) -> None:
    """Write down, in one transaction, what became of a batch, and how far the consumer is now."""
    with conn.transaction():
        _write(conn, consumer, handled, dead)
        if moved:
            rows = [(source, part, at) for (source, part), at in moved.items()]
            conn.execute(MOVE, (consumer, *map(list, zip(*rows, strict=True))), prepare=True)


def settle_redriven(
    conn: Connection[TupleRow], consumer: str, handled: Iterable[Received], dead: Iterable[Dead]
) -> None:
    """Write down, in one transaction, what became of messages that were dead."""
    revived = list(handled)
    with conn.transaction():
        _write(conn, consumer, revived, dead)
        for message in revived:
            conn.execute(REVIVED, (consumer, *message.raw.place, message.raw.offset))


def _write(
    conn: Connection[TupleRow], consumer: str, handled: Iterable[Received], dead: Iterable[Dead]
) -> None:
    ids = [message.id for message in handled]
    if ids:
        conn.execute(HANDLED, (consumer, ids), prepare=True)
    for each in dead:
        raw = each.raw
        place = (consumer, raw.topic, *raw.place, raw.offset)
        key = None if raw.key is None else _storable(raw.key)
        headers = {_storable(name): _storable(text) for name, text in raw.headers.items()}
        held = (each.id, key, raw.value, Jsonb(headers), _storable(each.reason))
        conn.execute(BURY, (*place, *held))


def _storable(text: str) -> str:
    """The text without what PostgreSQL can't store: it may come from anybody."""
    return text.replace("\x00", "\\x00")


def wanted(conn: Connection[TupleRow], consumer: str, limit: int) -> list[Raw]:
    """Dead messages of the consumer that somebody wants to have handled after all."""
    rows = conn.execute(WANTED, (consumer, limit)).fetchall()
    return [
        Raw(topic, (source, partition), offset, key, value, headers)
        for topic, source, partition, offset, key, value, headers in rows
    ]


def count_dead(conn: Connection[TupleRow], consumer: str) -> int:
    """How many messages of the consumer are dead."""
    row = conn.execute(COUNT, (consumer,)).fetchone()
    return int(row[0]) if row else 0


def forget_processed(conn: Connection[Any], older_than_days: int = KEEP_DAYS) -> int:
    """Drop what was handled longer ago than any message may come again; returns how many."""
    return conn.execute(PRUNE, (older_than_days,)).rowcount
