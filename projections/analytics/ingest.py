"""Stores events and all that they count for in the caller's transaction, each once by its id.

One transaction stores at a time, so what it has read stays true until it commits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain, islice
from typing import Any

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from infra.advisory_locks import Lock, lock_in_transaction
from projections.analytics import retention
from projections.analytics.rules import COMMENT, LIKE, SHARE, VIEW, WATCH_TIME, Metadata, Row
from projections.analytics.schema import Shape
from projections.analytics.sessions import Change, Judging, Kept, Key

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

# Where rows are compressed: a statement may change as many as a batch wants.
NO_LIMIT = b"SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0"
STORED = b"""
SELECT event_id::text FROM analytics.video_analytics
WHERE event_id = ANY (%b::uuid[]) AND "timestamp" BETWEEN %b AND %b
"""
COPY = b"""
COPY analytics.video_analytics (event_id, video_id, user_id, event_type, "timestamp", metadata)
FROM STDIN
"""
# Row by row: a join would decompress all that lies between the first and the last of them.
CHANGE = b"""
UPDATE analytics.video_analytics SET metadata = %b::text::jsonb
WHERE event_id = %b::uuid AND "timestamp" = %b AND event_type = %b
"""
CONTROLS = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
VIEWERS = b"""
INSERT INTO analytics.video_viewers (video_id, day, viewer)
SELECT * FROM unnest(%b::uuid[], %b::date[], %b::text[])
ON CONFLICT DO NOTHING
"""
# Rows in one piece of a COPY.
AT_ONCE = 200


class Deltas:
    """What a batch changes in the rollups; hours and days in UTC."""

    def __init__(self) -> None:
        self._hourly: dict[Bucket, list[float]] = defaultdict(lambda: [0] * 5 + [0.0] * 2)

    def counting(self, kept: Iterable[Kept]) -> Iterator[Kept]:
        """Yield the events again, and count each as it passes."""
        for row, metadata in kept:
            self._count(row, metadata, 1)
            yield row, metadata

    def correct(self, changes: Iterable[Change]) -> None:
        """Count these events anew, in place of what was counted of them before."""
        for row, before in changes:
            self._count(row, before, -1)
            self._count(row, row.metadata, 1)

    def write(self, conn: Connection[TupleRow]) -> None:
        """Add the deltas to the rollups, in an order in which no two writers block each other."""
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
    """Return which columns an event adds to, and how much."""
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


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """How many events were new, by type, how many stored ones count otherwise now, when all these
    happened, and how many events came too late to be counted."""

    fresh: Mapping[str, int] = field(default_factory=dict)
    changed: int = 0
    times: Sequence[datetime] = ()
    too_late: int = 0


class Store:
    """One shape of tables, and how long a view of a session stands for its repetitions."""

    def __init__(self, shape: Shape, repeat: timedelta) -> None:
        self._shape = shape
        self._repeat = repeat

    def add(self, conn: Connection[TupleRow], rows: Iterable[Row]) -> StoredBatch:
        """Store the rows that are new. Run it in a transaction, which then holds a lock."""
        since = self._begin(conn)
        told = list(rows)
        timely = [row for row in told if row.at >= since]
        fresh = _fresh(conn, timely)
        stored = self._store(conn, fresh, (), since) if fresh else StoredBatch()
        return replace(stored, too_late=len(told) - len(timely))

    def recount(self, conn: Connection[TupleRow], again: Collection[Key]) -> StoredBatch:
        """Judge sessions again, whose video is better known now."""
        since = self._begin(conn)
        return self._store(conn, (), again, since) if again else StoredBatch()

    def _begin(self, conn: Connection[TupleRow]) -> datetime:
        """Take the lock of those that store; return since when counts may change."""
        lock_in_transaction(conn, Lock.ANALYTICS_ROWS)
        if self._shape is Shape.TIMESCALE:
            conn.execute(NO_LIMIT)
        return retention.kept(conn).counted_since(datetime.now(UTC))

    def _store(
        self,
        conn: Connection[TupleRow],
        fresh: Sequence[Row],
        again: Collection[Key],
        since: datetime,
    ) -> StoredBatch:
        judging, deltas = Judging(conn, fresh, again, since=since), Deltas()
        without_session = ((row, row.metadata) for row in fresh if row.session is None)
        kept = chain(without_session, judging.decide(self._repeat))
        _copy(conn, deltas.counting(kept) if self._shape is Shape.PLAIN else kept)
        _add_viewers(conn, [row for row in fresh if row.event_type == VIEW])
        changes = judging.save(conn)
        _change(conn, [change.row for change in changes])
        if self._shape is Shape.PLAIN:
            deltas.correct(changes)
            deltas.write(conn)
        times = [*(row.at for row in fresh), *(change.row.at for change in changes)]
        return StoredBatch(Counter(row.event_type for row in fresh), len(changes), times)


def _fresh(conn: Connection[TupleRow], rows: Iterable[Row]) -> list[Row]:
    """Return the rows that are not stored yet, each once."""
    by_id: dict[str, Row] = {}
    for row in rows:
        by_id.setdefault(row.event_id, row)
    by_day: dict[date, list[Row]] = defaultdict(list)
    for row in by_id.values():
        by_day[row.at.date()].append(row)
    with conn.cursor(binary=True) as cursor:
        # Day by day: TimescaleDB locks every chunk between the bounds, with all its indexes.
        for day in by_day.values():
            ids, times = [row.event_id for row in day], [row.at for row in day]
            known = cursor.execute(STORED, (ids, min(times), max(times)), prepare=True)
            for (id_,) in known.fetchall():
                del by_id[id_]
    return list(by_id.values())


def _copy(conn: Connection[TupleRow], kept: Iterator[Kept]) -> None:
    with conn.cursor() as cursor, cursor.copy(COPY) as copy:
        # As text made here: half the cost of psycopg's rows. And some at a time: PostgreSQL stores
        # them while the next are decided on and counted.
        while text := "".join([_line(row, metadata) for row, metadata in islice(kept, AT_ONCE)]):
            copy.write(text)


def _line(row: Row, metadata: Metadata) -> str:
    """Return a row in the text format of COPY; ids, types and times hold nothing to be escaped."""
    event_id, video_id, user, kind, at = row[:5]
    told = "\\N" if user is None else _escaped(user)
    # Control characters are escaped in JSON already.
    kept = orjson.dumps(metadata).decode().replace("\\", "\\\\")
    return f"{event_id}\t{video_id}\t{told}\t{kind}\t{at.isoformat()}\t{kept}\n"


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\")
    return text if text.isprintable() else text.translate(CONTROLS)


def _add_viewers(conn: Connection[TupleRow], views: Sequence[Row]) -> None:
    viewers = sorted({(row.video_id, row.at.date(), _viewer(row)) for row in views})
    if viewers:
        columns = [list(column) for column in zip(*viewers, strict=True)]
        conn.execute(VIEWERS, columns, prepare=True)


def _viewer(row: Row) -> str:
    return f"session:{row.session}" if row.user_id is None else row.user_id


def _change(conn: Connection[TupleRow], rows: Sequence[Row]) -> None:
    changes = [
        (orjson.dumps(row.metadata).decode(), row.event_id, row.at, row.event_type) for row in rows
    ]
    with conn.cursor() as cursor:
        cursor.executemany(CHANGE, changes)
