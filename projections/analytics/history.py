"""Sessions and viewers judged from their beginning: what is stored of them, and decided once more.

A late event, or a video that is better known now, changes what earlier events count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.calendar import by_days
from projections.analytics.rules import (
    Change,
    Metadata,
    Row,
    Span,
    Verdict,
    columns,
    in_order,
    spans_since,
)

Key = tuple[str, str]
"""A video, and a session or a viewer who has a name."""


def stored_since(
    conn: Connection[TupleRow],
    history: bytes,
    known: Mapping[Key, Span],
    since: datetime,
    key_of: Callable[[Row], Key],
) -> dict[Key, list[Row]]:
    """Return what is stored of these keys since a time, with what is counted of it so far.

    `history` asks for the rows of keys (two columns) between two times: id, video, user, kind,
    time, metadata and session of each.
    """
    found: dict[Key, list[Row]] = defaultdict(list)
    for together, first, last in by_days(spans_since(known, since)):
        with conn.cursor(binary=True) as cursor:
            rows = cursor.execute(history, (*columns(together), first, last)).fetchall()
        for id_, video, user, kind, at, metadata, session in rows:
            reported = metadata.get("reported", 0.0)
            row = Row(id_, video, user, kind, at.astimezone(UTC), metadata, session, reported)
            found[key_of(row)].append(row)
    return found


def decide_again(
    known: Span,
    decide: Callable[[Row, Metadata], Metadata],
    fresh: Iterable[Verdict],
    stored: Sequence[Row],
    changes: dict[str, Change],
) -> Iterator[Verdict]:
    """Yield the new events with what counts of them, decided in order among the stored ones.

    `known` is as it was before all of them. `changes` has stored rows, by event id, that count
    otherwise already, and gets those that do now.
    """
    before = {row.event_id: row.metadata for row in stored}
    now = (changes[row.event_id].row if row.event_id in changes else row for row in stored)
    verdicts = sorted((*fresh, *((row, row.metadata) for row in now)), key=time_order)
    for row, metadata in verdicts:
        after = decide(row, metadata)
        if row.event_id not in before:
            yield row, after
        elif after != before[row.event_id] or row.event_id in changes:
            change = Change(row._replace(metadata=after), before[row.event_id])
            changes[row.event_id] = change
    if verdicts:
        known.extend(verdicts[0][0].at, verdicts[-1][0].at)


def time_order(verdict: Verdict) -> tuple[datetime, str, str]:
    """Return the sort key of a judged event, as `in_order` has it."""
    return in_order(verdict[0])
