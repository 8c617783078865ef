"""How far the relay is, and what it could not publish: in PostgreSQL, moved together."""

from __future__ import annotations

from collections.abc import Iterable

from psycopg import Connection
from psycopg.rows import TupleRow

from engine import checkpoints, dead_letters
from engine.checkpoints import Checkpoint, SubscriptionKind
from engine.dead_letters import Rejected

RELAY = "relay"
SOURCES = ("events", "telemetry")


def begin(conn: Connection[TupleRow]) -> dict[str, int]:
    """Return how far each source is published; at first, nothing is."""
    checkpoints.begin(conn, SubscriptionKind.RELAY, RELAY, SOURCES)
    return published(conn)


def published(conn: Connection[TupleRow]) -> dict[str, int]:
    """Return how far each source is published; empty where no relay has ever run."""
    found = checkpoints.positions(conn, SubscriptionKind.RELAY, RELAY)
    return {source: position for (source, _), position in found.items()}


def move(
    conn: Connection[TupleRow],
    source: str,
    before: int,
    after: int,
    undelivered: Iterable[Rejected],
) -> None:
    """Advance the checkpoint, and set aside what could not be published; raise Superseded."""
    with conn.transaction(), conn.cursor() as cursor:
        dead_letters.reject(conn, SubscriptionKind.RELAY, RELAY, undelivered)
        Checkpoint(SubscriptionKind.RELAY, RELAY, source=source).move(cursor, before, after)
