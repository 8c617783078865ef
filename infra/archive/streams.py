"""Whether unsealed events continue their streams, for a log that is read from front to back."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from infra.seals.chain import StoredRow
from infra.seals.report import Fault
from infra.seals.tail import orphaned


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
        """The first unsealed event without the version before it, where `log` is all of it.

        In a `partial` log a stream may have begun before.
        """
        before = self._before(log)
        broken = [row for row in self._first.values() if not _follows(row, before, partial)]
        if self._orphan is not None:
            broken.append(self._orphan)
        first = min(broken, key=lambda row: row.position, default=None)
        return None if first is None else orphaned(first)

    def _before(self, log: Iterable[StoredRow]) -> dict[UUID, int]:
        """The version that each of the streams had before its first unsealed event."""
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
