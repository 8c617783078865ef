"""Stores events and all that they count for in the caller's transaction, each once by its id.

One transaction stores at a time, so what it has read stays true until it commits. A session that
gets a late event is judged from its beginning.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain, islice
from operator import attrgetter
from typing import Any, NamedTuple

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from infra.advisory_locks import Lock, lock_in_transaction
from projections.analytics.calendar import by_days
from projections.analytics.rules import (
    COMMENT,
    LIKE,
    SHARE,
    VIEW,
    WATCH_TIME,
    Metadata,
    Row,
    Session,
    WatchedVideo,
    in_order,
)
from projections.analytics.schema import Shape, retention_of
from projections.analytics.viewers import add_viewers

VIEWS, TRENDING_VIEWS, LIKES, COMMENTS, SHARES, SECONDS, TRENDING_SECONDS = range(7)

Key = tuple[str, str]
"""A video and a session."""
Bucket = tuple[int, str]
"""An hour and a video. Hours are counted from the year 1 in UTC: datetimes are slow to hash."""
Verdict = tuple[Row, Metadata]
"""A row, and the metadata that it is stored with."""

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
# Rows in one piece of a COPY.
AT_ONCE = 200

LOAD = b"""
SELECT video_id::text, session::text, first_view, counted_view, last_report, watched, earliest,
       latest
FROM analytics.sessions JOIN unnest(%b::uuid[], %b::uuid[]) AS k(video_id, session)
    USING (video_id, session)
"""
SAVE = b"""
INSERT INTO analytics.sessions
    (video_id, session, first_view, counted_view, last_report, watched, earliest, latest)
SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::timestamptz[], %b::timestamptz[],
                     %b::timestamptz[], %b::double precision[], %b::timestamptz[],
                     %b::timestamptz[])
ON CONFLICT (video_id, session) DO UPDATE SET
    first_view = excluded.first_view, counted_view = excluded.counted_view,
    last_report = excluded.last_report, watched = excluded.watched,
    earliest = excluded.earliest, latest = excluded.latest
"""
FIELDS = attrgetter("first_view", "counted_view", "last_report", "watched", "earliest", "latest")
# The bounds of time are given apart as well: with them TimescaleDB leaves other chunks alone, of
# which it would lock every one, with all its indexes.
HISTORY = b"""
SELECT a.event_id::text, a.video_id::text, k.session::text, a.user_id, a.event_type,
       a."timestamp", a.metadata
FROM unnest(%b::uuid[], %b::uuid[]) AS k(video_id, session)
JOIN analytics.video_analytics a
    ON a.metadata->>'session' = k.session::text AND a.video_id = k.video_id
