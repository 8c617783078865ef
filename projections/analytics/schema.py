"""Makes the tables of the analytics from the SQL files beside this one, each once, in order.

`0002_rollups.plain.sql` and `0002_rollups.timescale.sql` are one version in two shapes; a database
keeps the shape that it began with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from psycopg import Connection
from psycopg.errors import InsufficientPrivilege, UndefinedTable

from engine import installation
from engine.installation import MigrationSet, UnknownMigration, migration_lock
from infra.errors import describe

log = structlog.get_logger(__name__)

ANALYTICS = MigrationSet("analytics", Path(__file__).with_name("migrations"), "analytics")

SHAPES = b"""
CREATE SCHEMA IF NOT EXISTS analytics;
CREATE TABLE IF NOT EXISTS analytics.shape (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    shape text NOT NULL)
"""
# Looked at first: CREATE EXTENSION where it is not preloaded breaks the connection. The setting is
# the loader's own, which anybody may see, unlike shared_preload_libraries. Under the other licence
# continuous aggregates and compression are missing; which one it is may be known only once the
# extension is there.
USABLE = b"""
SELECT (EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
        OR EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
       AND EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers'))
   AND coalesce(current_setting('timescaledb.license', true), 'timescale') = 'timescale'
"""
EXTEND = b"CREATE EXTENSION IF NOT EXISTS timescaledb"
STATE = b"""
SELECT shape, (SELECT coalesce(max(version), 0) FROM analytics.migrations),
       (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb')
FROM analytics.shape
"""
UNUSED = "TimescaleDB is there and not used, see docs/analytics.md"


class Shape(StrEnum):
    """What the analytics stand on."""

    PLAIN = "plain"
    TIMESCALE = "timescale"


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a database has: its shape, its version, the extension's version where it is there.

    `unused` is whether plain tables stand on a server that could do better.
    """

    shape: Shape
    version: int
    extension: str | None
    unused: bool = False

    def __str__(self) -> str:
        what = "plain tables" if self.shape is Shape.PLAIN else f"TimescaleDB {self.extension}"
        told = f"{what}, schema version {self.version}"
        return f"{told}; {UNUSED}" if self.unused else told


def migrate(conn: Connection[Any]) -> SchemaState:
    """Bring the schema `analytics` up to date; many processes may do so at once, again and again.

    `conn` has to be in autocommit mode. Raise UnknownMigration where a newer or another release has
    been here, and psycopg.Error.
    """
    with migration_lock(conn):
        conn.execute(SHAPES)
        installation.migrate(conn, ANALYTICS, _shape(conn))
        found = state(conn)
    if found is None:
        raise UnknownMigration("The schema `analytics` was dropped while it was being made.")
    return found


def state(conn: Connection[Any]) -> SchemaState | None:
    """Return what is there now; None where nothing is."""
    try:
        row = conn.execute(STATE).fetchone()
    except UndefinedTable:
        return None
    if row is None:
        return None
    shape = Shape(row[0])
    return SchemaState(shape, row[1], row[2], shape is Shape.PLAIN and _usable(conn))


def _shape(conn: Connection[Any]) -> Shape:
    """Return the shape of this database, chosen when its analytics begin."""
    row = conn.execute(b"SELECT shape FROM analytics.shape").fetchone()
    if row is not None:
        return Shape(row[0])
    shape = Shape.TIMESCALE if _usable(conn) and _extended(conn) else Shape.PLAIN
    conn.execute(b"INSERT INTO analytics.shape (shape) VALUES (%b)", (shape,))
    log.info("analytics_shape", shape=str(shape))
    return shape


def _usable(conn: Connection[Any]) -> bool:
    """Return whether the server has TimescaleDB with all that the analytics want of it."""
    (usable,) = conn.execute(USABLE).fetchone() or (False,)
    return bool(usable)


def _extended(conn: Connection[Any]) -> bool:
    """Make the extension; False where this role may not, or where it proves to lack the rest."""
    try:
        conn.execute(EXTEND)
    except InsufficientPrivilege as error:
        log.warning("timescaledb_refused", error=describe(error), using="plain tables")
        return False
    return _usable(conn)
