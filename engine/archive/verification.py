"""Verifies an export against the seals in it, without a database, in memory that stays small."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from engine.archive import lines
from engine.archive.lines import FORMAT, ExportFormat, Item, Plan
from engine.payload_mode import PayloadMode
from engine.seals.chain import Seal, StoredRow
from engine.seals.check import Check, orphan_fault
from engine.seals.proofs import NO_PROOFS, Proofs
from engine.seals.report import Fault, Report
from infra.errors import OperatorError

DAMAGED = (ValueError, KeyError, TypeError)


class ExportUnusable(OperatorError):
    """A file that is no export, or none that can be verified and imported."""


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """A line that was changed: it can't be read, or its fields contradict its exact bytes."""

    number: int
    line: bytes
    row: StoredRow | None = None


def read_header(path: Path) -> Plan:
    """Return what a lossless export contains. Raise ExportUnusable."""
    try:
        with path.open("rb") as file:
            record = orjson.loads(file.readline())
        written, provable = record["backlotExport"], record["provable"]
    except OSError as error:
        raise ExportUnusable(f"{path} can't be read: {error.strerror}") from error
    except DAMAGED as error:
        raise ExportUnusable(f"{path} is no export that `events export` wrote as jsonl") from error
    if written != FORMAT:
        raise ExportUnusable(f"{path} has format {written}, this Backlot reads {FORMAT}")
    if not provable:
        raise ExportUnusable(
            f"{path} was written without the events' exact bytes "
            f"(--payload {record.get('payload')}): it can't be verified or imported"
        )
    try:
        numbers = [record[name] for name in ("from", "to", "firstSeal", "lastSeal")]
        return Plan(ExportFormat.JSONL, PayloadMode.FULL, *numbers)
    except DAMAGED as error:
        raise ExportUnusable(f"{path}: its first line is damaged: {error!r}") from error


def read_items(path: Path) -> Iterator[Item | DamagedLine]:
    """Yield what follows the header, in its order."""
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            yield _read(number, line)


def read_rows(path: Path) -> Iterator[StoredRow]:
    """Return the events, without those in damaged lines."""
    return (item for item in read_items(path) if isinstance(item, StoredRow))


def _read(number: int, line: bytes) -> Item | DamagedLine:
    try:
        record: dict[str, Any] = orjson.loads(line)
        if "seal" in record:
            seal = lines.seal_of(record["seal"])
            return seal if lines.seal_line(seal) == line else DamagedLine(number, line)
        row = lines.row_of(record)
        # Written again it has to be the same: the decoded fields prove as much as the bytes do.
        if lines.event_line(row, PayloadMode.FULL) == line:
            return row
    except DAMAGED:
        return DamagedLine(number, line)
    return DamagedLine(number, line, row)


class TailStreams:
    """Remembers the streams of the unsealed events; as many as there are, and no more."""

    def __init__(self) -> None:
        self._first: dict[UUID, StoredRow] = {}
        self._latest: dict[UUID, int] = {}
        self._broken: StoredRow | None = None

    def take(self, row: StoredRow) -> None:
        """Take in the next unsealed event."""
        before = self._latest.get(row.stream_id)
        if before is None:
            self._first[row.stream_id] = row
        elif row.version != before + 1:
            self._broken = self._broken or row
        self._latest[row.stream_id] = row.version

    def orphan(self, log: Iterable[StoredRow], *, partial: bool) -> Fault | None:
        """Return the first unsealed event without the version before it, where `log` is all of it.

        In a `partial` log a stream may have begun before.
        """
        if not self._first:
            return None
        before: dict[UUID, int] = {}
        for row in log:
            first = self._first.get(row.stream_id)
            if first is not None and row.position < first.position:
                before[row.stream_id] = row.version
        broken = [
            row
            for stream, row in self._first.items()
            if (stream in before or not partial) and row.version != before.get(stream, 0) + 1
        ]
        if self._broken is not None:
            broken.append(self._broken)
        first = min(broken, key=lambda row: row.position, default=None)
        return None if first is None else orphan_fault(first)


class ExportCheck:
    """Checks an export while its caller reads it."""

    def __init__(self, path: Path, proofs: Proofs, known_topics: Container[str] | None) -> None:
        """Raise ExportUnusable for what is no lossless export, and AnchorsUnusable."""
        self._path, self.plan = path, read_header(path)
        self._check = Check(
            first=self.plan.first,
            until=self.plan.last,
            proofs=proofs,
            known_topics=known_topics,
            seal_numbers=(self.plan.first_seal, self.plan.last_seal),
        )
        self._streams = TailStreams()

    def items(self) -> Iterator[Item]:
        """Yield the file's seals and events, each checked, without those in damaged lines."""
        sealed_to = 0
        for item in read_items(self._path):
            if isinstance(item, DamagedLine):
                self._note(item)
                continue
            self._check.take(item)
            if isinstance(item, Seal):
                sealed_to = item.last
            elif item.position > sealed_to:
                self._streams.take(item)
            yield item

    def finish(self) -> Report:
        """Return the result, once all items were taken."""
        partial = self.plan.first > 1
        return self._check.finish(self._streams.orphan(read_rows(self._path), partial=partial))

    def _note(self, damaged: DamagedLine) -> None:
        check, where = self._check, f"line {damaged.number} of the file"
        if damaged.row is not None:
            check.take(damaged.row)
            check.note_contradiction(damaged.row, f"{where} contradicts the event's exact bytes")
        elif damaged.line.startswith(b'{"seal"'):
            check.note_damaged_seal(f"{where} is not the seal that was written there")
        else:
            check.note_damaged_row(f"{where} is not the event that was written there")


def verify_export(
    path: Path,
    proofs: Proofs = NO_PROOFS,
    *,
    known_topics: Container[str] | None = None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> Report:
    """Recompute the chain over an export, and name the first fault; see `verify_database`.

    Anchors of later seals are no fault: an export is as old as it is. So a file that was cut off,
    with its first line made to fit, passes. Raise ExportUnusable for what is no lossless export.
    """
    check = ExportCheck(path, proofs, known_topics)
    for batch in lines.batches(check.items()):
        on_progress(sum(isinstance(item, StoredRow) for item in batch))
    return check.finish()
