"""Compares the analytics with the event log and with their own raw rows, and mends the difference.

Views, watch time and shares have no other source than their rows: those are never removed. Each
day is compared in one snapshot, and mended in one transaction in which nobody else stores; so reads
and ingest go on, and whoever is killed leaves days that are right and days as they were.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from threading import Event
from typing import NamedTuple

from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from engine.comparison import SESSION, Difference
from engine.replay.records import Progress, ReplayState, Report
from infra.advisory_locks import job_lock
from infra.errors import OperatorError
from projections.analytics import reconciliation
from projections.analytics.calendar import DAY, start_of_day
from projections.analytics.ingest import Store
from projections.analytics.queries import COUNTS_CONSUMER, VIDEOS_CONSUMER
from projections.analytics.reconciliation import Digest, day_of
from projections.analytics.rules import AHEAD, Rules
from projections.analytics.schema import Shape, refresh, refresh_day, retention_of, state
from projections.analytics.staging_tables import StagingTables
from projections.analytics.viewers import recount_viewers

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
    SELECT min("timestamp"), max("timestamp") FROM told_by_log
    UNION ALL SELECT min(bucket), max(bucket) FROM analytics.video_daily
    UNION ALL SELECT min(bucket), max(bucket) FROM analytics.video_hourly
    UNION ALL (ROWS)) AS seen(low, high)
"""

