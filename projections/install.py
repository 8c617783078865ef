"""Makes the tables of the projections; safe with many processes starting at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog
from psycopg import Connection
from psycopg.sql import SQL, Identifier

from infra.advisory_locks import Lock, lock_in_transaction
from projections import drift, ledger
from projections.parking import orders
from projections.positions import TABLES
from projections.projection import Projection
from projections.replaying import rows as replays

log = structlog.get_logger(__name__)


def install(conn: Connection[Any], projections: Iterable[Projection]) -> None:
    """Make what is not there yet. What an older version made is replaced only while it is empty.

    What a newer version made stays, empty or not.

    Runs in one transaction of its own, or within the caller's.
    """
    with conn.transaction():
        lock_in_transaction(conn, Lock.PROJECTION_TABLES)
        conn.execute(TABLES)
        conn.execute(orders.TABLE)
        conn.execute(ledger.TABLE)
        conn.execute(drift.TABLE)
        conn.execute(replays.TABLES)
        for projection in projections:
            _install(conn, projection)


def _install(conn: Connection[Any], projection: Projection) -> None:
    row = conn.cursor().execute(
        "SELECT version, position FROM projections.state WHERE schema = %s FOR UPDATE",
        (projection.schema,),
    )
    found = row.fetchone()
    if found is None:
        create(conn, projection)
    elif found[0] < projection.version and found[1] == 0:
        log.info("projection_recreated", projection=projection.name, version=projection.version)
        drop(conn, projection.schema)
        create(conn, projection)


def create(conn: Connection[Any], projection: Projection) -> None:
    """Make the tables of one copy, empty, and its row at position 0."""
    schema = Identifier(projection.schema)
    conn.execute(SQL("CREATE SCHEMA {}").format(schema))
    conn.execute(SQL(projection.tables).format(schema=schema))
    conn.execute(
        "INSERT INTO projections.state (schema, name, version) VALUES (%s, %s, %s)",
        (projection.schema, projection.name, projection.version),
    )


def drop(conn: Connection[Any], schema: str) -> None:
    """Remove one copy with everything that it holds, its parked events included."""
    conn.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(schema)))
    conn.execute("DELETE FROM projections.state WHERE schema = %s", (schema,))
