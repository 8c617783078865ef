"""Checks a log against its seals, one row at a time, whatever they are read from.

It computes every hash itself, in Python; what PostgreSQL computed for the seals is only compared.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING

from engine.seals.anchors import Anchor
from engine.seals.chain import (
    NO_SEAL,
    Seal,
    StoredRow,
    leaf,
    peaks_after,
    seal_hash,
)
from engine.seals.merkle import HASH_BYTES, grow
from engine.seals.proofs import NO_PROOFS, Proofs
from engine.seals.report import (
    UNANCHORED,
    UNCHECKED,
    UNSIGNED,
    Caveat,
    Fault,
    FaultKind,
    Report,
    old_format,
    rewritten,
)

if TYPE_CHECKING:
    from infra.timestamps import TimestampTrust


class SealCheck:
    """Takes the seals in order.

    With a public key, unsigned seals are accepted only before the first signed one, which covers
    them, and at least one has to be signed: else a rewritten chain would simply leave
    the signatures out.
    """

    def __init__(
        self,
        first: int,
        before: Seal | None,
        numbers: tuple[int, int],
        proofs: Proofs,
        *,
        ends_early: bool,
    ) -> None:
        """For the arguments see `Check`; `ends_early` says that later seals may be anchored.

        Raise AnchorsUnusable.
        """
        self._before, self._from_start, self._ends_early = before, first == 1, ends_early
        self._keys, self._trust = proofs.public_keys, proofs.trust
        self._anchors = proofs.open_anchors() or iter(())
        self._first_number = 1 if self._from_start else numbers[0] or None
        self._last_number = numbers[1]
        self._next_anchor = next(self._anchors, None)
        # None as long as a part of a log has shown no seal that tells them.
        known = self._from_start or (before is not None and before.peaks is not None)
        self._peaks = peaks_after(before) if known else None
        self.follows: bytes | None = None
        self.count = self.signed = self.anchored = self.timestamped = self.old = 0

    def fault(self, seal: Seal) -> Fault | None:
        """Return what is wrong with the next seal, if anything."""
        found = (
            self._chain_fault(seal)
            or _hash_fault(seal)
            or self._tree_fault(seal)
            or self._signature_fault(seal)
            or self._anchor_fault(seal)
        )
        self._before = seal
        self._peaks = self._peaks_after(seal)
        self.old += seal.format == 1
        self.count += 1
        return found

    @property
    def next(self) -> int | None:
        """The number that the next seal should have; None at the beginning of a part."""
        return self._before.number + 1 if self._before else self._first_number

    def finish(self) -> Fault | None:
        """Return what is wrong with the chain's end."""
        if self.next is not None and self.next <= self._last_number:
            detail = f"seal {self.next} is gone: the last one should be {self._last_number}"
            return Fault(FaultKind.SEAL_MISSING, detail, seal=self.next)
        if self._keys is not None and self._before is not None and self.count and not self.signed:
            return _unproved_fault(self._before, "neither it nor any before it is signed")
        return None if self._ends_early else _gone_fault(self._next_anchor)

    def _chain_fault(self, seal: Seal) -> Fault | None:
        before, number = self._before, self.next
        if number is not None and seal.number != number:
            detail = f"seal {number} is gone: seal {seal.number} comes in its place"
            first = before.last + 1 if before else None
            return Fault(FaultKind.SEAL_MISSING, detail, first, seal=number)
        if before is None and not self._from_start:
            return None
        if before is None and seal.format > 1 and seal.previous != NO_SEAL:
            self.follows = seal.previous
        previous, first = (before.hash, before.last + 1) if before else (self.follows or NO_SEAL, 1)
        if seal.previous != previous:
            detail = f"seal {seal.number} does not continue the chain: it follows another seal"
            return Fault(FaultKind.SEAL_MISSING, detail, first, seal=seal.number)
        if seal.first != first:
            detail = f"seal {seal.number} begins at position {seal.first}, not at {first}"
            return Fault(FaultKind.SEAL_ALTERED, detail, first, seal=seal.number)
        return None

    def _tree_fault(self, seal: Seal) -> Fault | None:
        if seal.peaks is None or self._peaks in (None, seal.peaks):
            return None
        detail = f"seal {seal.number} does not commit to the seals before it"
        return Fault(FaultKind.SEAL_ALTERED, detail, seal.first, seal=seal.number)

    def _peaks_after(self, seal: Seal) -> bytes | None:
        if seal.peaks is not None:
            return peaks_after(seal)
        return None if self._peaks is None else grow(self._peaks, seal.number - 1, seal.hash)

    def _signature_fault(self, seal: Seal) -> Fault | None:
        if seal.signature is None:
            if self._keys is None or not self.signed:
                return None
            return _unproved_fault(seal, "it is not signed, though seals before it are")
        self.signed += 1
        if self._keys is None:
            return None
        why = self._keys.fault(seal.hash, seal.signature, seal.key_id)
        return None if why is None else _unproved_fault(seal, why)

    def _anchor_fault(self, seal: Seal) -> Fault | None:
        fault, anchored, timestamped = None, False, False
        while (anchor := self._next_anchor) is not None and anchor.number <= seal.number:
            if anchor.number == seal.number:
                anchored = True
                fault = fault or _difference(anchor, seal)
                if anchor.token is not None and self._trust is not None:
                    timestamped = True
                    fault = fault or self._stamp_fault(self._trust, anchor.token, seal)
            elif self._before is not None and anchor.number > self._before.number:
                fault = fault or _gone_fault(anchor)
            self._next_anchor = next(self._anchors, None)
        self.anchored += anchored
        self.timestamped += timestamped
        return fault

    @staticmethod
    def _stamp_fault(trust: TimestampTrust, token: bytes, seal: Seal) -> Fault | None:
        why = trust.fault(token, seal.hash)
        if why is None:
            return None
        detail = f"the time stamp of seal {seal.number}: {why}"
        return Fault(FaultKind.TIMESTAMP_INVALID, detail, seal.first, seal=seal.number)

    def caveats(self) -> Iterator[Caveat]:
        """Yield what the seals that were taken can't prove."""
        if self._before is not None:
            if self._before.signature is None:
                yield UNSIGNED
            elif self._keys is None:
                yield UNCHECKED
        if not self.anchored:
            yield UNANCHORED
        if self.follows is not None:
            yield rewritten(self.follows)
        if self.old:
            yield old_format(self.old)


