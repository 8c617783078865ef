"""What can be said about the events at the end of the log that no seal covers yet."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from infra.seals.chain import StoredRow
from infra.seals.report import Fault, FaultKind


@dataclass(frozen=True, slots=True)
class Gap:
    """Positions that are not there, and the row after them."""

    first: int
    row: StoredRow

    @property
    def size(self) -> int:
        return self.row.position - self.first


class Tail:
    """Looks for gaps, second events at a position, and topics that nobody could have written."""

    def __init__(self, known_topics: Container[str] | None) -> None:
        self._known = known_topics
        self._gap: Gap | None = None
        self._after_gap = 0
        self._fault: Fault | None = None
        self.events = 0

    def take(self, group: Sequence[StoredRow], expected: int) -> None:
        """The rows at one position, which should be the `expected` one."""
        row = group[0]
        self.events += len(group)
        if self._gap is not None:
            self._after_gap += len(group)
        elif self._fault is None and row.position > expected:
            self._gap, self._after_gap = Gap(expected, row), len(group)
        elif self._fault is None:
            self._fault = self._look_at(group)

    def finish(self, expected: int, until: int | None, orphan: Fault | None) -> Fault | None:
        """The first fault, where `until` is the position that the log should end with."""
        fault = self._fault or (self._judge(self._gap) if self._gap else None)
        if fault is None and until is not None and expected <= until:
            detail = f"the log should go on from position {expected} to {until}"
            fault = Fault(FaultKind.MISSING, detail, expected)
        found = [one for one in (fault, orphan) if one is not None]
        return min(found, key=lambda one: one.position or 0, default=None)

    def _look_at(self, group: Sequence[StoredRow]) -> Fault | None:
        row = group[0]
        if len(group) > 1:
            return _added(group[1], "it has a second event")
        if self._known is not None and row.topic not in self._known:
            return _added(row, f"nothing here writes the topic {row.topic!r}")
        return None

    def _judge(self, gap: Gap) -> Fault:
        """Without a seal only the odds tell: a lone row far out was added, else rows are gone."""
        gone = f"positions {gap.first} to {gap.row.position - 1} are not there"
        if self._after_gap < gap.size:
            return _added(gap.row, gone)
        return Fault(FaultKind.MISSING, f"{gone}, and what follows is", gap.first)


def orphaned(row: StoredRow) -> Fault:
    """An unsealed event whose stream has not the version before it."""
    return _added(row, f"its stream has no version {row.version - 1} before it")


def _added(row: StoredRow, why: str) -> Fault:
    detail = f"a row was added at position {row.position}: {why}"
    return Fault(FaultKind.ADDED, detail, row.position, row.stream_id, row.version)
