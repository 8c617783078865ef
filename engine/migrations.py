"""Apply SQL files to a database: each file once, in order, however many processes start at once.

A set of migrations is a folder of files such as `0002_seals.log.sql`: a version, a name and, for a
file that not every database gets, the kind of database that it is for. A table of the set records
which files were applied, with their digests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import structlog
from psycopg import Connection
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Composed, Identifier

from infra.advisory_locks import Lock, lock, unlock
from infra.errors import OperatorError

log = structlog.get_logger(__name__)

NAME = re.compile(r"(?P<version>\d{4})_\w+(?:\.(?P<kind>\w+))?\.sql")


RECORDS = """
CREATE TABLE IF NOT EXISTS {table} (
    version int PRIMARY KEY,
    name text NOT NULL,
    digest text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now())
"""
EXISTS = b"SELECT to_regclass(%s) IS NOT NULL"
APPLIED = "SELECT version, name, digest FROM {table} ORDER BY version"
RECORD = "INSERT INTO {table} (version, name, digest) VALUES (%s, %s, %s)"
LOG = "log"
"""The kind of database that holds the event log; others hold checkpoints and dead letters only."""


class NotMigrated(OperatorError):
    """The database lacks tables of this release."""


class UnknownMigration(OperatorError):
    """The tables were made by another release than this one."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of SQL; its digest shows whether it is the one that was applied."""

    version: int
    name: str
    text: bytes
    kind: str | None = None

    @property
    def digest(self) -> str:
        return sha256(self.text).hexdigest()


@dataclass(frozen=True, slots=True)
class MigrationSet:
    """The files of a folder, and the table that records which of them a database has."""

    name: str
    folder: Path
    schema: str
    table: str = "migrations"

    def files(self, kind: str | None = None) -> list[Migration]:
        """Return the files for one kind of database, in order; without a kind, those for every one.

        Raise ValueError for a file whose name is no name of a migration.
        """
        return [file for file in _read(self.folder) if file.kind in (None, kind)]

    def statement(self, text: str) -> Composed:
        """Return a statement about the table of this set."""
        return SQL(text).format(table=Identifier(self.schema, self.table))


ENGINE = MigrationSet("engine", Path(__file__).with_name("sql"), "public", "backlot_migrations")


@cache
def _read(folder: Path) -> Sequence[Migration]:
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path.name} is no name for a migration.")
        found.append(Migration(int(match["version"]), path.name, path.read_bytes(), match["kind"]))
    return found


def migrate(conn: Connection[Any], wanted: MigrationSet, kind: str | None = None) -> int:
    """Apply the files that the database lacks, each in a transaction; return the newest version.

    Where nothing is missing, nothing is written and no lock is taken. `conn` has to be in
    autocommit mode. Raise UnknownMigration where a newer or another release has applied files, and
    psycopg.Error; a file that fails leaves nothing behind.
    """
    if _missing(conn, wanted, kind):
        with migration_lock(conn):
            _make_table(conn, wanted)
            for migration in _missing(conn, wanted, kind):
                _apply(conn, wanted, migration)
    return max((file.version for file in wanted.files(kind)), default=0)


def require_migrated(conn: Connection[Any], wanted: MigrationSet, kind: str | None = None) -> None:
    """Raise NotMigrated where the database lacks a file; for programs that only look at it.

    Raise UnknownMigration where a newer or another release has applied files, and psycopg.Error.
    """
    if _missing(conn, wanted, kind):
        raise NotMigrated(
            "its tables are not there yet, or an older release's: start this release on it once"
        )


@contextmanager
def migration_lock(conn: Connection[Any]) -> Iterator[None]:
    """Let no other process migrate the database meanwhile; a process may enter this twice."""
    # Held by the session: a lock must outlast the transaction of each file.
    lock(conn, Lock.MIGRATION)
    try:
        yield
    finally:
        # A session that broke off within a statement can't send another one; it ends anyway.
        if conn.info.transaction_status is TransactionStatus.IDLE:
            unlock(conn, Lock.MIGRATION)


def _make_table(conn: Connection[Any], wanted: MigrationSet) -> None:
    conn.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(wanted.schema)))
    conn.execute(wanted.statement(RECORDS))


def _missing(conn: Connection[Any], wanted: MigrationSet, kind: str | None) -> list[Migration]:
    """Return the files that are not applied yet; raise UnknownMigration."""
    (begun,) = conn.execute(EXISTS, (f"{wanted.schema}.{wanted.table}",)).fetchone() or (False,)
    applied = conn.execute(wanted.statement(APPLIED)).fetchall() if begun else []
    known = {(file.version, file.name, file.digest) for file in _read(wanted.folder)}
    for version, name, digest in applied:
        if (version, name, digest) not in known:
            raise UnknownMigration(
                f"Version {version} of the schema `{wanted.name}` ({name}) is not this release's: "
                "start the release that made it, or restore a backup from before."
            )
    versions = {version for version, _, _ in applied}
    return [file for file in wanted.files(kind) if file.version not in versions]


def _apply(conn: Connection[Any], wanted: MigrationSet, migration: Migration) -> None:
    with conn.transaction():
        conn.execute(migration.text)
        values = (migration.version, migration.name, migration.digest)
        conn.execute(wanted.statement(RECORD), values)
    log.info("schema_migrated", schema=wanted.name, migration=migration.name)