def _gone_fault(anchor: Anchor | None) -> Fault | None:
    if anchor is None:
        return None
    detail = (
        f"seal {anchor.number} over positions {anchor.first} to {anchor.last} is anchored "
        "and no longer there"
    )
    return Fault(FaultKind.ANCHOR_DIFFERS, detail, anchor.first, seal=anchor.number)


def _unproved_fault(seal: Seal, why: str) -> Fault:
    detail = f"seal {seal.number} over positions {seal.first} to {seal.last}: {why}"
    return Fault(FaultKind.SIGNATURE_INVALID, detail, seal.first, seal=seal.number)


def _hash_fault(seal: Seal) -> Fault | None:
    whole = len(seal.leaves) == (seal.last - seal.first + 1) * HASH_BYTES
    peaks = seal.number - 1 if seal.format > 1 else 0
    whole = whole and len(seal.peaks or b"") == max(0, peaks).bit_count() * HASH_BYTES
    detail = f"seal {seal.number} is not what its hash says"
    try:
        if whole and seal.hash == seal_hash(seal):
            return None
    except ValueError as error:
        detail = f"seal {seal.number} can't be checked: {error}"
    return Fault(FaultKind.SEAL_ALTERED, detail, seal.first, seal=seal.number)


def _difference(anchor: Anchor, seal: Seal) -> Fault | None:
    if anchor.seal == (seal.number, seal.first, seal.last, seal.hash):
        return None
    detail = f"seal {seal.number} is not the one that was anchored: the chain was written anew"
    return Fault(FaultKind.ANCHOR_DIFFERS, detail, seal.first, seal=seal.number)


