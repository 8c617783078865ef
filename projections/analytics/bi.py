"""What tools for reports may read of the analytics: views without anybody's name, as files or by a
role that can read nothing else.

The views are a contract (docs/bi.md): columns are added, and neither renamed nor removed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Composed, Identifier, Literal

from engine.archive.transfer import import_parquet
from infra.errors import OperatorError
from infra.http.shapes import rfc3339
from infra.objects.disk import sync_folder
from infra.spreadsheets import Sheet

SCHEMA = "backlot_bi"
VIEWS: Mapping[str, Mapping[str, type]] = {
    "videos": {
        "video_id": UUID, "category": str, "completed_at": datetime, "removed": bool,
        "public": bool, "duration_seconds": float,
    },
    "daily": {
        "video_id": UUID, "day": date, "views": int, "likes": int, "comments": int,
        "shares": int, "watch_seconds": float,
    },
    "hourly": {
        "video_id": UUID, "hour": datetime, "views": int, "likes": int, "comments": int,
        "shares": int, "watch_seconds": float,
    },
    "viewers_daily": {"video_id": UUID, "day": date, "viewers": int},
    "retention": {
        "video_id": UUID, "day": date, "second": int, "end_second": int, "watch_seconds": float,
    },
    "views": {"video_id": UUID, "at": datetime, "counts": bool},
    "watch_time": {"video_id": UUID, "at": datetime, "seconds": float},
    "shares": {"video_id": UUID, "at": datetime, "channel": str},
    "likes": {"video_id": UUID, "at": datetime, "delta": int},
    "comments": {"video_id": UUID, "at": datetime, "delta": int},
}  # fmt: skip
"""The views, each with its columns."""
WHEN = ("day", "hour", "at")
"""Columns that say when something happened."""
MANIFEST = "export.json"
ROWS_AT_ONCE = 20_000
SNAPSHOT = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

Rows = Sequence[Sequence[Any]]


class TableFormat(StrEnum):
    """What files of an export are."""

    CSV = "csv"
    PARQUET = "parquet"


class ExportUnfit(OperatorError):
    """The folder can't be written as it was asked for; nothing was written."""


class ReaderUnfit(OperatorError):
    """A role can't be made one that only reads the views, or may do more than that."""


def export_views(
    conn: Connection[TupleRow],
    folder: Path,
    table_format: TableFormat,
    views: Collection[str] = tuple(VIEWS),
    *,
    first: date | None = None,
    last: date | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Mapping[str, int]:
    """Write each view to a file in a new folder, and return how many rows each has.

    All files are of one moment. The folder appears once it is whole: whatever breaks it off leaves
    none. Of what happens at a time, only the days (UTC) from the first to the last are written.
    Raise ExportUnfit, ParquetMissing, OSError and psycopg.Error.
    """
    open_file = _parquet_files() if table_format is TableFormat.PARQUET else _csv_file
    rows: dict[str, int] = {}
    with _new_folder(folder) as draft, conn.transaction():
        conn.execute(SNAPSHOT)
        ((at,),) = conn.execute(b"SELECT transaction_timestamp()").fetchall()
        for name in views:
            with open_file(draft / f"{name}.{table_format}", VIEWS[name]) as write:
                rows[name] = 0
                for batch in _batches(conn, name, first, last):
                    write(batch)
                    rows[name] += len(batch)
                    on_rows(len(batch))
        days = {"from": first and first.isoformat(), "to": last and last.isoformat()}
        told = {"at": rfc3339(at), "format": str(table_format), **days, "rows": rows}
        (draft / MANIFEST).write_text(json.dumps(told, indent=2) + "\n")
    return rows


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside that one, which becomes it at the end."""
    if folder.exists():
        raise ExportUnfit(f"{folder} is there already: give another name or remove it")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise ExportUnfit(f"{parent} is no folder")
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    try:
        yield draft
        for file in draft.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        sync_folder(draft)
        draft.rename(folder)
        sync_folder(parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _batches(
    conn: Connection[TupleRow], name: str, first: date | None, last: date | None
) -> Iterator[Rows]:
    columns = VIEWS[name]
    query = SQL("SELECT {columns} FROM {view}").format(
        columns=SQL(", ").join(map(Identifier, columns)), view=Identifier(SCHEMA, name)
    )
    bounds = [
        (SQL("{when} >= {day}"), first),
        (SQL("{when} < {day}"), last and last + timedelta(days=1)),
    ]
    conditions = [
        condition.format(
            when=Identifier(when), day=Literal(day if columns[when] is date else _midnight(day))
        )
        for when in WHEN
        if when in columns
        for condition, day in bounds
        if day is not None
    ]
    if conditions:
        query += SQL(" WHERE ") + SQL(" AND ").join(conditions)
    with conn.cursor(name="export", binary=True) as cursor:
        cursor.execute(query)
        while batch := cursor.fetchmany(ROWS_AT_ONCE):
            yield batch


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


Write = Callable[[Rows], None]


@contextmanager
def _csv_file(path: Path, columns: Mapping[str, type]) -> Iterator[Write]:
    file: TextIO
    with path.open("w", encoding="utf-8", newline="") as file:
        sheet = Sheet(file, columns)
        yield lambda rows: sheet.write([_cell(value) for value in row] for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value)
    return str(value).lower() if isinstance(value, bool) else value


def _parquet_files() -> Callable[..., Any]:
    """Return what opens a file of Parquet; raise ParquetMissing."""
    arrow, parquet = import_parquet()
    kinds = {
        UUID: arrow.string(),
        str: arrow.string(),
        int: arrow.int64(),
        float: arrow.float64(),
        bool: arrow.bool_(),
        date: arrow.date32(),
        datetime: arrow.timestamp("us", tz="UTC"),
    }

    @contextmanager
    def opened(path: Path, columns: Mapping[str, type]) -> Iterator[Write]:
        schema = arrow.schema([(name, kinds[kind]) for name, kind in columns.items()])

        def write(rows: Rows) -> None:
            values = [
                list(map(str, column)) if kind is UUID else list(column)
                for kind, column in zip(columns.values(), zip(*rows, strict=True), strict=True)
            ]
            arrays = [
                arrow.array(column, field.type)
                for column, field in zip(values, schema, strict=True)
            ]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))

        with parquet.ParquetWriter(path, schema) as writer:
            yield write

    return opened


MAY_MAKE = b"SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
# Whether it could do more than read: by what it is, whose it is, or what it owns.
KNOWN = b"""
SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
       OR oid = (SELECT datdba FROM pg_database WHERE datname = current_database())
       OR EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid)
       OR EXISTS (SELECT FROM pg_class WHERE relowner = r.oid)
