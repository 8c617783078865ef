"""Checks the chain itself: each seal against the one before it, its signature and its anchor."""

from __future__ import annotations

from collections.abc import Iterator

from infra.seals.anchors import Anchor
from infra.seals.chain import HASH_BYTES, NO_SEAL, Seal, seal_hash
from infra.seals.report import Fault, FaultKind
from infra.seals.signing import PublicKeys


class SealCheck:
    """Takes the seals in order.

    With a public key, unsigned seals are accepted only before the first signed one, which covers
    them, and at least one has to be signed: else whoever rewrites the chain would simply leave
    the signatures out.
    """

    def __init__(
        self,
        public_keys: PublicKeys | None = None,
        anchors: Iterator[Anchor] | None = None,
        *,
        ends_early: bool = False,
    ) -> None:
        """`ends_early` says that later seals may be anchored: an export is of an earlier day."""
        self._keys, self._anchors = public_keys, anchors
        self._ends_early = ends_early
        self._before: Seal | None = None
        self._from_start = True
        self._first_number: int | None = 1
        self._last_number: int | None = None
        self._next_anchor = next(anchors, None) if anchors else None
        self.count = self.signed = self.anchored = 0

    def begin(
        self, before: Seal | None, numbers: tuple[int, int] | None, *, from_start: bool
    ) -> None:
        """Where the chain begins: after a seal checked before, at its start, or at any seal.

        `numbers` are those of the first and last seal that there should be, where that is known.
        """
        self._before, self._from_start = before, from_start
        if before is not None:
            self._first_number = before.number + 1
        elif not from_start:
            self._first_number = (numbers[0] if numbers else 0) or None
        self._last_number = numbers[1] if numbers else None

    def fault(self, seal: Seal) -> Fault | None:
        """What is wrong with the next seal, if anything."""
        found = (
            self._chain_fault(seal)
            or _hash_fault(seal)
            or self._signature_fault(seal)
            or self._anchor_fault(seal)
        )
        self._before = seal
        self.count += 1
        return found

    @property
    def next(self) -> int | None:
        """The number that the next seal should have; None at the beginning of a part."""
        return self._before.number + 1 if self._before else self._first_number

    def finish(self) -> Fault | None:
        """What is wrong with the chain's end."""
        if self.next is not None and self.next <= (self._last_number or 0):
            detail = f"seal {self.next} is gone: the last one should be {self._last_number}"
            return Fault(FaultKind.SEAL_MISSING, detail, seal=self.next)
        if self._keys is not None and self._before is not None and self.count and not self.signed:
            return _unproved(self._before, "neither it nor any before it is signed")
        return None if self._ends_early else _gone(self._next_anchor)

    def _chain_fault(self, seal: Seal) -> Fault | None:
        before, number = self._before, self.next
        if number is not None and seal.number != number:
            detail = f"seal {number} is gone: seal {seal.number} comes in its place"
            first = before.last + 1 if before else None
            return Fault(FaultKind.SEAL_MISSING, detail, first, seal=number)
        if before is None and not self._from_start:
            return None
        previous, first = (before.hash, before.last + 1) if before else (NO_SEAL, 1)
        if seal.previous != previous:
            detail = f"seal {seal.number} does not continue the chain: it follows another seal"
            return Fault(FaultKind.SEAL_MISSING, detail, first, seal=seal.number)
        if seal.first != first:
            detail = f"seal {seal.number} begins at position {seal.first}, not at {first}"
            return Fault(FaultKind.SEAL_ALTERED, detail, first, seal=seal.number)
        return None

    def _signature_fault(self, seal: Seal) -> Fault | None:
        if seal.signature is None:
            if self._keys is None or not self.signed:
                return None
            return _unproved(seal, "it is not signed, though seals before it are")
        self.signed += 1
        if self._keys is None:
            return None
        why = self._keys.fault(seal.hash, seal.signature, seal.key_id)
        return None if why is None else _unproved(seal, why)

    def _anchor_fault(self, seal: Seal) -> Fault | None:
        fault = None
        while (anchor := self._next_anchor) is not None and anchor.number <= seal.number:
            if anchor.number == seal.number:
                self.anchored += 1
                fault = fault or _differs(anchor, seal)
            elif self._before is not None and anchor.number > self._before.number:
                fault = fault or _gone(anchor)
            self._next_anchor = next(self._anchors, None) if self._anchors else None
        return fault


def _gone(anchor: Anchor | None) -> Fault | None:
    if anchor is None:
        return None
    detail = (
        f"seal {anchor.number} over positions {anchor.first} to {anchor.last} is anchored "
        "and no longer there"
    )
    return Fault(FaultKind.ANCHOR_DIFFERS, detail, anchor.first, seal=anchor.number)


def _unproved(seal: Seal, why: str) -> Fault:
    detail = f"seal {seal.number} over positions {seal.first} to {seal.last}: {why}"
    return Fault(FaultKind.SIGNATURE_INVALID, detail, seal.first, seal=seal.number)


def _hash_fault(seal: Seal) -> Fault | None:
    whole = len(seal.leaves) == (seal.last - seal.first + 1) * HASH_BYTES
    if whole and seal.hash == seal_hash(seal.previous, seal.first, seal.last, seal.leaves):
        return None
    detail = f"seal {seal.number} is not what its hash says"
    return Fault(FaultKind.SEAL_ALTERED, detail, seal.first, seal=seal.number)


def _differs(anchor: Anchor, seal: Seal) -> Fault | None:
    if not anchor.differs_from(seal):
        return None
    detail = f"seal {seal.number} is not the one that was anchored: the chain was written anew"
    return Fault(FaultKind.ANCHOR_DIFFERS, detail, seal.first, seal=seal.number)
