"""Export of the log to a file or a folder of Parquet, and import into an empty store.

An export appears when it is whole; one that was cut off is continued.
"""

from __future__ import annotations

import fcntl
import importlib
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.archive.lines import Item, LineWriter, Writer, content_of
from engine.archive.plan import (
    ExportFormat,
    ExportRefused,
    ExportRequest,
    Plan,
    make_plan,
    plan_from_json,
)
from engine.archive.verification import ExportCheck
from engine.event_store import EVENTS, EVENTS_CHANNEL
from engine.privacy import PayloadMode
from engine.seals.anchors import Anchor
from engine.seals.chain import Report, Seal, StoredRow
from engine.seals.signature import PublicKeys
from engine.seals.tables import insert_seal, seals
from engine.seals.verification import rows_between
from infra.advisory_locks import LockClass
from infra.errors import OperatorError
from infra.objects.disk import sync_folder

ITEMS_AT_ONCE = 2_000

Begun = Callable[[Plan, int], None]
"""Gets the plan and how many of its events an earlier run has written."""
PART_EVENTS = 100_000
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


class ParquetMissing(OperatorError):
    """The optional library that writes Parquet is not installed."""


class ImportRefused(OperatorError):
    """Nothing was imported: the store is not empty, or the file is not what was sealed."""


