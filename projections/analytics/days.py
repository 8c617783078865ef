"""What happened on the same days, together: so that a query looks at those days, and not at all
that lie between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")


def by_days(
    spans: Iterable[tuple[T, datetime, datetime]],
) -> Iterator[tuple[list[T], datetime, datetime]]:
    """Groups whose days (UTC) overlap, each with its first and its last time.

    A span is something with the times of its beginning and its end.
    """
    group: list[T] = []
    since = until = datetime.min.replace(tzinfo=UTC)
    for each, first, last in sorted(spans, key=lambda span: span[1]):
        if group and first.astimezone(UTC).date() > until.astimezone(UTC).date():
            yield group, since, until
            group = []
        since, until = (since, max(until, last)) if group else (first, last)
        group.append(each)
    if group:
        yield group, since, until
