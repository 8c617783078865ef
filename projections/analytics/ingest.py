"""Stores events and all that they count for in the caller's transaction, each once by its id.

One transaction stores at a time, so what it has read stays true until it commits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import islice

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from infra.advisory_locks import Lock, lock_in_transaction
from projections.analytics.audience import AudienceDeltas
from projections.analytics.judgement import Key, ParticipantJudgement, SessionJudgement
from projections.analytics.rules import (
    COMMENT,
    LIKE,
    SHARE,
    VIEW,
    WATCH_TIME,
    Change,
    KnownVideos,
    Metadata,
    Row,
    Rules,
    Verdict,
    WatchedVideo,
    columns,
)
from projections.analytics.schema import Shape, retention_of
from projections.analytics.viewers import add_viewers

COUNTS = (
    "views", "trending_views", "likes", "trending_likes", "comments", "trending_comments", "shares",
)  # fmt: skip
SECONDS = ("watch_seconds", "trending_watch_seconds")
COLUMNS = ", ".join((*COUNTS, *SECONDS))
# For each type of event: the column of what counts, and that of what counts in trending.
PLACES = {VIEW: (0, 1), LIKE: (2, 3), COMMENT: (4, 5), WATCH_TIME: (7, 8)}
SHARES = 6

Bucket = tuple[int, str]
"""An hour and a video. Hours are counted from the year 1 in UTC: datetimes are slow to hash."""

ADD = """
INSERT INTO analytics.{table} AS r (bucket, video_id, {columns})
SELECT * FROM unnest(%b::timestamptz[], %b::uuid[], %b::bigint[], %b::bigint[], %b::bigint[],
                     %b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[],
                     %b::double precision[], %b::double precision[])
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
VIDEOS = b"""
SELECT video_id::text, owner, duration_seconds FROM analytics.videos
WHERE video_id = ANY (%b::uuid[])
"""
CONTROLS = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
# Rows in one piece of a COPY.
AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """How many events were new, by type, how many stored ones count otherwise now, when all these
    happened, and how many events came too late to be counted."""

    fresh: Mapping[str, int] = field(default_factory=dict)
    changed: int = 0
    times: Sequence[datetime] = ()
    too_late: int = 0


class Store:
    """One shape of tables, and the rules by which it counts."""

    def __init__(self, shape: Shape, rules: Rules) -> None:
        self.shape = shape
        self._rules = rules

    def add(self, conn: Connection[TupleRow], rows: Iterable[Row]) -> StoredBatch:
        """Store the rows that are new. Run it in a transaction, which then holds a lock."""
        since = self._begin(conn)
        given = list(rows)
        timely = [row for row in given if row.at >= since]
        stored = self._store(conn, _new_rows(conn, timely), (), (), since)
        return replace(stored, too_late=len(given) - len(timely))

    def recount(
        self,
        conn: Connection[TupleRow],
        sessions: Collection[Key],
        participants: Collection[Key] = (),
    ) -> StoredBatch:
        """Judge sessions and viewers again, whose video is better known now."""
        return self._store(conn, (), sessions, participants, self._begin(conn))

    def _begin(self, conn: Connection[TupleRow]) -> datetime:
        """Take the lock of those that store; return since when counts may change."""
        lock_in_transaction(conn, Lock.ANALYTICS_ROWS)
        if self.shape is Shape.TIMESCALE:
            conn.execute(NO_LIMIT)
        return retention_of(conn).counted_since(datetime.now(UTC))

    def _store(
        self,
        conn: Connection[TupleRow],
        fresh: Sequence[Row],
        sessions: Collection[Key],
        participants: Collection[Key],
        since: datetime,
    ) -> StoredBatch:
        if not fresh and not sessions and not participants:
            return StoredBatch()
        again = {video for video, _ in (*sessions, *participants)}
        videos = _videos(conn, again.union(row.video_id for row in fresh))
        watched = SessionJudgement(conn, fresh, sessions, since=since)
        told = [(row, row.metadata) for row in fresh if row.session is None]
        told += watched.decide(videos, self._rules)
        people = ParticipantJudgement(
            conn, told, watched.save(conn), participants, videos, since=since
        )
        deltas, audience = Deltas(), AudienceDeltas()
        verdicts = audience.counting(people.decide(self._rules))
        _copy(conn, deltas.counting(verdicts) if self.shape is Shape.PLAIN else verdicts)
        add_viewers(conn, [row for row in fresh if row.event_type == VIEW])
        changes = people.save(conn)
        with conn.cursor() as cursor:
            cursor.executemany(CHANGE, [_change_values(change.row) for change in changes])
        audience.correct(changes)
        audience.write(conn)
        if self.shape is Shape.PLAIN:
            deltas.correct(changes)
            deltas.write(conn)
        times = [*(row.at for row in fresh), *(change.row.at for change in changes)]
        return StoredBatch(Counter(row.event_type for row in fresh), len(changes), times)


