"""Verifies an export against the seals in it, without a database, in memory that stays small."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path

from infra.archive.reading import Damaged, Header, read_header, read_items, read_rows
from infra.archive.streams import TailStreams
from infra.seals.anchors import Anchor
from infra.seals.chain import Seal, StoredRow
from infra.seals.check import Check
from infra.seals.report import Fault, Report
from infra.seals.seal_check import SealCheck
from infra.seals.signing import PublicKeys

ROWS_AT_ONCE = 2_000


class ExportCheck:
    """Checks an export while it is read, by whoever reads it."""

    def __init__(
        self,
        path: Path,
        *,
        public_keys: PublicKeys | None = None,
        anchors: Iterator[Anchor] | None = None,
        known_topics: Container[str] | None = None,
    ) -> None:
        """Raises ExportUnusable for what is no lossless export."""
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
        """The file's seals and events, each checked; what is damaged is noted and left out."""
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
        """The result, once all items were taken."""
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
    with its first line made to fit, passes. Raises ExportUnusable for what is no lossless export.
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
