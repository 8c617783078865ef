"""Make the tables of a database, and the copies of projections; safe in many processes at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog
from psycopg import Connection
from psycopg.sql import SQL, Identifier

from engine import checkpoints, dead_letters, ledger
from engine.migrations import ENGINE, LOG, MigrationSet, migrate
from engine.projection import Projection
from infra.advisory_locks import Lock, lock_in_transaction

log = structlog.get_logger(__name__)


def make_tables(conn: Connection[Any], *others: MigrationSet) -> None:
    """Make the tables of the event log and of the engine, then those of the other sets.

    The tables of copies are made by `install`. `conn` has to be in autocommit mode. Raise
    UnknownMigration, and psycopg.Error.
    """
    for each in (ENGINE, *others):
        migrate(conn, each, LOG)


def install(conn: Connection[Any], projections: Iterable[Projection]) -> None:
    """Make the copies that are missing. Replace a copy of an older version only while it is empty.

    What a newer version made stays, empty or not. Runs in one transaction of its own, or within the
    caller's; the tables of the engine have to be there.
    """
    with conn.transaction():
        lock_in_transaction(conn, Lock.PROJECTION_TABLES)
        for projection in projections:
            _install(conn, projection)


def _install(conn: Connection[Any], projection: Projection) -> None:
    found = checkpoints.lock(conn, projection.schema)
    if found is None:
        create(conn, projection)
        return
    version, position = found
    if version < projection.version and position == 0:
        log.info("projection_recreated", projection=projection.name, version=projection.version)
        drop(conn, projection.schema)
        create(conn, projection)


def create(conn: Connection[Any], projection: Projection) -> None:
    """Make the tables of one copy, empty, and its checkpoint at position 0."""
    schema = Identifier(projection.schema)
    conn.execute(SQL("CREATE SCHEMA {}").format(schema))
    conn.execute(SQL(projection.tables).format(schema=schema))
    checkpoints.create(conn, projection.schema, projection.name, projection.version)


def rename(conn: Connection[Any], schema: str, name: str) -> None:
    """Give a copy another schema, and have its checkpoint, ledger and parked events follow."""
    renaming = SQL("ALTER SCHEMA {} RENAME TO {}")
    conn.execute(renaming.format(Identifier(schema), Identifier(name)))
    for part in (checkpoints, ledger, dead_letters):
        part.rename(conn, schema, name)


def drop(conn: Connection[Any], schema: str) -> None:
    """Remove one copy with everything that it holds, its parked events included."""
    conn.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(schema)))
    for part in (checkpoints, ledger, dead_letters):
        part.drop(conn, schema)
