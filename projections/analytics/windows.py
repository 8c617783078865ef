"""The stretches of time that trending and stats look at, cut at the bounds of the rollups."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Window(StrEnum):
    """How far back trending looks."""

    WEEK = "7d"
    MONTH = "30d"
    ALL = "all"


LENGTHS = {Window.WEEK: 7 * DAY, Window.MONTH: 30 * DAY}


@dataclass(frozen=True, slots=True)
class Edges:
    """Where the parts of a window begin: whole days lie between `first_day` and `last_day`.

    The hours before and after are taken one by one, from `since` and up to `until`. What is in
    the hours from `recent` on counts as recent.
    """

    since: datetime
    first_day: datetime
    last_day: datetime
    recent: datetime
    until: datetime

    def parameters(self) -> dict[str, datetime]:
        return asdict(self)


def edges_of(window: Window, now: datetime, recent_hours: int) -> Edges:
    """Return the window that ends `now`; the hours into which its bounds fall count whole.

    Recent is at most as long as the window.
    """
    hour = start_of_hour(now)
    since = hour - LENGTHS[window] if window in LENGTHS else BEGINNING
    recent = max(hour - timedelta(hours=recent_hours), since)
    first_day = start_of_next_day(since)
    last_day = max(start_of_day(recent), first_day)
    return Edges(since, first_day, last_day, recent, until=hour + HOUR)


def start_of_hour(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def start_of_day(at: datetime) -> datetime:
    return start_of_hour(at).replace(hour=0)


def start_of_next_day(at: datetime) -> datetime:
    """Return the first midnight (UTC) that is not before this time."""
    return start_of_day(at + DAY - timedelta(microseconds=1))