def export_log(
    conn: Connection[TupleRow],
    path: Path,
    wish: ExportRequest,
    *,
    on_begun: Begun = lambda plan, done: None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> Plan:
    """Write what is wanted of the log to `path`, which Parquet makes a folder.

    Until it is whole it is called `….partial`, and `….partial.json` holds what it will contain:
    the log as it was when the export began, however long it takes. Raise ExportRefused, OSError
    and psycopg.Error.
    """
    partial = path.with_name(f"{path.name}.partial")
    with _planned(conn, path, wish) as plan:
        writer = _writer(partial, plan)
        try:
            start = writer.resume()
            on_begun(plan, start - plan.first)
            for items in _batches(_items(conn, plan, start)):
                writer.write(items)
                on_progress(sum(isinstance(item, StoredRow) for item in items))
            writer.finish()
        finally:
            writer.close()
        partial.rename(path)
        sync_folder(path.parent)
    return plan


def _writer(partial: Path, plan: Plan) -> Writer:
    if plan.format is ExportFormat.PARQUET:
        return ParquetWriter(partial, plan)
    return LineWriter(partial, plan)


@contextmanager
def _planned(conn: Connection[TupleRow], path: Path, wish: ExportRequest) -> Iterator[Plan]:
    """The plan that was begun, or a new one, for this process alone; removed once fulfilled."""
    plan_file = path.with_name(f"{path.name}.partial.json")
    if path.exists():
        # Else a run that was killed at the very end would leave its plan behind.
        plan_file.unlink(missing_ok=True)
        raise ExportRefused(f"{path} is there already: give another name or remove it")
    with plan_file.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportRefused(f"{path} is just being written by another process") from None
        file.seek(0)
        plan = _begun(file.read())
        if plan is None:
            plan = make_plan(conn, wish)
            file.truncate(0)
            file.write(plan.to_json())
            file.flush()
            os.fsync(file.fileno())
        elif not plan.fulfils(wish):
            raise ExportRefused(
                f"{path}.partial was begun as {plan.format} with payload {plan.payload}, "
                f"positions {plan.first} to {plan.last}: say the same, or remove it"
            )
        yield plan
        plan_file.unlink()


def _begun(text: bytes) -> Plan | None:
    try:
        return plan_from_json(text)
    except (ValueError, KeyError, TypeError):
        # Nothing yet, or torn by a crash: nothing was written by it either.
        return None


def _items(conn: Connection[TupleRow], plan: Plan, start: int) -> Iterator[Item]:
    """Yield the events from `start` on, each seal before the first of its events here."""
    wanted = plan.provable and plan.last_seal > 0
    chain = seals(conn, plan.first_seal - 1, plan.last_seal) if wanted else iter(())
    seal = next(chain, None)
    while seal is not None and start > max(seal.first, plan.first):
        seal = next(chain, None)
    for row in rows_between(conn, start - 1, plan.last):
        while seal is not None and row.position >= seal.first:
            yield seal
            seal = next(chain, None)
        yield row
    while seal is not None:
        yield seal
        seal = next(chain, None)


def _batches(items: Iterator[Item]) -> Iterator[Sequence[Item]]:
    while batch := list(islice(items, ITEMS_AT_ONCE)):
        yield batch


class ParquetWriter:
    """A folder of part files, each over 100,000 positions; only whole parts count as written.

    `payload` is a JSON text; `state` has the exact bytes where the payload is shown in full.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Raise ParquetMissing."""
        self._arrow, self._parquet = _library("pyarrow"), _library("pyarrow.parquet")
        self._folder, self._plan = folder, plan
        self._schema = self._make_schema()
        self._part = 0
        self._file: Any = None
        folder.mkdir(exist_ok=True)

    def resume(self) -> int:
        for draft in self._folder.glob("*.draft"):
            draft.unlink()
        while self._path(self._part).exists():
            self._part += 1
        return self._plan.first + self._part * PART_EVENTS

    def write(self, items: Sequence[Item]) -> None:
        rows = (item for item in items if isinstance(item, StoredRow))
        for part, its_rows in groupby(rows, self._part_of):
            if part != self._part:
                self._end_part()
                self._part = part
            self._add(list(its_rows))

    def finish(self) -> None:
        self._end_part()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _part_of(self, row: StoredRow) -> int:
        # By position, so that what a part holds does not depend on where a run was cut off.
        return (row.position - self._plan.first) // PART_EVENTS

    def _add(self, rows: Sequence[StoredRow]) -> None:
        if self._file is None:
            self._file = self._parquet.ParquetWriter(self._draft, self._schema)
        records = [self._record(row) for row in rows]
        self._file.write_table(self._arrow.Table.from_pylist(records, schema=self._schema))

    def _end_part(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        with self._draft.open("rb") as file:
            os.fsync(file.fileno())
        self._draft.rename(self._path(self._part))
        sync_folder(self._folder)

    @property
    def _draft(self) -> Path:
        return self._path(self._part).with_suffix(".draft")

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number + 1:06}.parquet"

    def _make_schema(self) -> Any:
        arrow = self._arrow
        fields = [
            ("position", arrow.int64()),
            ("stream_id", arrow.string()),
            ("version", arrow.int64()),
            ("topic", arrow.string()),
            ("recorded_at", arrow.timestamp("us", tz="UTC")),
            ("actor", arrow.string()),
            ("correlation_id", arrow.string()),
            ("causation_id", arrow.string()),
            ("payload", arrow.string()),
        ]
        if self._plan.payload is PayloadMode.FULL:
            fields.append(("state", arrow.binary()))
        return arrow.schema(fields, metadata={"backlot.payload": self._plan.payload.value})

    def _record(self, row: StoredRow) -> dict[str, object]:
        content = content_of(row.state, self._plan.payload)
        payload = None if content.payload is None else orjson.dumps(content.payload).decode()
        return {
            "position": row.position,
            "stream_id": str(row.stream_id),
            "version": row.version,
            "topic": row.topic,
            "recorded_at": _time(content.recorded_at),
            "actor": content.actor,
            "correlation_id": _text(content.correlation_id),
            "causation_id": _text(content.causation_id),
            "payload": payload,
            "state": row.state,
        }


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ParquetMissing(
            "Parquet needs the optional library pyarrow: pip install 'backlot[parquet]'"
        ) from error


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


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
    is in autocommit mode, and the tables are there. Raise ImportRefused and ExportUnusable.
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