WHERE a.event_type IN ('view', 'watch_time') AND a."timestamp" BETWEEN %b AND %b
"""
VIDEOS = b"""
SELECT video_id::text, owner, duration_seconds FROM analytics.videos
WHERE video_id = ANY (%b::uuid[])
"""
UNKNOWN = WatchedVideo()


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
        self.shape = shape
        self._repeat = repeat

    def add(self, conn: Connection[TupleRow], rows: Iterable[Row]) -> StoredBatch:
        """Store the rows that are new. Run it in a transaction, which then holds a lock."""
        since = self._begin(conn)
        given = list(rows)
        timely = [row for row in given if row.at >= since]
        stored = self._store(conn, _new_rows(conn, timely), (), since)
        return replace(stored, too_late=len(given) - len(timely))

    def recount(self, conn: Connection[TupleRow], again: Collection[Key]) -> StoredBatch:
        """Judge sessions again, whose video is better known now."""
        return self._store(conn, (), again, self._begin(conn))

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
        again: Collection[Key],
        since: datetime,
    ) -> StoredBatch:
        if not fresh and not again:
            return StoredBatch()
        judgement, deltas = Judgement(conn, fresh, again, since=since), Deltas()
        without_session = ((row, row.metadata) for row in fresh if row.session is None)
        verdicts = chain(without_session, judgement.decide(self._repeat))
        _copy(conn, deltas.counting(verdicts) if self.shape is Shape.PLAIN else verdicts)
        add_viewers(conn, [row for row in fresh if row.event_type == VIEW])
        changes = judgement.save(conn)
        with conn.cursor() as cursor:
            cursor.executemany(CHANGE, [_change_values(change.row) for change in changes])
        if self.shape is Shape.PLAIN:
            deltas.correct(changes)
            deltas.write(conn)
        times = [*(row.at for row in fresh), *(change.row.at for change in changes)]
        return StoredBatch(Counter(row.event_type for row in fresh), len(changes), times)


class Change(NamedTuple):
    """A stored row that counts otherwise now, and its metadata before."""

    row: Row
    before: Metadata


class Judgement:
    """Sessions with new events, or whose video is better known now: loaded, decided on, saved."""

    def __init__(
        self,
        conn: Connection[TupleRow],
        fresh: Iterable[Row],
        again: Iterable[Key],
        *,
        since: datetime,
    ) -> None:
        """Look up what is known of the sessions of `fresh`, and of the sessions `again`.

        The sessions `again`, and those with a late event, are judged from their beginning. What
        happened before `since` changes no more.
        """
        self._since = since
        self._new: dict[Key, list[Row]] = {key: [] for key in again}
        repeated = set(self._new)
        for row in fresh:
            if row.session is not None:
                self._new.setdefault((row.video_id, row.session), []).append(row)
        self._sessions: dict[Key, Session] = {}
        self._videos: dict[str, WatchedVideo] = {}
        if self._new:
            with conn.cursor(binary=True) as cursor:
                found = cursor.execute(LOAD, _columns(self._new), prepare=True).fetchall()
                self._sessions = {(row[0], row[1]): Session(*row[2:]) for row in found}
                ids = list({video for video, _ in self._new})
                found = cursor.execute(VIDEOS, (ids,), prepare=True).fetchall()
                self._videos = {row[0]: WatchedVideo(*row[1:]) for row in found}
        self._late = {
            key
            for key, session in self._sessions.items()
            if key in repeated or _is_late(session, self._new[key])
        }
        late = {key: self._sessions[key] for key in self._late}
        self._stored = _history(conn, late, since) if late else {}
        self._changes: list[Change] = []

    def decide(self, repeat: timedelta) -> Iterator[Verdict]:
        """Yield each new event with its metadata; go through it once, to its end."""
        for key, rows in self._new.items():
            session = self._sessions.setdefault(key, Session())
            video = self._videos.get(key[0], UNKNOWN)
            if key in self._late:
                yield from self._decide_again(key, session, video, repeat)
                continue
            rows.sort(key=in_order)
            decide = session.decide
            for row in rows:
                yield row, decide(row, video, repeat)
            session.extend(rows[0].at, rows[-1].at)

    def save(self, conn: Connection[TupleRow]) -> Sequence[Change]:
        """Save the sessions; return the stored rows that count otherwise now."""
        rows = [(*key, *FIELDS(session)) for key, session in sorted(self._sessions.items())]
        if rows:
            conn.execute(SAVE, _columns(rows), prepare=True)
        return self._changes

    def _decide_again(
        self, key: Key, known: Session, video: WatchedVideo, repeat: timedelta
    ) -> Iterator[Verdict]:
        """Yield the new events of a session that begins anew, and note which stored ones change."""
        stored = self._stored.get(key, ())
        session = self._sessions[key] = known.as_before(self._since, stored)
        before = {row.event_id for row in stored}
        rows = sorted((*self._new[key], *stored), key=in_order)
        for row in rows:
            after = session.decide(row, video, repeat)
            if row.event_id not in before:
                yield row, after
            elif after != row.metadata:
                self._changes.append(Change(row._replace(metadata=after), row.metadata))
        if rows:
            session.extend(rows[0].at, rows[-1].at)


def _is_late(session: Session, rows: Iterable[Row]) -> bool:
    """Return whether one of these rows is not later than all events that are known."""
    latest = session.latest
    return latest is not None and any(row.at <= latest for row in rows)


def _history(
    conn: Connection[TupleRow], sessions: Mapping[Key, Session], since: datetime
) -> dict[Key, list[Row]]:
    """Return what is stored of these sessions since then, with what is counted of it so far."""
    found: dict[Key, list[Row]] = defaultdict(list)
    spans = [
        (key, max(session.earliest, since), session.latest)
        for key, session in sessions.items()
        if session.earliest is not None and session.latest is not None and session.latest >= since
    ]
    for together, first, last in by_days(spans):
        with conn.cursor(binary=True) as cursor:
            rows = cursor.execute(HISTORY, (*_columns(together), first, last)).fetchall()
        for id_, video, session, user, kind, at, metadata in rows:
            reported = 0.0 if kind == VIEW else metadata["reported"]
            row = Row(id_, video, user, kind, at.astimezone(UTC), metadata, session, reported)
            found[video, session].append(row)
    return found


def _columns(rows: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """Return the columns of rows, of which there is at least one."""
    return [list(column) for column in zip(*rows, strict=True)]


class Deltas:
    """What a batch changes in the rollups; hours and days in UTC."""

    def __init__(self) -> None:
        self._hourly: dict[Bucket, list[float]] = defaultdict(lambda: [0] * 5 + [0.0] * 2)

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
    if sums:
        rows = [(_begin(hour), video, *sums[hour, video]) for hour, video in sorted(sums)]
        conn.execute(statement, _columns(rows), prepare=True)


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