KNOWN = b"SELECT to_regclass('backlot_checkpoints') IS NOT NULL"
# The newest first: checkpoints of the log and of the topics may stand side by side.
CHECKPOINTS = b"""
SELECT source, position FROM backlot_checkpoints
WHERE kind = 'consumer' AND subscription = %b ORDER BY updated_at DESC
"""
RELAYED = b"SELECT position FROM backlot_checkpoints WHERE kind = 'relay' AND source = 'events'"
ACTIVE = b"""
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND classid = %b::bigint::oid AND objid = %b::bigint::oid
      AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
LOOK_SECONDS = 0.5

NAME = "analytics"
NO_VIEWERS = (0, 0)
# Forces the comparison of each viewer of a day.
UNKNOWN = (-1, 0)


def days(
    conn: Connection[TupleRow], shape: Shape, viewed: Collection[date], now: datetime
) -> list[datetime]:
    """Return each day (UTC) that can be compared: older rows may be gone, or came too late.

    `viewed` are days with viewers.
    """
    floor = start_of_day(retention_of(conn).counted_since(now)) + DAY
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


class NotTakenIn(OperatorError):
    """There is nothing to compare with, or what was recorded is still on its way."""


@dataclass(frozen=True, slots=True)
class AnalyticsMeans:
    """Where the analytics are stored, how they are counted, and for how long they are kept.

    `arrival_seconds` is how long is waited for what is on its way, and `settle_seconds` without
    change after which nothing more is expected.
    """

    url: str
    rules: Rules
    retention: timedelta = timedelta(days=730)
    arrival_seconds: float = 60.0
    settle_seconds: float = 10.0


class Stopped(Exception):
    """This process is to end; the next rebuild begins from the start."""


class ConsumerPosition(NamedTuple):
    """The position up to which the log itself was read; `by_kafka` where topics are read now."""

    position: int
    by_kafka: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a comparison came to: what is known of the videos, each day that differs, the counts
    of viewers, and what single viewers bring to trending.

    `position` is how far the analytics have taken in the log, of which `events` were read.
    """

    position: int
    events: int
    videos: Difference
    days: Mapping[datetime, Difference]
    counts: Difference
    participants: Difference

    @property
    def difference(self) -> Difference:
        days = [self.days[day] for day in sorted(self.days)]
        return reconciliation.merged([self.videos, *days, self.counts, self.participants])


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
        self._store = Store(found.shape, means.rules)
        self._report, self._stopping = report, stopping
        self._started = time.monotonic()
        conn.execute(reconciliation.TABLES)
        self._staging = StagingTables(log_conn, conn)
        # The events up to here are stored, or on their way through Kafka.
        self._goal = self._staging.head()

    def compare(self) -> Found:
        """Find what differs, and change nothing. Raise NotTakenIn, and Stopped."""
        self._await_relay()
        self._staging.read_rows(self._tell_reading)
        self._staging.read_videos(self._known_until(), self._tell_reading)
        videos = self._compare_videos()
        with self._snapshot():
            viewers = reconciliation.viewers_by_day(self._conn)
        every = days(self._conn, self._store.shape, viewers, datetime.now(UTC))
        differing: dict[datetime, Difference] = {}
        for number, since in enumerate(every, start=1):
            self._compare_day(since, differing, viewers.get(since.date(), NO_VIEWERS))
            self._tell(ReplayState.COMPARING, number, len(every))
        self._settle(differing)
        counts, participants = self._compare_counts(), self._compare_participants()
        events = self._staging.events
        return Found(self._due(), events, videos, differing, counts, participants)

    def mend(self, found: Found) -> int:
        """Make what differs what it should be; return in how many places it still does.

        Raise NotTakenIn, Stopped, and psycopg.Error.
        """
        for ids in reconciliation.wrong_videos(self._conn):
            with reconciliation.alone(self._conn, self._store.shape):
                self._staging.read_videos(self._known_until())
                times = reconciliation.mend_videos(self._conn, self._store, ids)
            if self._store.shape is Shape.TIMESCALE:
                refresh(self._conn, times, datetime.now(UTC))
        for number, since in enumerate(sorted(found.days), start=1):
            self._mend_day(since)
            self._tell(ReplayState.CATCHING_UP, number, len(found.days))
        counts, participants = self._mend_counts(), self._mend_participants()
        left: dict[datetime, Difference] = {}
        for since in found.days:
            self._compare_day(since, left, UNKNOWN)
        self._settle(left)
        videos = self._compare_videos() if found.videos.differs else found.videos
        return reconciliation.merged([videos, *left.values(), counts, participants]).total

    def _mend_counts(self) -> Difference:
        """Make the counts what the viewers of the mended days come to; return what is left."""
        if self._compare_counts().differs:
            for ids in reconciliation.miscounted_videos(self._conn):
                with reconciliation.alone(self._conn, self._store.shape):
                    recount_viewers(self._conn, ids)
        return self._compare_counts()

    def _mend_participants(self) -> Difference:
        """Judge again who brings something else to trending; return what is left."""
        if self._compare_participants().differs:
            for keys in reconciliation.misjudged_participants(self._conn):
                with reconciliation.alone(self._conn, self._store.shape):
                    times = reconciliation.mend_participants(
                        self._conn, self._store, keys, self._counted_since()
                    )
                if self._store.shape is Shape.TIMESCALE:
                    refresh(self._conn, times, datetime.now(UTC))
        return self._compare_participants()

    def _mend_day(self, since: datetime) -> None:
        day, differs = day_of(since, self._due()), reconciliation.nothing_differs()
        with reconciliation.alone(self._conn, self._store.shape):
            self._staging.read_rows()
            reconciliation.compare_rows(self._conn, day, differs)
            times = reconciliation.mend_rows(self._conn, self._log_conn, self._store, day)
            reconciliation.compare_derived(self._conn, day, differs, UNKNOWN)
            reconciliation.mend_derived(self._conn, self._store.shape, day)
        if self._store.shape is Shape.TIMESCALE:
            refresh_day(self._conn, since, datetime.now(UTC))
            refresh(self._conn, times, datetime.now(UTC))

    def _compare_videos(self) -> Difference:
        found = reconciliation.nothing_differs()
        with self._snapshot():
            self._staging.read_videos(self._known_until())
            reconciliation.compare_videos(self._conn, found)
        return found

    def _compare_counts(self) -> Difference:
        found = reconciliation.nothing_differs()
        with self._snapshot():
            reconciliation.compare_counts(self._conn, found)
        return found

    def _compare_participants(self) -> Difference:
        found = reconciliation.nothing_differs()
        with self._snapshot():
            self._staging.read_videos(self._known_until())
            since, rules = self._counted_since(), self._means.rules
            reconciliation.compare_participants(self._conn, rules, since, found)
        return found

    def _counted_since(self) -> datetime:
        return retention_of(self._conn).counted_since(datetime.now(UTC))

    def _compare_day(
        self, since: datetime, differing: dict[datetime, Difference], viewers: Digest
    ) -> None:
        """Compare a day, and put it among those that differ, or take it away from them."""
        found = reconciliation.nothing_differs()
        with self._snapshot():
            day = day_of(since, self._due())
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
                if any(self._misses(each) for each in differing.values()):
                    raise NotTakenIn(
                        "Events are still coming in through Kafka: wait until the lag of the "
                        f"consumer `{COUNTS_CONSUMER}` is 0 (`backlot_consumer_lag_messages`), "
                        "and ask again."
                    )
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
        return (self._store.shape is Shape.TIMESCALE and sums) or self._misses(found)

    def _misses(self, found: Difference) -> bool:
        """Return whether something is missing that Kafka may still bring."""
        missing = any(table.missing for table in found.tables if table.table == reconciliation.ROWS)
        return missing and self._checkpoint(COUNTS_CONSUMER).by_kafka

    def _due(self) -> int:
        """Return the position up to which likes and comments have to be stored."""
        checkpoint = self._checkpoint(COUNTS_CONSUMER)
        return self._goal if checkpoint.by_kafka else checkpoint.position

    def _known_until(self) -> int:
        """Return the position up to which the videos are known; they come from the log itself."""
        return self._checkpoint(VIDEOS_CONSUMER).position

    def _checkpoint(self, consumer: str) -> ConsumerPosition:
        """Return how far a consumer is; raise NotTakenIn where it has never begun."""
        (known,) = self._conn.execute(KNOWN).fetchone() or (False,)
        found = self._conn.execute(CHECKPOINTS, (consumer,)).fetchall() if known else []
        if not found:
            raise NotTakenIn(
                "The analytics have not taken anything in yet; a process with the role "
                "`consumers` does"
            )
        by_source: dict[str, int] = dict(found)
        by_kafka = found[0][0] not in ("events", "telemetry")
        return ConsumerPosition(by_source.get("events", 0), by_kafka)

    def _await_relay(self) -> None:
        """Return once the relay has published all up to the goal, where Kafka brings it.

        Raise NotTakenIn when the relay or the consumer does not work.
        """
        deadline = time.monotonic() + self._means.arrival_seconds
        while self._checkpoint(COUNTS_CONSUMER).by_kafka:
            class_id, key = job_lock(f"consumer {COUNTS_CONSUMER}")
            (active,) = self._conn.execute(ACTIVE, (int(class_id), key)).fetchone() or (False,)
            if not active:
                raise NotTakenIn(
                    "No process takes in what Kafka brings: start one with the role "
                    "`consumers`, and ask again."
                )
            (relayed,) = self._log_conn.execute(RELAYED).fetchone() or (0,)
            if relayed >= self._goal:
                return
            if time.monotonic() > deadline:
                raise NotTakenIn(
                    f"The relay is at position {relayed} of {self._goal}: what was recorded is "
                    "not in Kafka yet. See that Kafka and a process with the role `relay` run."
                )
            self._tell_reading(0)
            time.sleep(LOOK_SECONDS)

    def _tell_reading(self, position: int) -> None:
        self._tell(ReplayState.BUILDING, position, max(self._goal, position))

    def _tell(self, state: ReplayState, position: int, target: int) -> None:
        if self._stopping.is_set():
            raise Stopped
        seconds = time.monotonic() - self._started
        events = self._staging.events
        rate = events / seconds if seconds > 0 else 0.0
        self._report(Progress(NAME, state, position, target, events, rate, None))
