"""The keys that go with an export, in a file beside it: who is who, and what reads their texts.

They are as the database has them, wrapped by a key-encryption key that lies in neither file. Lines
of JSON: `{"backlotKeys": 1}`, then the rows of some tables, then their number, so that a file that
was cut off shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier
from psycopg.types.json import Jsonb

from engine.wrapping_keys import WrappingKeys, load_wrapping_keys
from infra.errors import OperatorError
from infra.key_encryption import KeyEncryption
from infra.objects.disk import sync_folder

FORMAT = 1
TABLES = (
    "backlot_wrapping_keys",
    "backlot_former_names",
    "backlot_persons",
    "backlot_erasures",
)
"""What is carried, in an order in which rows can be stored."""
ROWS_AT_ONCE = 2_000

Row = dict[str, Any]
"""A row of a table as `to_jsonb` shows it: bytes as `\\x` and hexadecimal digits."""

READ = "SELECT to_jsonb(t) FROM {table} AS t ORDER BY 1"
STORE = """
INSERT INTO {table} OVERRIDING SYSTEM VALUE
SELECT * FROM jsonb_populate_recordset(NULL::{table}, %s)
"""
HAS_PERSONS = b"SELECT EXISTS (SELECT FROM public.backlot_persons)"
CLEAR = b"DELETE FROM public.backlot_wrapping_keys"
# The running user may not set what numbers the next one.
COUNT_ON = b"""
INSERT INTO public.backlot_wrapping_keys (purpose, kek, wrapped) VALUES ('persons', '', '')
RETURNING number
"""


class KeysUnusable(OperatorError):
    """A file of keys that can't be written or read, or is not whole."""


def keys_path(export: Path) -> Path:
    """Return where the keys of an export lie."""
    return export.with_name(f"{export.name}.keys")


def export_keys(conn: Connection[TupleRow], path: Path) -> None:
    """Write the keys and persons of a database to a file that its owner alone can read.

    It appears when it is whole. Raise KeysUnusable and psycopg.Error.
    """
    draft = path.with_name(f"{path.name}.draft")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            count = 0
            file.write(_line({"backlotKeys": FORMAT}))
            for table, row in _rows(conn):
                file.write(_line({"table": table, "row": row}))
                count += 1
            file.write(_line({"rows": count}))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise KeysUnusable(f"{path} can't be written: {error.strerror}") from error


def _rows(conn: Connection[TupleRow]) -> Iterator[tuple[str, Row]]:
    # As they were at one moment: a person's key names a wrapping key.
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for table in TABLES:
            with conn.cursor(f"keys_{table}") as cursor:
                cursor.itersize = ROWS_AT_ONCE
                cursor.execute(SQL(READ).format(table=Identifier("public", table)))
                yield from ((table, row) for (row,) in cursor)


def read_keys(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a file, each with its table. Raise KeysUnusable, also at the end."""
    count, whole = 0, False
    try:
        with path.open("rb") as file:
            if orjson.loads(file.readline())["backlotKeys"] != FORMAT:
                raise KeysUnusable(f"{path} has another format than this Backlot reads")
            for line in file:
                record = orjson.loads(line)
                if "rows" in record:
                    whole = record["rows"] == count
                    break
                yield record["table"], record["row"]
                count += 1
    except OSError as error:
        raise KeysUnusable(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise KeysUnusable(f"{path} is no file of keys: {error!r}") from error
    if not whole:
        raise KeysUnusable(f"{path} is not whole: it was cut off")


def store_keys(
    conn: Connection[TupleRow], rows: Iterable[tuple[str, Row]], kek: KeyEncryption
) -> None:
    """Store the rows of an export's keys, within the caller's transaction.

    Raise KeysUnusable where the database has persons of its own, or the rows are none of these
    tables, KeyEncryptionFailed where the key-encryption key is not theirs, and psycopg.Error.
    """
    for table, of_table in groupby(rows, key=itemgetter(0)):
        its_rows = (row for _, row in of_table)
        if table == "backlot_wrapping_keys":
            store_wrapping_keys(conn, its_rows, kek)
        elif table in TABLES:
            store_rows(conn, table, its_rows)
        else:
            raise KeysUnusable(f"{table!r} is no table of keys")


def store_wrapping_keys(
    conn: Connection[TupleRow], rows: Iterable[Row], kek: KeyEncryption
) -> WrappingKeys:
    """Store wrapping keys in place of those that a new database has made; see `store_keys`."""
    require_no_persons(conn)
    keys = list(rows)
    newest = max((row["number"] for row in keys), default=0)
    # The next key that is made must have another number than these.
    number = 0
    while number < newest:
        (number,) = conn.execute(COUNT_ON).fetchone() or (newest,)
    conn.execute(CLEAR)
    store_rows(conn, "backlot_wrapping_keys", keys)
    return load_wrapping_keys(conn, kek)


def require_no_persons(conn: Connection[TupleRow]) -> None:
    """Raise KeysUnusable where the database has persons of its own."""
    (taken,) = conn.execute(HAS_PERSONS).fetchone() or (True,)
    if taken:
        raise KeysUnusable("the store has persons of its own: import into a new database")


def store_rows(conn: Connection[TupleRow], table: str, rows: Iterable[Row]) -> None:
    """Store rows of one table; raise psycopg.Error."""
    statement = SQL(STORE).format(table=Identifier("public", table))
    waiting = iter(rows)
    while batch := list(islice(waiting, ROWS_AT_ONCE)):
        conn.execute(statement, (Jsonb(batch),))


def _line(record: Row) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
