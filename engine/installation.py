"""Make the tables of a database, and the copies of projections; safe in many processes at once.

A set of migrations is a folder of files such as `0002_seals.log.sql`: a version, a name and, for a
file that not every database gets, the kind of database that it is for. Each file is applied once,
in order. A table of the set records which files were applied, with their digests. A line
`\\ir shared/FILE`, as psql has it, stands for the text of that file: what two kinds share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
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

from engine import checkpoints
from engine.projection import Projection
from infra.advisory_locks import Lock, lock, lock_in_transaction, unlock
from infra.errors import OperatorError

log = structlog.get_logger(__name__)

NAME = re.compile(r"(?P<version>\d{4})_\w+(?:\.(?P<kind>\w+))?\.sql")
SHARED = re.compile(rb"^\\ir (shared/\w+\.sql)\n", re.MULTILINE)
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
# What the engine keeps of a copy by the name of its schema: checkpoint, ledger, parked events.
RENAME_ROWS = b"UPDATE %b SET subscription = %%s WHERE kind = 'projection' AND subscription = %%s"
RENAME_RECORDS = (
    RENAME_ROWS % b"backlot_checkpoints",
    RENAME_ROWS % b"backlot_dead_letters",
    b"UPDATE projections.ledger SET schema = %s WHERE schema = %s",
)
# The parts first: a process that builds one holds its row, and then takes that of the copy.
DROP_RECORDS = (
    b"DELETE FROM backlot_checkpoints WHERE kind = 'replay' AND subscription = %s",
    b"DELETE FROM backlot_checkpoints WHERE kind = 'projection' AND subscription = %s",
    b"DELETE FROM projections.ledger WHERE schema = %s",
    b"DELETE FROM backlot_dead_letters WHERE kind = 'projection' AND subscription = %s",
)
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
        return [file for file in _files(self.folder) if file.kind in (None, kind)]

    def statement(self, text: str) -> Composed:
        """Return a statement about the table of this set."""
        return SQL(text).format(table=Identifier(self.schema, self.table))


ENGINE = MigrationSet("engine", Path(__file__).with_name("sql"), "public", "backlot_migrations")


@cache
def _files(folder: Path) -> Sequence[Migration]:
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path.name} is no name for a migration.")
        found.append(Migration(int(match["version"]), path.name, _text(path), match["kind"]))
    return found


def _text(path: Path) -> bytes:
    """Return what a file says, with what it shares with others."""
    return SHARED.sub(
        lambda found: (path.parent / found[1].decode()).read_bytes(), path.read_bytes()
    )


def migrate(conn: Connection[Any], wanted: MigrationSet, kind: str | None = None) -> int:
    """Apply the files that the database lacks, each in a transaction; return the newest version.

    Where nothing is missing, nothing is written and no lock is taken. `conn` has to be in
    autocommit mode. Raise UnknownMigration where a newer or another release has applied files, and
    psycopg.Error; a file that fails leaves nothing behind.
    """
    if _missing(conn, wanted, kind):
        with migration_lock(conn):
            conn.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(wanted.schema)))
            conn.execute(wanted.statement(RECORDS))
            for migration in _missing(conn, wanted, kind):
                with conn.transaction():
                    conn.execute(migration.text)
                    values = (migration.version, migration.name, migration.digest)
                    conn.execute(wanted.statement(RECORD), values)
                log.info("schema_migrated", schema=wanted.name, migration=migration.name)
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


def _missing(conn: Connection[Any], wanted: MigrationSet, kind: str | None) -> list[Migration]:
    """Return the files that are not applied yet; raise UnknownMigration."""
    (begun,) = conn.execute(EXISTS, (f"{wanted.schema}.{wanted.table}",)).fetchone() or (False,)
    applied = conn.execute(wanted.statement(APPLIED)).fetchall() if begun else []
    known = {(file.version, file.name, file.digest) for file in _files(wanted.folder)}
    for version, name, digest in applied:
        if (version, name, digest) not in known:
            raise UnknownMigration(
                f"Version {version} of the schema `{wanted.name}` ({name}) is not this release's: "
                "start the release that made it, or restore a backup from before."
            )
    versions = {version for version, _, _ in applied}
    return [file for file in wanted.files(kind) if file.version not in versions]


def make_tables(conn: Connection[Any], *others: MigrationSet) -> None:
    """Make the tables of the event log and of the engine, then those of the other sets.

    The tables of copies are made by `install`. `conn` has to be in autocommit mode. Raise
    UnknownMigration, and psycopg.Error.
    """
    for each in (ENGINE, *others):
        migrate(conn, each, LOG)


def install(conn: Connection[Any], projections: Iterable[Projection]) -> None:
    """Make the copies that are missing; add to those of an older version what theirs lack.

    A copy of an older version is replaced only while it is empty. What a newer version made stays,
    empty or not. Runs in one transaction of its own, or within the
    caller's; the tables of the engine have to be there.
    """
    with conn.transaction():
        lock_in_transaction(conn, Lock.PROJECTION_TABLES)
        for projection in projections:
            name, wanted = projection.name, projection.version
            version, position = checkpoints.lock(conn, projection.schema) or (None, 0)
            if version is None:
                create(conn, projection)
            elif version < wanted and position == 0:
                log.info("projection_recreated", projection=name, version=wanted)
                drop(conn, projection.schema)
                create(conn, projection)
            elif version < wanted and projection.grows_from(version):
                for step in range(version + 1, wanted + 1):
                    conn.execute(projection.sql(projection.additions[step]))
                checkpoints.set_version(conn, projection.schema, wanted)
                log.info("projection_grown", projection=name, version=wanted, before=version)


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
    for statement in RENAME_RECORDS:
        conn.execute(statement, (name, schema))


def drop(conn: Connection[Any], schema: str) -> None:
    """Remove one copy with everything that it holds, its parked events included."""
    conn.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(schema)))
    for statement in DROP_RECORDS:
        conn.execute(statement, (schema,))
