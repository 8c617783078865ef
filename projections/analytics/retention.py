"""How long what happened is kept one by one, and how far back counts may still change.

Whatever is kept for less time is changed no more before it goes: a refresh of TimescaleDB's rollups
over rows that are gone would erase their sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection

# Before rows go, what came late for them has so long to come into the rollups.
COUNTED, REFRESHED = timedelta(days=10), timedelta(days=5)

KEPT = b"SELECT days, floor FROM analytics.retention"
# What was kept for less time until now is gone, or may go at any moment.
KEEP = b"""
UPDATE analytics.retention
SET floor = greatest(floor, date_trunc('day', %b::timestamptz
                                - make_interval(days => least(days, %b::int)), 'UTC')),
    days = %b::int
RETURNING days, floor
"""


@dataclass(frozen=True, slots=True)
class Retention:
    """Rows go after `days`; those before `floor`, the start of a day (UTC), are gone for good."""

    days: int
    floor: datetime

    def going(self, now: datetime) -> datetime:
        """What lies before this may go at any moment."""
        return max(self.floor, now - timedelta(days=self.days))

    def counted_since(self, now: datetime) -> datetime:
        """What happened before this comes too late to be counted."""
        return self.going(now) + COUNTED

    def refreshed_since(self, now: datetime) -> datetime:
        """Rollups of what happened before this stay as they are."""
        return self.going(now) + REFRESHED


def kept(conn: Connection[Any]) -> Retention:
    """What the database keeps now; raises psycopg.Error."""
    return _told(conn, KEPT)


def keep(conn: Connection[Any], days: int, now: datetime) -> Retention:
    """Have rows kept for so many days from now on; raises psycopg.Error."""
    return _told(conn, KEEP, now, days, days)


def _told(conn: Connection[Any], query: bytes, *given: Any) -> Retention:
    row = conn.execute(query, given).fetchone()
    if row is None:
        raise LookupError("analytics.retention is empty: its one row was made with it")
    return Retention(row[0], row[1].astimezone(UTC))
