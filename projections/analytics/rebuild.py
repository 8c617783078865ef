"""Compares the analytics with the event log and with their own raw rows, and mends the difference.

Views, watch time and shares have no other source than their rows: those are never removed. Each
day is compared in one snapshot, and mended in one transaction in which nobody else stores; so reads
and ingest go on, and whoever is killed leaves days that are right and days as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from threading import Event
from uuid import UUID

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from engine.comparison import SESSION, Difference
from engine.event_store import EVENTS
from engine.log import Log, LogWindow, Stored, event_id
from engine.replay.records import Progress, ReplayState, Report
from projections.analytics import reconciliation, videos
from projections.analytics.arrival import (
    LOOK_SECONDS,
    VIDEOS_CONSUMER,
    AnalyticsMeans,
    Arrival,
    NotTakenIn,
    taken,
)
from projections.analytics.continuous_aggregates import refresh
from projections.analytics.ingest import Store
from projections.analytics.reconciliation import Day, Digest
from projections.analytics.retention import kept
from projections.analytics.rules import AHEAD, TOPICS, NotCountable, Row, row_of
from projections.analytics.schema import Shape, state
from projections.analytics.videos import WRITES
from projections.analytics.windows import DAY, start_of_day
from projections.integration_events import events_for, from_event

WINDOW_EVENTS = 5_000

HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()
TABLES = b"""
CREATE TEMPORARY TABLE told_rows (
    position bigint NOT NULL,
    event_id uuid NOT NULL,
    video_id uuid NOT NULL,
    user_id text COLLATE "C",
    event_type text COLLATE "C" NOT NULL,
    "timestamp" timestamptz NOT NULL,
    metadata jsonb NOT NULL);
CREATE INDEX ON told_rows ("timestamp");
CREATE TEMPORARY TABLE told_unreadable (event_id uuid PRIMARY KEY);
CREATE TEMPORARY TABLE told_videos (LIKE analytics.videos INCLUDING ALL)
"""
COPY = b"""
COPY told_rows (position, event_id, video_id, user_id, event_type, "timestamp", metadata)
FROM STDIN
"""
UNREADABLE = b"INSERT INTO told_unreadable SELECT unnest(%b::uuid[]) ON CONFLICT DO NOTHING"
# The statements that write the live table, on its staging table.
STAGING_WRITES = {
    kind: statement.replace(b"analytics.videos", b"told_videos")
    for kind, statement in WRITES.items()
}

Pace = Callable[[int], None]
"""Hears of the position that was read; raises what is to end the reading."""

ROWS = {
    # Per type, since that is how they are indexed.
    Shape.PLAIN: b"""
SELECT (SELECT min("timestamp") FROM analytics.video_analytics WHERE event_type = kind),
       (SELECT max("timestamp") FROM analytics.video_analytics WHERE event_type = kind)
FROM unnest(ARRAY['view', 'like', 'comment', 'watch_time', 'share']) AS kind
""",
    # By the chunks: to look into all of them takes a lock on each.
    Shape.TIMESCALE: b"""
SELECT range_start, range_end FROM timescaledb_information.chunks
WHERE hypertable_schema = 'analytics' AND hypertable_name = 'video_analytics'
""",
}
SPAN = b"""
SELECT greatest(min(low), %(floor)s), least(max(high), %(ceiling)s) FROM (
    SELECT min("timestamp"), max("timestamp") FROM told_rows
    UNION ALL SELECT min(bucket), max(bucket) FROM analytics.video_daily
    UNION ALL SELECT min(bucket), max(bucket) FROM analytics.video_hourly
    UNION ALL (ROWS)) AS seen(low, high)
