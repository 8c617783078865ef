"""Verifies an export against the seals in it, without a database, in memory that stays small."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from engine.archive.lines import FORMAT, event_line, row_of, seal_line, seal_of
from engine.privacy import PayloadMode
from engine.seals.anchors import Anchor
from engine.seals.chain import Fault, Report, Seal, StoredRow, orphaned
from engine.seals.check import Check, SealCheck
from engine.seals.signature import PublicKeys
from infra.errors import OperatorError

DAMAGED = (ValueError, KeyError, TypeError)
ROWS_AT_ONCE = 2_000


class ExportUnusable(OperatorError):
    """A file that is no export, or none that can be verified and imported."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a lossless export says of itself: its positions, and the seals over them."""

    first: int
    last: int
    first_seal: int
    last_seal: int


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that was changed: it can't be read, or its fields contradict its exact bytes."""

    number: int
    line: bytes
    row: StoredRow | None = None

    @property
    def is_seal(self) -> bool:
        return self.line.startswith(b'{"seal"')


def read_header(path: Path) -> Header:
    """Raise ExportUnusable."""
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
        return Header(record["from"], record["to"], record["firstSeal"], record["lastSeal"])
    except DAMAGED as error:
        raise ExportUnusable(f"{path}: its first line is damaged: {error!r}") from error


def read_items(path: Path) -> Iterator[Seal | StoredRow | Damaged]:
    """Yield what follows the header, in its order."""
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            yield _read(number, line)


def read_rows(path: Path) -> Iterator[StoredRow]:
    """Only the events, those in damaged lines left out."""
    return (item for item in read_items(path) if isinstance(item, StoredRow))


def _read(number: int, line: bytes) -> Seal | StoredRow | Damaged:
    try:
        record: dict[str, Any] = orjson.loads(line)
        if "seal" in record:
            seal = seal_of(record["seal"])
            return seal if seal_line(seal) == line else Damaged(number, line)
        row = row_of(record)
        # Written again it has to be the same: the decoded fields prove as much as the bytes do.
        if event_line(row, PayloadMode.FULL) == line:
            return row
    except DAMAGED:
        return Damaged(number, line)
    return Damaged(number, line, row)


class TailStreams:
    """Remembers the streams of the unsealed events; as many as there are, and no more."""

    def __init__(self) -> None:
        self._first: dict[UUID, StoredRow] = {}
        self._latest: dict[UUID, int] = {}
        self._orphan: StoredRow | None = None

    def __bool__(self) -> bool:
        return bool(self._first)

    def take(self, row: StoredRow) -> None:
        """The next unsealed event."""
        before = self._latest.get(row.stream_id)
        if before is None:
            self._first[row.stream_id] = row
        elif row.version != before + 1 and self._orphan is None:
            self._orphan = row
        self._latest[row.stream_id] = row.version

    def orphan(self, log: Iterable[StoredRow], *, partial: bool) -> Fault | None:
        """Return the first unsealed event without the version before it, where `log` is all of it.

        In a `partial` log a stream may have begun before.
        """
        before = self._before(log)
        broken = [row for row in self._first.values() if not _follows(row, before, partial)]
        if self._orphan is not None:
            broken.append(self._orphan)
        first = min(broken, key=lambda row: row.position, default=None)
        return None if first is None else orphaned(first)

    def _before(self, log: Iterable[StoredRow]) -> dict[UUID, int]:
        """Return the version that each of the streams had before its first unsealed event."""
        found: dict[UUID, int] = {}
        for row in log:
            first = self._first.get(row.stream_id)
            if first is not None and row.position < first.position:
                found[row.stream_id] = row.version
        return found


def _follows(row: StoredRow, before: dict[UUID, int], partial: bool) -> bool:
    if partial and row.stream_id not in before:
        return True
    return row.version == before.get(row.stream_id, 0) + 1


class ExportCheck:
    """Checks an export while its caller reads it."""

    def __init__(
        self,
        path: Path,
        *,
        public_keys: PublicKeys | None = None,
        anchors: Iterator[Anchor] | None = None,
        known_topics: Container[str] | None = None,
    ) -> None:
        """Raise ExportUnusable for what is no lossless export."""
        self._path = path
        self.header: Header = read_header(path)
        self._check = Check(
            first=self.header.first,
            until=self.header.last,
            seals=SealCheck(public_keys, anchors, ends_early=True),
            known_topics=known_topics,
            seal_numbers=(self.header.first_seal, self.header.last_seal),
        )
        self._streams = TailStreams()

    def items(self) -> Iterator[Seal | StoredRow]:
        """Yield the file's seals and events, each checked.

        What is damaged is noted and left out.
        """
        sealed_to = 0
        for item in read_items(self._path):
            if isinstance(item, Damaged):
                self._note(item)
                continue
            if isinstance(item, Seal):
                sealed_to = item.last
                self._check.seal(item)
            else:
                self._check.row(item)
                if item.position > sealed_to:
                    self._streams.take(item)
            yield item

    def finish(self) -> Report:
        """Return the result, once all items were taken."""
        return self._check.finish(self._orphan())

    def _note(self, damaged: Damaged) -> None:
        where = f"line {damaged.number} of the file"
        if damaged.is_seal:
            self._check.damaged_seal(f"{where} is not the seal that was written there")
        elif damaged.row is None:
            self._check.damaged_row(f"{where} is not the event that was written there")
        else:
            self._check.row(damaged.row)
            self._check.contradicted(damaged.row, f"{where} contradicts the event's exact bytes")

    def _orphan(self) -> Fault | None:
        if not self._streams:
            return None
        return self._streams.orphan(read_rows(self._path), partial=self.header.first > 1)


def verify_export(
    path: Path,
    *,
    public_keys: PublicKeys | None = None,
    anchors: Iterator[Anchor] | None = None,
    known_topics: Container[str] | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Report:
    """Recompute the chain over an export, and name the first fault; see `verify_database`.

    Anchors of later seals are no fault: an export is as old as it is. So a file that was cut off,
    with its first line made to fit, passes. Raise ExportUnusable for what is no lossless export.
    """
    check = ExportCheck(path, public_keys=public_keys, anchors=anchors, known_topics=known_topics)
    rows = 0
    for item in check.items():
        if isinstance(item, StoredRow):
            rows += 1
            if rows == ROWS_AT_ONCE:
                on_progress(rows)
                rows = 0
    on_progress(rows)
    return check.finish()
