"""Keeps what verifications found, so that the next one can go on from the last good one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from infra.seals.chain import Seal
from infra.seals.report import Report
from infra.seals.tables import seals

KEEP = b"""
INSERT INTO public.backlot_verifications (complete, ok, report, seal, seal_hash)
VALUES (%s, %s, %s, %s, %b)
RETURNING verified_at, complete, report
"""
LATEST = b"""
SELECT verified_at, complete, report FROM public.backlot_verifications ORDER BY id DESC LIMIT 1
"""
END_OF_LATEST = b"""
SELECT seal, seal_hash FROM public.backlot_verifications ORDER BY id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Verification:
    """A kept result; `complete` when it began at the log's first event."""

    verified_at: datetime
    complete: bool
    report: dict[str, object]


def keep(conn: Connection[TupleRow], report: Report) -> Verification:
    """Keep a result as of now."""
    found = report.newest if report.ok else None
    values = (
        report.first == 1,
        report.ok,
        Jsonb(report.as_dict()),
        found.number if found else None,
        found.hash if found else None,
    )
    with conn.cursor(row_factory=class_row(Verification)) as cursor:
        kept = cursor.execute(KEEP, values).fetchone()
    if kept is None:
        raise LookupError("a kept verification was not returned")
    return kept


def latest(conn: Connection[TupleRow]) -> Verification | None:
    """The newest result, good or not; None when nothing was ever verified."""
    with conn.cursor(row_factory=class_row(Verification)) as cursor:
        return cursor.execute(LATEST).fetchone()


def last_good_seal(conn: Connection[TupleRow]) -> Seal | None:
    """The seal up to which the latest result found the log good, if it is still the same one.

    After a fault there is none: until it is mended, every verification has to find it again.
    """
    row = conn.execute(END_OF_LATEST).fetchone()
    if row is None or row[0] is None:
        return None
    found = next(seals(conn, row[0] - 1, row[0]), None)
    return found if found is not None and found.hash == row[1] else None
