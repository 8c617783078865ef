"""Compares one day of the analytics with what it should be, in the caller's transaction: inside
PostgreSQL, so that it takes no memory here however much differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from infra.utc import rfc3339
from projections.analytics.rebuilding import checking_sql as sql
from projections.proving.compare import NAMED_KEYS, Difference, DifferentKey, Kind, TableDifference

DAY = timedelta(days=1)
ROWS, VIEWERS, VIDEOS = "video_analytics", "video_viewers", "videos"

Digest = tuple[int, int]
"""How many viewers, and a hash of them all."""
Digests = Mapping[date, Digest]


@dataclass(frozen=True, slots=True)
class Day:
    """A day (UTC), and the position of the log up to which its events have to be there."""

    since: datetime
    due: int

    @property
    def parameters(self) -> dict[str, Any]:
        day = self.since.date()
        return {"since": self.since, "until": self.since + DAY, "day": day, "due": self.due}


def nothing_differs() -> Difference:
    """The analytics beside what they should be, before anything was found."""
    return Difference("analytics", "events")


def compare_rows(conn: Connection[TupleRow], day: Day, found: Difference) -> None:
    """Likes and comments, with what the event log tells of them."""
    conn.execute(sql.WRONG_ROWS, day.parameters)
    counts: dict[str, int] = dict(conn.execute(sql.COUNT_ROWS).fetchall())
    if not counts:
        return
    found.tables.append(_table(ROWS, counts))
    for kind, event_id, at, changes in conn.execute(sql.NAME_ROWS, (NAMED_KEYS,)).fetchall():
        key: dict[str, str | None] = {"event_id": str(event_id), "timestamp": rfc3339(at)}
        found.keys.append(DifferentKey(ROWS, key, Kind(kind), None, None, changes or {}))


def compare_derived(
    conn: Connection[TupleRow], day: Day, found: Difference, viewers: Digest
) -> None:
    """Sums and viewers, with the rows as they should be; `viewers` is what was kept of them."""
    conn.execute(sql.COUNT, day.parameters)
    for table, counted in sql.SUMS.items():
        conn.execute(sql.of(sql.WRONG_SUMS, table, counted), day.parameters)
        _tell_keys(conn, table, found)
    if _digest(conn, sql.VIEWERS_OF_DAY, day) != viewers:
        conn.execute(sql.WRONG_VIEWERS, day.parameters)
        _tell_keys(conn, VIEWERS, found)


def compare_videos(conn: Connection[TupleRow], found: Difference) -> None:
    """What is known of the videos, with what the event log tells; those are to be mended."""
    conn.execute(sql.WRONG_VIDEOS)
    conn.execute(sql.KEEP_VIDEOS)
    _tell_keys(conn, VIDEOS, found)


def viewers_by_day(conn: Connection[TupleRow]) -> dict[date, Digest]:
    """A digest of the viewers of each day, in one pass over their table."""
    return {day: (count, int(digest)) for day, count, digest in conn.execute(sql.VIEWERS_BY_DAY)}


def merged(found: Iterable[Difference]) -> Difference:
    """Several differences as one: sums per table, and the first keys."""
    whole = nothing_differs()
    tables: dict[str, TableDifference] = {}
    for each in found:
        for table in each.tables:
            total = tables.setdefault(table.table, TableDifference(table.table))
            total.missing += table.missing
            total.extra += table.extra
            total.different += table.different
        whole.keys += each.keys[: NAMED_KEYS - len(whole.keys)]
    whole.tables = [tables[name] for name in sorted(tables)]
    return whole


def _tell_keys(conn: Connection[TupleRow], table: str, found: Difference) -> None:
    counts: dict[str, int] = dict(conn.execute(sql.COUNT_KEYS, (table,)).fetchall())
    if not counts:
        return
    found.tables.append(_table(table, counts))
    named = conn.execute(sql.NAME_KEYS, (table, NAMED_KEYS)).fetchall()
    for kind, video_id, bucket, changes in named:
        # Viewers are counted and not named: they are people.
        key: dict[str, str | None] = {"video_id": str(video_id)}
        if bucket is not None:
            key["bucket"] = rfc3339(bucket)
        found.keys.append(DifferentKey(table, key, Kind(kind), None, None, changes or {}))


def _table(name: str, counts: Mapping[str, int]) -> TableDifference:
    missing, extra, different = (counts.get(str(kind), 0) for kind in Kind)
    return TableDifference(name, missing=missing, extra=extra, different=different)


def _digest(conn: Connection[TupleRow], query: bytes, day: Day) -> Digest:
    count, digest = conn.execute(query, day.parameters).fetchone() or (0, 0)
    return int(count), int(digest)