class Check:
    """Takes the seals in order, after each the rows of its block, at last the unsealed rows.

    Rows come ordered by position. Give each to `take`, then call `finish`.
    """

    def __init__(
        self,
        *,
        first: int = 1,
        until: int | None = None,
        previous: Seal | None = None,
        proofs: Proofs = NO_PROOFS,
        known_topics: Container[str] | None = None,
        seal_numbers: tuple[int, int] = (0, 0),
    ) -> None:
        """The log has the positions `first` to `until` (None: as far as there are rows).

        `previous` is the seal, checked before, that the first one has to follow; `seal_numbers`
        are those of the first and last one that there should be, zeros for none or where that is
        not known. Where `until` is known, later seals may be anchored: an export is of an earlier
        day. Raise AnchorsUnusable.
        """
        self._first, self._until = first, until
        self._seals = SealCheck(first, previous, seal_numbers, proofs, ends_early=until is not None)
        self._expected = first
        self._seal: Seal | None = None
        self._newest = previous
        self._group: list[StoredRow] = []
        self._tail = Tail(known_topics)
        self._fault: Fault | None = None
        self.events = 0

    def take(self, item: Seal | StoredRow) -> None:
        """Take in the next row of the log, or the next seal once all rows before it came."""
        if isinstance(item, StoredRow):
            self.events += 1
            if self._group and self._group[-1].position != item.position:
                self._look()
            self._group.append(item)
            return
        self._end_block()
        self._note(self._seals.fault(item))
        self._seal = self._newest = item
        # Where the chain has a hole, which was noted, its positions have nothing to compare with.
        self._expected = max(self._expected, item.first)

    def note_damaged_row(self, detail: str) -> None:
        """In place of the next row there is something that can't be read."""
        if self._group:
            self._look()
        covered = self._seal is not None and self._expected <= self._seal.last
        seal = self._number if covered else None
        self._note(Fault(FaultKind.ALTERED, detail, self._expected, seal=seal))
        self._expected += 1

    def note_damaged_seal(self, detail: str) -> None:
        """Note that in place of the next seal there is something that can't be read."""
        self._end_block()
        self._note(Fault(FaultKind.SEAL_ALTERED, detail, self._expected, seal=self._seals.next))

    def note_contradiction(self, row: StoredRow, detail: str) -> None:
        """Note that the fields beside the exact bytes of the last row contradict them."""
        self._look()
        self._note(_fault(FaultKind.ALTERED, detail, row, self._seal))

    def finish(self, orphan: Fault | None = None) -> Report:
        """Return the result; `orphan` is an unsealed event without the one before it."""
        self._end_block()
        self._note(self._tail.finish(self._expected, self._until, orphan))
        self._note(self._seals.finish())
        return Report(
            first=self._first,
            events=self.events,
            sealed_to=self._newest.last if self._newest else 0,
            seals=self._seals.count,
            signed=self._seals.signed,
            anchored=self._seals.anchored,
            unsealed=self._tail.events,
            fault=self._fault,
            newest=self._newest,
            timestamped=self._seals.timestamped,
            old=self._seals.old,
            follows=self._seals.follows,
            caveats=tuple(self._seals.caveats()),
        )

    def _look(self) -> None:
        """Look at the rows at one position: as a rule a single one."""
        group, self._group = self._group, []
        position = group[0].position
        if position < self._expected:
            self._note(_added_fault(group[0], "no event belongs there"))
        elif self._until is not None and position > self._until:
            self._note(_added_fault(group[0], f"the log should end with position {self._until}"))
        elif self._seal is None or position > self._seal.last:
            self._end_seal()
            self._tail.take(group, self._expected)
            self._expected = position + 1
        else:
            if position > self._expected:
                self._note(self._missing_fault(self._expected, position - 1))
            # One fault is enough: what comes after it is only counted.
            if self._fault is None:
                self._note(_compare(group, self._seal))
            self._expected = position + 1

    def _end_block(self) -> None:
        if self._group:
            self._look()
        self._end_seal()

    def _end_seal(self) -> None:
        if self._seal is None:
            return
        last = self._seal.last if self._until is None else min(self._seal.last, self._until)
        if self._expected <= last:
            self._note(self._missing_fault(self._expected, last))
            self._expected = last + 1

    def _missing_fault(self, first: int, last: int) -> Fault:
        more = f", with all up to {last}" if last > first else ""
        detail = f"the event at position {first} is gone{more}: seal {self._number} covers it"
        return Fault(FaultKind.MISSING, detail, first, seal=self._number)

    @property
    def _number(self) -> int | None:
        return self._seal.number if self._seal else None

    def _note(self, fault: Fault | None) -> None:
        self._fault = self._fault or fault