FROM pg_roles AS r WHERE rolname = %s
"""
# Rights that everybody has are its own, too.
OTHER_RIGHTS = b"""
SELECT format('%%I.%%I', nspname, relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND nspname <> %(schema)s
      AND nspname !~ '^(pg_|_?timescaledb|toolkit_)' AND nspname <> 'information_schema'
      AND has_schema_privilege(%(user)s, n.oid, 'USAGE')
      AND (has_table_privilege(%(user)s, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
           OR has_any_column_privilege(%(user)s, c.oid, 'SELECT, INSERT, UPDATE'))
ORDER BY 1 LIMIT 5
"""
# Whoever reads for long keeps old versions of all rows (docs/operations.md).
BOUNDS = {
    "default_transaction_read_only": "on",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "60s",
}


def make_reader(
    admin: Connection[TupleRow], owner: Connection[TupleRow], user: str, password: str
) -> None:
    """Have a role with this password read the views, and nothing else; again changes the password.

    `admin` may make roles, `owner` owns the views; both are in autocommit mode. Raise ReaderUnfit
    and psycopg.Error.
    """
    found = admin.execute(KNOWN, (user,)).fetchone()
    if found is not None and found[0]:
        raise ReaderUnfit(f"{user} may do more than read: name a role that does not exist yet")
    if not (admin.execute(MAY_MAKE).fetchone() or [False])[0]:
        raise ReaderUnfit(
            "this user may not make roles: set DATABASE_OWNER_URL to one who may, or see docs/bi.md"
        )
    name = Identifier(user)
    # Its hash, so that no log of statements has the password.
    hashed = admin.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256")
    with admin.transaction():
        if found is None:
            admin.execute(SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT 10").format(name))
        admin.execute(SQL("ALTER ROLE {} PASSWORD {}").format(name, Literal(hashed.decode())))
        for setting, value in BOUNDS.items():
            admin.execute(
                SQL("ALTER ROLE {} SET {} = {}").format(name, Identifier(setting), Literal(value))
            )
    with owner.transaction():
        for statement in _grants(name):
            owner.execute(statement)
    others = owner.execute(OTHER_RIGHTS, {"user": user, "schema": SCHEMA}).fetchall()
    if others:
        tables = ", ".join(table for (table,) in others)
        raise ReaderUnfit(f"{user} may use {tables}, too, by a right of everybody: take that right")


def _grants(user: Identifier) -> Iterator[Composed]:
    yield SQL("GRANT USAGE ON SCHEMA {} TO {}").format(Identifier(SCHEMA), user)
    for name in VIEWS:
        yield SQL("GRANT SELECT ON {} TO {}").format(Identifier(SCHEMA, name), user)
