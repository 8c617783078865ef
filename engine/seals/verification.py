"""Verifies the log in the database against its seals, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from engine.event_store import EVENTS
from engine.seals.anchors import Anchor
from engine.seals.chain import Seal, StoredRow, head, last_seal, seals
from engine.seals.check import Check, orphan_fault
from engine.seals.proofs import NO_PROOFS, Proofs
from engine.seals.report import Caveat, Fault, FaultKind, Report

PAGE_ROWS = 2_000
LOWEST = -(2**63)

# By the whole row: should two rows lie at one position, both are read.
PAGE = f"""
SELECT notification_id, originator_id, originator_version, topic, state
FROM {EVENTS}
WHERE notification_id >= %s AND notification_id <= %s
  AND (notification_id, originator_id, originator_version) > (%s, %s, %s)
ORDER BY notification_id, originator_id, originator_version
LIMIT {PAGE_ROWS}
""".encode()
ORPHAN = f"""
SELECT e.notification_id, e.originator_id, e.originator_version, e.topic, e.state
FROM {EVENTS} AS e
WHERE e.notification_id > %s AND e.notification_id <= %s AND NOT (
    e.originator_version = 1 OR EXISTS (
        SELECT FROM {EVENTS} AS b
        WHERE b.originator_id = e.originator_id
          AND b.originator_version = e.originator_version - 1
          AND b.notification_id < e.notification_id))
ORDER BY e.notification_id LIMIT 1
""".encode()

COLUMNS = "verified_at, complete, report, seal, seal_hash"
RECORD = f"""
INSERT INTO public.backlot_verifications (complete, ok, report, seal, seal_hash)
VALUES (%s, %s, %s, %s, %b) RETURNING {COLUMNS}
""".encode()
LATEST = f"SELECT {COLUMNS} FROM public.backlot_verifications ORDER BY id DESC LIMIT 1".encode()


@dataclass(frozen=True, slots=True)
class Verification:
    """A stored result, which proves nothing to another process than the one that made it.

    `complete` when it began at the log's first event. `seal` and `seal_hash` are those of the last
    seal, where there is one and no fault.
    """

    verified_at: datetime
    complete: bool
    report: dict[str, object]
    seal: int | None
    seal_hash: bytes | None


def verify_database(
    conn: Connection[TupleRow],
    proofs: Proofs = NO_PROOFS,
    *,
    known_topics: Container[str] | None = None,
    after: Seal | None = None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> Report:
    """Recompute the chain over the log as it is now, and name the first fault.

    `after` is a seal up to which the log was verified before; only what follows is read.
    `known_topics` are those that an unsealed event may have. `on_progress` gets the number of
    events that were looked at since its last call. Raise AnchorsUnusable.

    What it can't find alone: an altered event whose seal and all after it were recomputed
    leaves a chain that fits. Signatures show that (`proofs`), since they can't be recomputed
    without the private key, and so do anchors, since they lie elsewhere. A log and chain cut off
    at the end are shown by what is known outside alone: anchors, and the head in the data folder.
    Unsealed events are not proved at all.
    """
    # What is known outside is read first: the log only grows meanwhile.
    check = Check(
        first=after.last + 1 if after else 1,
        previous=after,
        proofs=proofs,
        known_topics=known_topics,
    )
    found = proofs.outside.compare(conn)
    caveats = [Caveat("not-compared", text) for text in found.unusable]
    caveats += [_accepted(anchor) for anchor in proofs.acceptances()]
    newest, until = last_seal(conn), head(conn)
    chain = seals(conn, after.number if after else LOWEST, newest.number if newest else 0)
    reported = 0
    for item in _merge(chain, rows_between(conn, after.last if after else None, until)):
        check.take(item)
        if isinstance(item, Seal):
            on_progress(check.events - reported)
            reported = check.events
    on_progress(check.events - reported)
    with conn.cursor(binary=True) as cursor:
        row = cursor.execute(ORPHAN, (newest.last if newest else 0, until)).fetchone()
    report = check.finish(orphan_fault(StoredRow._make(row)) if row else None)
    fault = report.fault
    if fault is None and found.differences:
        fault = Fault(FaultKind.HEAD_DIFFERS, "; ".join(found.differences))
    return replace(report, fault=fault, caveats=(*report.caveats, *caveats))


def _accepted(anchor: Anchor) -> Caveat:
    if anchor.acceptance is None:
        raise ValueError(f"anchor {anchor.number} accepts nothing")
    by, at, reason = anchor.acceptance
    detail = (
        f"at {at}, {by} went on from seal {anchor.number}, position {anchor.last}, although later "
        f"ones were anchored: {reason}"
    )
    return Caveat("accepted", detail)


def _merge(chain: Iterator[Seal], rows: Iterator[StoredRow]) -> Iterator[Seal | StoredRow]:
    """Yield each seal, after it the rows up to its last position, and then the other rows."""
    row = next(rows, None)
    for seal in chain:
        yield seal
        while row is not None and row.position <= seal.last:
            yield row
            row = next(rows, None)
    if row is not None:
        yield row
        yield from rows


def rows_between(conn: Connection[TupleRow], after: int | None, until: int) -> Iterator[StoredRow]:
    """Yield the rows of the log behind `after` (None: also those before position 1), in order."""
    lowest = LOWEST if after is None else after + 1
    place: tuple[int, UUID, int] = (lowest, UUID(int=0), LOWEST)
    while True:
        with conn.cursor(binary=True) as cursor:
            page = cursor.execute(PAGE, (place[0], until, *place), prepare=True).fetchall()
        yield from map(StoredRow._make, page)
        if len(page) < PAGE_ROWS:
            return
        place = page[-1][:3]


def record(conn: Connection[TupleRow], report: Report) -> Verification:
    """Store a result as of now, and return it."""
    seal = report.newest if report.ok else None
    end = (seal.number, seal.hash) if seal else (None, None)
    values = (report.first == 1, report.ok, Jsonb(report.as_dict()), *end)
    with conn.cursor(row_factory=class_row(Verification)) as cursor:
        return cursor.execute(RECORD, values).fetchall()[0]


def latest(conn: Connection[TupleRow]) -> Verification | None:
    """Return the newest result, good or not; None when nothing was ever verified."""
    with conn.cursor(row_factory=class_row(Verification)) as cursor:
        return cursor.execute(LATEST).fetchone()


def last_good_seal(conn: Connection[TupleRow], verified: Verification | None) -> Seal | None:
    """Return the seal up to which a result found the log good, if it is unchanged.

    After a fault there is none: until it is mended, every verification has to find it again.
    """
    if verified is None or verified.seal is None:
        return None
    seal = next(seals(conn, verified.seal - 1, verified.seal), None)
    return seal if seal is not None and seal.hash == verified.seal_hash else None