def _videos(conn: Connection[TupleRow], ids: Collection[str]) -> KnownVideos:
    with conn.cursor(binary=True) as cursor:
        found = cursor.execute(VIDEOS, (list(ids),), prepare=True).fetchall()
    return {row[0]: WatchedVideo(*row[1:]) for row in found}


class Deltas:
    """What a batch changes in the rollups; hours and days in UTC."""

    def __init__(self) -> None:
        self._hourly: dict[Bucket, list[float]] = defaultdict(
            lambda: [0] * len(COUNTS) + [0.0] * len(SECONDS)
        )

    def counting(self, verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
        """Yield the events again, and count each as it passes."""
        for row, metadata in verdicts:
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
        if row.event_type == SHARE:
            sums[SHARES] += sign
            return
        counts, trending = PLACES[row.event_type]
        whole, part = _values(row.event_type, metadata)
        sums[counts] += sign * whole
        sums[trending] += sign * part


def _values(kind: str, metadata: Metadata) -> tuple[float, float]:
    """Return how much an event counts, and how much it counts in trending."""
    if kind == VIEW:
        counts = int(metadata["counts"])
        return counts, counts * (not metadata["own"])
    if kind == WATCH_TIME:
        seconds = metadata["seconds"]
        return seconds, metadata.get("trending", seconds) * (not metadata["own"])
    delta = metadata["delta"]
    return delta, metadata.get("trending", delta)


def _add(conn: Connection[TupleRow], statement: bytes, sums: Mapping[Bucket, list[float]]) -> None:
    if sums:
        rows = [(_begin(hour), video, *sums[hour, video]) for hour, video in sorted(sums)]
        conn.execute(statement, columns(rows), prepare=True)


def _begin(hour: int) -> datetime:
    return datetime.fromordinal(hour // 24).replace(hour=hour % 24, tzinfo=UTC)


def _new_rows(conn: Connection[TupleRow], rows: Iterable[Row]) -> list[Row]:
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


def _copy(conn: Connection[TupleRow], verdicts: Iterator[Verdict]) -> None:
    with conn.cursor() as cursor, cursor.copy(COPY) as copy:
        # As text made here: half the cost of psycopg's rows. And some at a time: PostgreSQL stores
        # them while the next are decided on and counted.
        while text := "".join(
            [_line(row, metadata) for row, metadata in islice(verdicts, AT_ONCE)]
        ):
            copy.write(text)


def _line(row: Row, metadata: Metadata) -> str:
    """Return a row in the text format of COPY; ids, types and times hold nothing to be escaped."""
    event_id, video_id, user, kind, at = row[:5]
    viewer = "\\N" if user is None else _escape(user)
    # Control characters are escaped in JSON already.
    stored = orjson.dumps(metadata).decode().replace("\\", "\\\\")
    return f"{event_id}\t{video_id}\t{viewer}\t{kind}\t{at.isoformat()}\t{stored}\n"


def _escape(text: str) -> str:
    text = text.replace("\\", "\\\\")
    return text if text.isprintable() else text.translate(CONTROLS)


def _change_values(row: Row) -> tuple[str, str, datetime, str]:
    return orjson.dumps(row.metadata).decode(), row.event_id, row.at, row.event_type
