"""Compares the seals in the database with what is known of them outside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.seals import chain
from engine.seals.anchors import (
    Acceptance,
    Anchor,
    AnchorStore,
    Head,
    HeadFile,
    anchor_of,
)
from engine.seals.forgotten_list import ForgottenList
from engine.seals.places import AnchorsUnusable
from infra.metrics import counter

SEAL_FAILURES = counter(
    "backlot_seal_failures",
    "Times that a seal could not be made, anchored, stamped or kept as the head (database, log, "
    "history, anchoring, timestamp, head, other).",
    ("step",),
)
SEAL = b"SELECT hash FROM public.backlot_seals WHERE number = %s"
BROKEN_LINK = b"""
SELECT s.number FROM public.backlot_seals AS s
LEFT JOIN public.backlot_seals AS b ON b.number = s.number - 1
WHERE s.number > %s AND s.previous IS DISTINCT FROM b.hash
ORDER BY s.number LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class OutsideComparison:
    """How the database differs from what is known outside it, and which places did not answer."""

    differences: Sequence[str]
    unusable: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outside:
    """The places outside the database where the newest seal is known, and who was forgotten."""

    head: HeadFile | None = None
    anchors: Sequence[AnchorStore] = ()
    forgotten: Sequence[ForgottenList] = ()

    def compare(self, conn: Connection[TupleRow]) -> OutsideComparison:
        """Compare with each of them. Raise psycopg.Error.

        A head that is no head counts as a difference: it is replaced whole, so nothing but
        somebody's hand or the disk damages it.
        """
        differences, unusable = list[str](), list[str]()
        floors: Mapping[str, int] = {}
        try:
            head = self.head.read() if self.head else None
        except AnchorsUnusable as error:
            (unusable if isinstance(error.__cause__, OSError) else differences).append(str(error))
            head = None
        if head is not None and self.head is not None:
            floors = head.anchored
            differences += difference(conn, head.seal, str(self.head.path))
        for store in self.anchors:
            try:
                newest = store.newest()
            except AnchorsUnusable as error:
                unusable.append(str(error))
            else:
                differences += anchor_difference(
                    conn, store.name, newest, floors.get(store.name, 0)
                )
        for each in self.forgotten:
            try:
                each.read()
            except AnchorsUnusable as error:
                unusable.append(str(error))
        return OutsideComparison(differences, unusable)

    def accept(self, conn: Connection[TupleRow], acceptance: Acceptance) -> None:
        """Go on from the newest seal in the database, whatever was known of later ones.

        Raise AnchorsUnusable where a place can't be written, and psycopg.Error.
        """
        seal = chain.last_seal(conn)
        for store in self.anchors:
            newest = store.newest()
            if newest is None or newest.seal != anchor_of(seal).seal:
                store.accept(seal, acceptance)
        self._write_head(seal, seal.number if seal else 0)

    def begin_anew(self, conn: Connection[TupleRow], acceptance: Acceptance) -> None:
        """Let nothing count that was known of another log, whose seals have the same numbers.

        Raise AnchorsUnusable where a place can't be written, and psycopg.Error.
        """
        for store in self.anchors:
            store.accept(None, acceptance)
        self._write_head(chain.last_seal(conn), 0)

    def _write_head(self, seal: chain.Seal | None, anchored: int) -> None:
        if self.head is not None:
            places = dict.fromkeys((store.name for store in self.anchors), anchored)
            self.head.write(Head(anchor_of(seal), places))


NOTHING = Outside()


def anchor_difference(
    conn: Connection[TupleRow], name: str, newest: Anchor | None, floor: int
) -> list[str]:
    """Return how the newest anchor of a place differs; seals up to `floor` were written there."""
    number = newest.number if newest else 0
    if number < floor and not (newest and newest.acceptance):
        held = f"ends with seal {number}" if number else "holds nothing"
        return [f"{name} {held}, and seals up to {floor} were written there: it was replaced"]
    return difference(conn, newest, name) if newest else []


def difference(conn: Connection[TupleRow], known: Anchor, where: str) -> list[str]:
    """Return how the database differs from a seal that is known to have been in it, if it does.

    The seals after that one have to follow it.
    """
    if known.number == 0:
        return []
    tip = chain.tip(conn)
    number = tip[0] if tip else 0
    if number < known.number:
        ends = f"the seals end with {number}, and {where} knows seal {known.number}"
        why = "the log was cut off, or restored from a backup"
        return [f"{ends}, up to position {known.last}: {why}"]
    row = conn.execute(SEAL, (known.number,)).fetchone()
    if row is None or row[0] != known.hash:
        return [f"seal {known.number} is not the one that {where} knows: it was written anew"]
    broken = number > known.number and conn.execute(BROKEN_LINK, (known.number,)).fetchone()
    if broken:
        return [f"seal {broken[0]} does not follow the one before it, after what {where} knows"]
    return []


class AnchorWriter:
    """Writes seals to one place of anchors, and watches that they stay there."""

    def __init__(
        self,
        store: AnchorStore,
        clock: Callable[[], float],
        stamp: Callable[[chain.Seal], bytes | None],
    ) -> None:
        """`stamp` returns the time stamp of a seal, or None where none is due or to be had."""
        self.store = store
        self._clock, self._stamp = clock, stamp
        self._newest: Anchor | None = None
        self._known = False
        self._floor = 0
        self._next_look = self._next_write = clock()

    @property
    def number(self) -> int:
        """Up to which seal anchors were written, as far as that is known here."""
        return self._floor

    def forget(self) -> None:
        """Compare what stands there with the database before the next seal."""
        self._known, self._next_look = False, self._clock()

    def differences(self, conn: Connection[TupleRow], floor: int) -> list[str]:
        """Look what stands there, if that is due, and return how it differs.

        Seals up to `floor` are known to be written there. Raise AnchorsUnusable, and psycopg.Error.
        """
        # Kept also where the place is away: the head must not forget it.
        self._floor = max(self._floor, floor)
        if self._clock() < self._next_look:
            return []
        self._next_look = self._clock() + self.store.pause_seconds
        try:
            newest = self.store.newest()
        except AnchorsUnusable:
            self._known = False
            raise
        if self._known and (newest and newest.seal) == (self._newest and self._newest.seal):
            return []
        found = anchor_difference(conn, self.store.name, newest, self._floor)
        if not found:
            self._newest, self._known = newest, True
            self._floor = newest.number if newest else 0
        return found

    def write(self, conn: Connection[TupleRow], last: chain.Seal) -> None:
        """Write every seal that is not there yet, if that is due. Raise AnchorsUnusable."""
        due = self._known and self._clock() >= self._next_write
        if not due or self._floor >= last.number:
            return
        self._next_write = self._clock() + self.store.pause_seconds
        try:
            after = max(self._floor, last.number - self.store.seals_at_once)
            self.store.append(chain.seals(conn, after, last.number), self._stamp(last))
        except AnchorsUnusable:
            self.forget()
            raise
        self._newest, self._floor = anchor_of(last), last.number