"""

NAME = "analytics"
NO_VIEWERS = (0, 0)
# Forces the comparison of each viewer of a day.
UNKNOWN = (-1, 0)


class StagingTables:
    """What the log tells up to a position of likes and comments, and up to another of uploads.

    They tell nothing of an event that can't be read or counted: its row, if there is one, stays.
    """

    def __init__(self, log_conn: Connection[TupleRow], conn: Connection[TupleRow]) -> None:
        """`log_conn` is where the events are, `conn` where the analytics are."""
        self._log_conn = log_conn
        self._conn = conn
        self._rows = Log(events_for(TOPICS), batch_events=WINDOW_EVENTS)
        self._videos = Log(WRITES, batch_events=WINDOW_EVENTS)
        self._rows_until = self._videos_until = 0
        self.events = 0
        conn.execute(TABLES)

    def head(self) -> int:
        """Return the last position of the log."""
        (head,) = self._log_conn.execute(HEAD).fetchone() or (0,)
        return int(head)

    def read_rows(self, pace: Pace | None = None) -> None:
        """Go on with likes and comments to the end of the log."""
        for window in self._windows(self._rows, self._rows_until, self.head()):
            self._write_rows(window)
            self._rows_until = window.until
            if pace is not None:
                pace(window.until)

    def read_videos(self, until: int, pace: Pace | None = None) -> None:
        """Go on with the uploads to a position, which must be where their consumer is."""
        for window in self._windows(self._videos, self._videos_until, until):
            self._write_videos(window)
            self._videos_until = window.until
            if pace is not None:
                pace(window.until)

    def _windows(self, log: Log, after: int, until: int) -> Iterator[LogWindow]:
        while after < until:
            window = log.read(self._log_conn, after, until)
            yield window
            self.events += len(window.events)
            after = window.until

    def _write_rows(self, window: LogWindow) -> None:
        unreadable: list[UUID] = []
        now = datetime.now(UTC)
        with self._conn.cursor() as cursor, cursor.copy(COPY) as copy:
            for stored in window.events:
                row = self._row(stored, now)
                if row is None:
                    unreadable.append(event_id(stored.stream_id, stored.version))
                else:
                    kept = orjson.dumps(row.metadata).decode()
                    copy.write_row((stored.position, *row[:5], kept))
        if unreadable:
            self._conn.execute(UNREADABLE, (unreadable,))

    def _row(self, stored: Stored, now: datetime) -> Row | None:
        try:
            message = from_event(*stored.decode())
            return row_of(message.topic, message.id, orjson.loads(message.value), now)
        except (MapperDeserialisationError, NotCountable):
            return None

    def _write_videos(self, window: LogWindow) -> None:
        with self._conn.pipeline():
            for stored in window.events:
                try:
                    message = videos.message(*stored.decode())
                except MapperDeserialisationError:
                    # The consumer has set it aside, too.
                    continue
                told = videos.told(message.topic, orjson.loads(message.value))
                self._conn.execute(STAGING_WRITES[told.kind], told.values, prepare=True)


def days(
    conn: Connection[TupleRow], shape: Shape, viewed: Collection[date], now: datetime
) -> list[datetime]:
    """Return each day (UTC) that can be compared: older rows may be gone, or came too late.

    `viewed` are days with viewers.
    """
    floor = start_of_day(kept(conn).counted_since(now)) + DAY
    ceiling = start_of_day(now + AHEAD)
    query = SPAN.replace(b"ROWS", ROWS[shape])
    low, high = conn.execute(query, {"floor": floor, "ceiling": ceiling}).fetchone() or (None, None)
    known = [at for at in (low, high) if at is not None]
    midnights = (datetime.combine(day, datetime.min.time(), UTC) for day in viewed)
    known += [min(max(midnight, floor), ceiling) for midnight in midnights]
    if not known:
        return []
    first, last = start_of_day(min(known)), start_of_day(max(known))
    return [first + DAY * number for number in range((last - first).days + 1)]


class Stopped(Exception):
    """This process is to end; the next rebuild begins from the start."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a comparison came to: what is known of the videos, and each day that differs.

    `position` is how far the analytics have taken in the log, of which `events` were read.
    """

    position: int
    events: int
    videos: Difference
    days: Mapping[datetime, Difference]

    @property
    def difference(self) -> Difference:
        return reconciliation.merged([self.videos, *(self.days[day] for day in sorted(self.days))])


class Rebuild:
    """Compares the analytics with what the event log tells, and mends them.

    The staging tables go with the connection to the analytics, which nobody else may use.
    """

    def __init__(
        self,
        log_conn: Connection[TupleRow],
        conn: Connection[TupleRow],
        means: AnalyticsMeans,
        *,
        report: Report,
        stopping: Event,
    ) -> None:
        """Raise NotTakenIn where there are no analytics yet."""
        found = state(conn)
        if found is None:
            raise NotTakenIn("There are no analytics yet; a start with any role makes them.")
        self._log_conn, self._conn = log_conn, conn
        self._means = means
        self._shape = found.shape
        self._store = Store(found.shape, means.repeat)
        self._report, self._stopping = report, stopping
        self._started = time.monotonic()
        conn.execute(reconciliation.TABLES)
        self._staging = StagingTables(log_conn, conn)
        self._goal = self._staging.head()
        self._arrival = Arrival(log_conn, conn, means, self._goal)

    def compare(self) -> Found:
        """Find what differs, and change nothing. Raise NotTakenIn, and Stopped."""
        self._arrival.await_relay(lambda: self._reading(0))
        self._staging.read_rows(self._reading)
        self._staging.read_videos(self._known_until(), self._reading)
        videos = self._compare_videos()
        with self._snapshot():
            viewers = reconciliation.viewers_by_day(self._conn)
        every = days(self._conn, self._shape, viewers, datetime.now(UTC))
        differing: dict[datetime, Difference] = {}
        for number, since in enumerate(every, start=1):
            self._compare_day(since, differing, viewers.get(since.date(), NO_VIEWERS))
            self._tell(ReplayState.COMPARING, number, len(every))
        self._settle(differing)
        return Found(self._arrival.due(), self._staging.events, videos, differing)

    def mend(self, found: Found) -> int:
        """Make what differs what it should be; return in how many places it still does.

        Raise NotTakenIn, Stopped, and psycopg.Error.
        """
        for ids in reconciliation.wrong_videos(self._conn):
            with reconciliation.alone(self._conn, self._shape):
                self._staging.read_videos(self._known_until())
                times = reconciliation.mend_videos(self._conn, self._store, ids)
            if self._shape is Shape.TIMESCALE:
                refresh(self._conn, times, datetime.now(UTC))
        for number, since in enumerate(sorted(found.days), start=1):
            self._mend_day(since)
            self._tell(ReplayState.CATCHING_UP, number, len(found.days))
        return self._left(found)

    def _mend_day(self, since: datetime) -> None:
        day, differs = Day(since, self._arrival.due()), reconciliation.nothing_differs()
        with reconciliation.alone(self._conn, self._shape):
            self._staging.read_rows()
            reconciliation.compare_rows(self._conn, day, differs)
            times = reconciliation.mend_rows(self._conn, self._log_conn, self._store, day)
            reconciliation.compare_derived(self._conn, day, differs, UNKNOWN)
            reconciliation.mend_derived(self._conn, self._shape, day)
        if self._shape is Shape.TIMESCALE:
            reconciliation.refresh_day(self._conn, day, datetime.now(UTC))
            refresh(self._conn, times, datetime.now(UTC))

    def _left(self, found: Found) -> int:
        left: dict[datetime, Difference] = {}
        for since in found.days:
            self._compare_day(since, left, UNKNOWN)
        self._settle(left)
        videos = self._compare_videos() if found.videos.differs else found.videos
        return reconciliation.merged([videos, *left.values()]).total

    def _compare_videos(self) -> Difference:
        found = reconciliation.nothing_differs()
        with self._snapshot():
            self._staging.read_videos(self._known_until())
            reconciliation.compare_videos(self._conn, found)
        return found

    def _compare_day(
        self, since: datetime, differing: dict[datetime, Difference], viewers: Digest
    ) -> None:
        """Compare a day, and put it among those that differ, or take it away from them."""
        found = reconciliation.nothing_differs()
        with self._snapshot():
            day = Day(since, self._arrival.due())
            # Up to its end: what is stored in the snapshot was recorded before it.
            self._staging.read_rows()
            reconciliation.compare_rows(self._conn, day, found)
            reconciliation.compare_derived(self._conn, day, found, viewers)
        differing.pop(since, None)
        if found.differs:
            differing[since] = found

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Open a transaction that sees rows, their sums and the checkpoints of one moment."""
        self._conn.isolation_level = IsolationLevel.REPEATABLE_READ
        try:
            with self._conn.transaction():
                self._conn.execute(SESSION)
                yield
        finally:
            self._conn.isolation_level = None

    def _settle(self, differing: dict[datetime, Difference]) -> None:
        """Take away what was only on its way: through Kafka, or into continuous aggregates."""
        begun = changed = time.monotonic()
        while waiting := [since for since, found in differing.items() if self._may_come(found)]:
            if time.monotonic() - changed > self._means.settle_seconds:
                return
            if time.monotonic() - begun > self._means.arrival_seconds:
                self._arrival.give_up(differing.values())
                return
            self._tell(ReplayState.COMPARING, len(differing) - len(waiting), len(differing))
            time.sleep(LOOK_SECONDS)
            before = dict(differing)
            for since in waiting:
                self._compare_day(since, differing, UNKNOWN)
            if differing != before:
                changed = time.monotonic()

    def _may_come(self, found: Difference) -> bool:
        """Return whether this may be right in a moment, by itself."""
        sums = any(table.table in reconciliation.SUMS for table in found.tables)
        return (self._shape is Shape.TIMESCALE and sums) or self._arrival.misses(found)

    def _known_until(self) -> int:
        """Return the position up to which the videos are known; they come from the log itself."""
        return taken(self._conn, VIDEOS_CONSUMER).position

    def _reading(self, position: int) -> None:
        self._tell(ReplayState.BUILDING, position, max(self._goal, position))

    def _tell(self, state: ReplayState, position: int, target: int) -> None:
        if self._stopping.is_set():
            raise Stopped
        seconds = time.monotonic() - self._started
        events = self._staging.events
        rate = events / seconds if seconds > 0 else 0.0
        self._report(Progress(NAME, state, position, target, events, rate, None))
