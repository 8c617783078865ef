"""Export of the log to a file or a folder of Parquet, and import into an empty store.

An export appears when it is whole; one that was cut off is continued.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from heapq import merge
from importlib import import_module
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.archive import lines
from engine.archive.keys import keys_path, read_keys, store_keys
from engine.archive.lines import ExportFormat, ExportRequest, Item, Plan
from engine.archive.persons import NamedPersons
from engine.archive.verification import ExportCheck
from engine.event_store import EVENTS, EVENTS_CHANNEL
from engine.payload_mode import PayloadMode
from engine.seals.chain import Seal, StoredRow, head, insert_seal, seals
from engine.seals.places import cut_torn_line
from engine.seals.proofs import NO_PROOFS, Proofs
from engine.seals.report import Report
from engine.seals.verification import rows_between
from engine.wrapping_keys import load_wrapping_keys
from infra.advisory_locks import LockClass
from infra.errors import OperatorError
from infra.key_encryption import KeyEncryption
from infra.objects.disk import sync_folder

PART_EVENTS = 100_000
PARQUET_COLUMNS = (
    "position", "stream_id", "version", "topic", "recorded_at", "actor", "correlation_id",
    "causation_id", "payload", "state",
)  # fmt: skip
SEALS_OVER = b"""
SELECT coalesce(min(number), 0), coalesce(max(number), 0) FROM public.backlot_seals
WHERE last >= %s AND first <= %s
"""
LOCK = f"SELECT pg_advisory_xact_lock(%s, '{EVENTS}'::regclass::oid::int)".encode()
IS_EMPTY = f"""
SELECT NOT EXISTS (SELECT FROM {EVENTS}) AND NOT EXISTS (SELECT FROM public.backlot_seals)
""".encode()
COPY = f"""
COPY {EVENTS} (notification_id, originator_id, originator_version, topic, state)
FROM STDIN (FORMAT binary)
""".encode()
COLUMN_TYPES = ("int8", "uuid", "int8", "text", "bytea")
NOTIFY = f"SELECT pg_notify('{EVENTS_CHANNEL}', '')".encode()


class ExportRefused(OperatorError):
    """An export that can't be made as it was asked for."""


class ParquetMissing(OperatorError):
    """The optional library that writes Parquet is not installed."""


class ImportRefused(OperatorError):
    """Nothing was imported: the store is not empty, or the file is not what was sealed."""