class Tail:
    """Looks for gaps, second events at a position, and topics that no program here writes."""

    def __init__(self, known_topics: Container[str] | None) -> None:
        self._known = known_topics
        self._gap: tuple[int, StoredRow] | None = None
        self._after_gap = 0
        self._fault: Fault | None = None
        self.events = 0

    def take(self, group: Sequence[StoredRow], expected: int) -> None:
        """Take in the rows at one position, which should be the `expected` one."""
        row = group[0]
        self.events += len(group)
        if self._gap is not None:
            self._after_gap += len(group)
        elif self._fault is not None:
            return
        elif row.position > expected:
            self._gap, self._after_gap = (expected, row), len(group)
        elif len(group) > 1:
            self._fault = _added_fault(group[1], "it has a second event")
        elif self._known is not None and row.topic not in self._known:
            self._fault = _added_fault(row, f"nothing here writes the topic {row.topic!r}")

    def finish(self, expected: int, until: int | None, orphan: Fault | None) -> Fault | None:
        """Return the first fault, where `until` is the position that the log should end with."""
        fault = self._fault or self._gap_fault()
        if fault is None and until is not None and expected <= until:
            detail = f"the log should go on from position {expected} to {until}"
            fault = Fault(FaultKind.MISSING, detail, expected)
        found = [one for one in (fault, orphan) if one is not None]
        return min(found, key=lambda one: one.position or 0, default=None)

    def _gap_fault(self) -> Fault | None:
        """Without a seal only the odds decide: a lone row far out was added, else rows are gone."""
        if self._gap is None:
            return None
        first, row = self._gap
        gone = f"positions {first} to {row.position - 1} are not there"
        if self._after_gap < row.position - first:
            return _added_fault(row, gone)
        return Fault(FaultKind.MISSING, f"{gone}, and what follows is", first)


def orphan_fault(row: StoredRow) -> Fault:
    """Return an unsealed event whose stream has not the version before it."""
    return _added_fault(row, f"its stream has no version {row.version - 1} before it")


def _compare(group: Sequence[StoredRow], seal: Seal) -> Fault | None:
    sealed = seal.leaf_at(group[0].position)
    strange = [row for row in group if leaf(row) != sealed]
    if len(group) > 1:
        return _added_fault(strange[0] if strange else group[1], "it has a second event", seal)
    return _altered_fault(strange[0], seal) if strange else None


def _altered_fault(row: StoredRow, seal: Seal) -> Fault:
    what = "is not the one that was sealed"
    for position in range(seal.first, seal.last + 1):
        if leaf(row._replace(position=position)) == seal.leaf_at(position):
            what = f"is the one that was sealed at position {position}"
            break
    detail = f"the event at position {row.position} {what}"
    return _fault(FaultKind.ALTERED, detail, row, seal)


def _added_fault(row: StoredRow, why: str, seal: Seal | None = None) -> Fault:
    detail = f"a row was added at position {row.position}: {why}"
    return _fault(FaultKind.ADDED, detail, row, seal)


def _fault(kind: FaultKind, detail: str, row: StoredRow, seal: Seal | None) -> Fault:
    number = seal.number if seal else None
    return Fault(kind, detail, row.position, row.stream_id, row.version, number)
