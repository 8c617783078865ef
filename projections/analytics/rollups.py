"""Hourly and daily sums, kept by whoever stores: the shape without continuous aggregates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.rules import COMMENT, LIKE, SHARE, VIEW, WATCH_TIME, Metadata, Row
from projections.analytics.sessions import Change, Kept

VIEWS, TRENDING_VIEWS, LIKES, COMMENTS, SHARES, SECONDS, TRENDING_SECONDS = range(7)

Bucket = tuple[int, str]
"""An hour and a video. Hours are counted from the year 1 in UTC: datetimes are slow to hash."""

COLUMNS = "views, trending_views, likes, comments, shares, watch_seconds, trending_watch_seconds"
ADD = """
INSERT INTO analytics.{table} AS r (bucket, video_id, {columns})
SELECT * FROM unnest(%b::timestamptz[], %b::uuid[], %b::bigint[], %b::bigint[], %b::bigint[],
                     %b::bigint[], %b::bigint[], %b::double precision[], %b::double precision[])
ON CONFLICT (video_id, bucket) DO UPDATE SET {added}
"""
ADDED = ", ".join(f"{name} = r.{name} + excluded.{name}" for name in COLUMNS.split(", "))
ADD_HOURLY, ADD_DAILY = (
    ADD.format(table=table, columns=COLUMNS, added=ADDED).encode()
    for table in ("video_hourly", "video_daily")
)


class Deltas:
    """What a batch changes in the rollups; hours and days in UTC."""

    def __init__(self) -> None:
        self._hourly: dict[Bucket, list[float]] = defaultdict(lambda: [0] * 5 + [0.0] * 2)

    def counting(self, kept: Iterable[Kept]) -> Iterator[Kept]:
        """The same events, counted as they pass."""
        for row, metadata in kept:
            self._count(row, metadata, 1)
            yield row, metadata

    def correct(self, changes: Iterable[Change]) -> None:
        """Count these events anew, in place of what was counted of them before."""
        for row, before in changes:
            self._count(row, before, -1)
            self._count(row, row.metadata, 1)

    def write(self, conn: Connection[TupleRow]) -> None:
        """Add them up, in an order that lets no two writers wait for each other."""
        _add(conn, ADD_HOURLY, self._hourly)
        daily: dict[Bucket, list[float]] = {}
        for (hour, video_id), sums in self._hourly.items():
            key = (hour - hour % 24, video_id)
            before = daily.get(key)
            daily[key] = [a + b for a, b in zip(before, sums, strict=True)] if before else sums
        _add(conn, ADD_DAILY, daily)

    def _count(self, row: Row, metadata: Metadata, sign: int) -> None:
        at = row.at
        sums = self._hourly[at.toordinal() * 24 + at.hour, row.video_id]
        for column, value in _values(row.event_type, metadata):
            sums[column] += sign * value


def _values(kind: str, metadata: Metadata) -> Iterable[tuple[int, float]]:
    """Which columns an event adds to, and how much."""
    if kind == VIEW:
        counts = int(metadata["counts"])
        return (VIEWS, counts), (TRENDING_VIEWS, counts * (not metadata["own"]))
    if kind == WATCH_TIME:
        seconds = metadata["seconds"]
        return (SECONDS, seconds), (TRENDING_SECONDS, seconds * (not metadata["own"]))
    column = {LIKE: LIKES, COMMENT: COMMENTS, SHARE: SHARES}[kind]
    return ((column, metadata.get("delta", 1)),)


def _add(conn: Connection[TupleRow], statement: bytes, sums: Mapping[Bucket, list[float]]) -> None:
    keys = sorted(sums)
    if not keys:
        return
    columns: list[list[Any]] = [
        [_begin(hour) for hour, _ in keys],
        [video_id for _, video_id in keys],
        *map(list, zip(*(sums[key] for key in keys), strict=True)),
    ]
    conn.execute(statement, columns, prepare=True)


def _begin(hour: int) -> datetime:
    return datetime.fromordinal(hour // 24).replace(hour=hour % 24, tzinfo=UTC)
