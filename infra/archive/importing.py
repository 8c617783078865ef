"""Imports an export into an empty store: the same positions, versions, bytes and seals."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from itertools import islice
from pathlib import Path

from psycopg import Connection
from psycopg.rows import TupleRow

from infra.advisory_locks import LockClass
from infra.archive.verify import ExportCheck
from infra.errors import OperatorError
from infra.event_store import EVENTS, EVENTS_CHANNEL
from infra.seals.anchors import Anchor
from infra.seals.chain import Seal, StoredRow
from infra.seals.report import Report
from infra.seals.signing import PublicKeys
from infra.seals.tables import insert_seal

ITEMS_AT_ONCE = 2_000

LOCK = f"SELECT pg_advisory_xact_lock(%s, '{EVENTS}'::regclass::oid::int)".encode()
IS_EMPTY = f"""
SELECT NOT EXISTS (SELECT FROM {EVENTS})
   AND NOT EXISTS (SELECT FROM public.backlot_seals)
""".encode()
COPY = f"""
COPY {EVENTS}
    (notification_id, originator_id, originator_version, topic, state)
FROM STDIN (FORMAT binary)
""".encode()
COLUMN_TYPES = ("int8", "uuid", "int8", "text", "bytea")
NOTIFY = f"SELECT pg_notify('{EVENTS_CHANNEL}', '')".encode()


class ImportRefused(OperatorError):
    """Nothing was imported: the store is not empty, or the file is not what was sealed."""


def import_log(
    conn: Connection[TupleRow],
    path: Path,
    *,
    public_keys: PublicKeys | None = None,
    anchors: Iterator[Anchor] | None = None,
    known_topics: Container[str] | None = None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> Report:
    """Fill an empty store with an export, and say what it holds now.

    All or nothing, in one transaction under the store's append lock: a log that is half there
    must never be read or appended to, and what is checked is what is written. The connection
    is in autocommit mode, and the tables are there. Raises ImportRefused and ExportUnusable.
    """
    check = ExportCheck(path, public_keys=public_keys, anchors=anchors, known_topics=known_topics)
    if check.header.first != 1:
        raise ImportRefused(
            f"{path} begins at position {check.header.first}: only a whole log can be imported"
        )
    with conn.transaction():
        conn.execute(LOCK, (int(LockClass.LOG),))
        row = conn.execute(IS_EMPTY).fetchone()
        if row is None or not row[0]:
            raise ImportRefused("the store is not empty: import into a new database")
        _write(conn, check.items(), on_progress)
        report = check.finish()
        if report.fault is not None:
            raise ImportRefused(f"{path}: {report.fault.detail} ({report.fault.kind})")
        conn.execute(f"ANALYZE {EVENTS}")
        conn.execute(NOTIFY)
    return report


def _write(
    conn: Connection[TupleRow],
    items: Iterator[Seal | StoredRow],
    on_progress: Callable[[int], None],
) -> None:
    while batch := list(islice(items, ITEMS_AT_ONCE)):
        rows = [item for item in batch if isinstance(item, StoredRow)]
        with conn.cursor() as cursor, cursor.copy(COPY) as copy:
            copy.set_types(COLUMN_TYPES)
            for row in rows:
                copy.write_row(row)
        for item in batch:
            if isinstance(item, Seal):
                insert_seal(conn, item)
        on_progress(len(rows))
