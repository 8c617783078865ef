"""Hours and days in UTC, at whose bounds the rollups are cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeVar

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

T = TypeVar("T")


def start_of_hour(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def start_of_day(at: datetime) -> datetime:
    return start_of_hour(at).replace(hour=0)


def start_of_next_day(at: datetime) -> datetime:
    """Return the first midnight (UTC) that is not before this time."""
    return start_of_day(at + DAY - timedelta(microseconds=1))


def by_days(
    spans: Iterable[tuple[T, datetime, datetime]],
) -> Iterator[tuple[list[T], datetime, datetime]]:
    """Yield groups whose days (UTC) overlap, each with its first and its last time.

    A span is an item with the times of its beginning and its end.
    """
    group: list[T] = []
    since = until = datetime.min.replace(tzinfo=UTC)
    for each, first, last in sorted(spans, key=lambda span: span[1]):
        if group and start_of_day(first) > until:
            yield group, since, until
            group = []
        since, until = (since, max(until, last)) if group else (first, last)
        group.append(each)
    if group:
        yield group, since, until