def export_log(
    conn: Connection[TupleRow],
    path: Path,
    wish: ExportRequest,
    *,
    on_begun: Callable[[Plan, int], None] = lambda plan, done: None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> Plan:
    """Write what is wanted of the log to `path`, which Parquet makes a folder.

    Until it is whole it is called `….partial`, and `….partial.json` holds what it will contain:
    the log as it was when the export began, however long it takes. `on_begun` gets the plan and
    how many of its events an earlier run has written. Raise ExportRefused, OSError, psycopg.Error.
    """
    partial = path.with_name(f"{path.name}.partial")
    with _open_plan(conn, path, wish) as plan:
        make_writer = ParquetWriter if plan.format is ExportFormat.PARQUET else LineWriter
        with closing(make_writer(partial, plan)) as writer:
            start = writer.resume()
            on_begun(plan, start - plan.first)
            for items in lines.batches(_items(conn, plan, start)):
                writer.write(items)
                on_progress(sum(isinstance(item, StoredRow) for item in items))
            writer.finish()
        partial.rename(path)
        sync_folder(path.parent)
    return plan


@contextmanager
def _open_plan(conn: Connection[TupleRow], path: Path, wish: ExportRequest) -> Iterator[Plan]:
    """Give the plan that was begun, or a new one, to this process alone; remove it at the end."""
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
        plan = lines.plan_from_json(file.read())
        if plan is None:
            plan = _make_plan(conn, wish)
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


def _make_plan(conn: Connection[TupleRow], wish: ExportRequest) -> Plan:
    end = head(conn)
    if wish.last is not None and wish.last > end:
        raise ExportRefused(f"--to: the log ends at position {end}")
    first, last = wish.first or 1, end if wish.last is None else wish.last
    if first > last and end > 0:
        raise ExportRefused(f"--from: {first} is behind the last position, {last}")
    numbers = conn.execute(SEALS_OVER, (first, last)).fetchone() or (0, 0)
    return Plan(wish.format, wish.payload, first, last, *numbers)


def _items(conn: Connection[TupleRow], plan: Plan, start: int) -> Iterator[Item]:
    """Yield the events from `start` on, each seal before the first of its events here."""
    rows = rows_between(conn, start - 1, plan.last)
    if not (plan.provable and plan.last_seal):
        return rows
    chain = seals(conn, plan.first_seal - 1, plan.last_seal)
    unwritten = dropwhile(lambda seal: start > max(seal.first, plan.first), chain)
    # Of a seal and a row at one position, the seal comes first, as the first of the arguments.
    return merge(unwritten, rows, key=_position)


def _position(item: Item) -> int:
    return item.position if isinstance(item, StoredRow) else item.first


class LineWriter:
    """A file of lines; what `write` took is safe from a crash when it returns."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self._plan = plan
        path.touch(0o600)
        self._file = path.open("r+b")

    def resume(self) -> int:
        """Return the position to go on with, after what a broken-off run has left whole."""
        # Also seals are written again with their first event: what they are belongs together.
        while (found := cut_torn_line(self._file)) is not None:
            start, line = found
            position = _position_in(line)
            if position is not None:
                self._file.seek(0, os.SEEK_END)
                return position + 1
            self._file.truncate(start)
        self._file.seek(0)
        if self._plan.format is ExportFormat.JSONL:
            self._file.write(lines.header_line(self._plan))
        return self._plan.first

    def write(self, items: Sequence[Item]) -> None:
        """Write the next events, each seal before the first that it covers."""
        self._file.writelines(lines.line_of(item, self._plan) for item in items)
        self.finish()

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _position_in(line: bytes) -> int | None:
    """Return the position of an event's line; None for another, and for one that is no JSON."""
    try:
        return int(orjson.loads(line)["position"])
    except (ValueError, KeyError, TypeError):
        return None


def import_parquet() -> tuple[Any, Any]:
    """Return pyarrow, and its part for Parquet; raise ParquetMissing."""
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ParquetMissing(
            "Parquet needs the optional library pyarrow: pip install 'backlot[parquet]'"
        ) from error


class ParquetWriter:
    """A folder of part files, each over 100,000 positions; only whole parts count as written.

    `payload` is a JSON text; `state` has the exact bytes where the payload is shown in full.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Raise ParquetMissing."""
        self._arrow, self._parquet = import_parquet()
        self._folder, self._plan = folder, plan
        kinds = {
            "position": self._arrow.int64(),
            "version": self._arrow.int64(),
            "recorded_at": self._arrow.timestamp("us", tz="UTC"),
            "state": self._arrow.binary(),
        }
        names = PARQUET_COLUMNS if plan.payload is PayloadMode.FULL else PARQUET_COLUMNS[:-1]
        self._schema = self._arrow.schema(
            [(name, kinds.get(name, self._arrow.string())) for name in names],
            metadata={"backlot.payload": plan.payload.value},
        )
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
                self.finish()
                self._part = part
            if self._file is None:
                self._file = self._parquet.ParquetWriter(self._draft, self._schema)
            records = [self._record(row) for row in its_rows]
            self._file.write_table(self._arrow.Table.from_pylist(records, schema=self._schema))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _part_of(self, row: StoredRow) -> int:
        # By position, so that what a part holds does not depend on where a run was cut off.
        return (row.position - self._plan.first) // PART_EVENTS

    def finish(self) -> None:
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

    def _record(self, row: StoredRow) -> dict[str, object]:
        event = lines.event_fields(row, self._plan.payload)
        payload = event["payload"]
        return {
            "position": row.position,
            "stream_id": str(row.stream_id),
            "version": row.version,
            "topic": row.topic,
            "recorded_at": _time(event["recordedAt"]),
            "actor": event["actor"],
            "correlation_id": _text(event["correlationId"]),
            "causation_id": _text(event["causationId"]),
            "payload": None if payload is None else orjson.dumps(payload).decode(),
            "state": row.state,
        }


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
    proofs: Proofs = NO_PROOFS,
    *,
    kek: KeyEncryption | None = None,
    without_keys: bool = False,
    known_topics: Container[str] | None = None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> Report:
    """Fill an empty store with an export and the keys beside it, and say what it holds now.

    All or nothing: see `filled`. Where texts are encrypted and there are no keys, that is refused
    unless it is wanted `without_keys`: then whose texts they are counts as forgotten. `kek` has
    wrapped the keys. Raise ImportRefused, ExportUnusable, KeysUnusable, KeyEncryptionFailed and
    AnchorsUnusable.
    """
    check, keys = whole_log(path, proofs, known_topics), keys_path(path)
    with filled(conn):
        named = NamedPersons()
        for batch in lines.batches(check.items()):
            for item in batch:
                if isinstance(item, StoredRow):
                    named.take(item)
            on_progress(write_items(conn, batch))
        report = finished(check, path)
        if kek is not None and not without_keys and keys.exists():
            store_keys(conn, read_keys(keys), kek)
        elif named.sealed and not without_keys:
            raise ImportRefused(
                f"texts in {path} are encrypted, and their keys are not in {keys.name}: export "
                "with --with-keys, or import --without-keys, and nobody reads them"
            )
        else:
            if kek is not None and named.sealed:
                # Persons without them count as a damaged database.
                load_wrapping_keys(conn, kek, make=True)
            named.store(conn)
        return report


def whole_log(path: Path, proofs: Proofs, known_topics: Container[str] | None) -> ExportCheck:
    """Return what checks an export while it is read. Raise ImportRefused for a part of a log."""
    check = ExportCheck(path, proofs, known_topics)
    if check.plan.first != 1:
        raise ImportRefused(
            f"{path} begins at position {check.plan.first}: only a whole log can be imported"
        )
    return check


@contextmanager
def filled(conn: Connection[TupleRow]) -> Iterator[None]:
    """Let the block fill an empty store, in one transaction under the store's append lock.

    A log that is half there must never be read or appended to, and what is checked is what is
    written. The connection is in autocommit mode, and the tables are there. Raise ImportRefused.
    """
    with conn.transaction():
        conn.execute(LOCK, (int(LockClass.LOG),))
        row = conn.execute(IS_EMPTY).fetchone()
        if row is None or not row[0]:
            raise ImportRefused("the store is not empty: import into a new database")
        yield
        conn.execute(f"ANALYZE {EVENTS}")
        conn.execute(NOTIFY)


def finished(check: ExportCheck, path: Path) -> Report:
    """Return what a check found, once all items were taken. Raise ImportRefused for a fault."""
    report = check.finish()
    if report.fault is not None:
        raise ImportRefused(f"{path}: {report.fault.detail} ({report.fault.kind})")
    return report


def write_items(conn: Connection[TupleRow], items: Sequence[Item]) -> int:
    """Store events and seals, and return how many events they were."""
    rows = [item for item in items if isinstance(item, StoredRow)]
    with conn.cursor() as cursor, cursor.copy(COPY) as copy:
        copy.set_types(COLUMN_TYPES)
        for row in rows:
            copy.write_row(row)
    for item in items:
        if isinstance(item, Seal):
            # One that does not follow is a fault, which the check has noted.
            insert_seal(conn, item)
    return len(rows)
