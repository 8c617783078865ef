"""Makes the tables of the analytics from the SQL files beside this one, each once, in order.

`0002_rollups.plain.sql` and `0002_rollups.timescale.sql` are one version in two shapes; a database
keeps the shape that it began with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import structlog
from psycopg import Connection
from psycopg.errors import InsufficientPrivilege, UndefinedTable
from psycopg.pq import TransactionStatus

from infra.advisory_locks import Lock, lock, unlock
from infra.errors import OperatorError, describe

log = structlog.get_logger(__name__)

FOLDER = Path(__file__).with_name("migrations")
NAME = re.compile(r"(?P<version>\d{4})_\w+(?:\.(?P<shape>plain|timescale))?\.sql")

# Held by the session, since it has to outlast the transaction of each file.
LEDGER = b"""
CREATE SCHEMA IF NOT EXISTS analytics;
CREATE TABLE IF NOT EXISTS analytics.shape (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    shape text NOT NULL);
CREATE TABLE IF NOT EXISTS analytics.migrations (
    version int PRIMARY KEY,
    name text NOT NULL,
    digest text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now())
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


class UnknownMigration(OperatorError):
    """The tables were made by another release than this one."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of SQL; its digest tells whether it is the one that was applied."""

    version: int
    name: str
    text: bytes

    @property
    def digest(self) -> str:
        return sha256(self.text).hexdigest()


@dataclass(frozen=True, slots=True)
class State:
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


def migrate(conn: Connection[Any]) -> State:
    """Bring the schema `analytics` up to date; many processes may do so at once, again and again.

    Wants a connection in autocommit mode. Raises UnknownMigration where a newer or another release
    has been here, and psycopg.Error.
    """
    lock(conn, Lock.ANALYTICS_MIGRATION)
    try:
        conn.execute(LEDGER)
        shape = _shape(conn)
        for migration in _pending(conn, migrations(shape)):
            _apply(conn, migration)
        found = state(conn)
    finally:
        # Whoever is stopped within a statement can't send another one; its session ends anyway.
        if conn.info.transaction_status is TransactionStatus.IDLE:
            unlock(conn, Lock.ANALYTICS_MIGRATION)
    if found is None:
        raise UnknownMigration("The schema `analytics` was dropped while it was being made.")
    return found


def state(conn: Connection[Any]) -> State | None:
    """What is there now; None where nothing is."""
    try:
        row = conn.execute(STATE).fetchone()
    except UndefinedTable:
        return None
    if row is None:
        return None
    shape = Shape(row[0])
    return State(shape, row[1], row[2], shape is Shape.PLAIN and _usable(conn))


@cache
def migrations(shape: Shape) -> Sequence[Migration]:
    """The files that make one shape, in order."""
    found = []
    for path in sorted(FOLDER.glob("*.sql")):
        told = NAME.fullmatch(path.name)
        if told is None:
            raise ValueError(f"{path.name} is no name for a migration.")
        if told["shape"] in (None, shape):
            found.append(Migration(int(told["version"]), path.name, path.read_bytes()))
    return found


def _shape(conn: Connection[Any]) -> Shape:
    """The shape of this database, chosen when its analytics begin."""
    row = conn.execute(b"SELECT shape FROM analytics.shape").fetchone()
    if row is not None:
        return Shape(row[0])
    shape = Shape.TIMESCALE if _usable(conn) and _extended(conn) else Shape.PLAIN
    conn.execute(b"INSERT INTO analytics.shape (shape) VALUES (%b)", (shape,))
    log.info("analytics_shape", shape=str(shape))
    return shape


def _usable(conn: Connection[Any]) -> bool:
    """Whether the server has TimescaleDB with all that the analytics want of it."""
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


def _pending(conn: Connection[Any], wanted: Sequence[Migration]) -> list[Migration]:
    rows = conn.execute(b"SELECT version, name, digest FROM analytics.migrations").fetchall()
    applied = {version: (name, digest) for version, name, digest in rows}
    known = {each.version: (each.name, each.digest) for each in wanted}
    for version, told in applied.items():
        if known.get(version) != told:
            raise UnknownMigration(
                f"Version {version} of the schema `analytics` ({told[0]}) is not this release's: "
                "start the release that made it, or restore a backup from before."
            )
    return [each for each in wanted if each.version not in applied]


def _apply(conn: Connection[Any], migration: Migration) -> None:
    with conn.transaction():
        conn.execute(migration.text)
        conn.execute(
            b"INSERT INTO analytics.migrations (version, name, digest) VALUES (%b, %b, %b)",
            (migration.version, migration.name, migration.digest),
        )
    log.info("analytics_migrated", migration=migration.name)
