"""Compares the analytics with the event log and with their own raw rows, and mends the difference.

Views, watch time and shares have no other source than their rows: those are never removed. Each
day is compared in one snapshot, and mended in one transaction in which nobody else stores; so reads
and ingest go on, and whoever is killed leaves days that are right and days as they were.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event

from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from projections.analytics.migrating import Shape, state
from projections.analytics.rebuilding import checking, checking_sql, mending, places
from projections.analytics.rebuilding.arriving import AnalyticsMeans, Arrival
from projections.analytics.rebuilding.aside import Aside
from projections.analytics.rebuilding.checking import Day, Digest
from projections.analytics.rebuilding.places import NotTakenIn
from projections.analytics.rebuilding.spans import days
from projections.analytics.refreshing import refresh
from projections.analytics.storing import Store
from projections.proving.compare import Difference
from projections.proving.comparing_sql import SESSION
from projections.replaying.progress import Progress, Report
from projections.replaying.rows import ReplayState

NAME = "analytics"
LOOK_SECONDS = 0.5
NO_VIEWERS = (0, 0)
# Forces the comparison of each viewer of a day.
UNKNOWN = (-1, 0)


class Stopped(Exception):
    """This process is to end; whoever goes on begins from the start."""


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
        return checking.merged([self.videos, *(self.days[day] for day in sorted(self.days))])


class Rebuild:
    """The analytics as the event log tells them, beside those that there are.

    What is built aside goes with the connection to the analytics, which nobody else may use.
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
        """Raises NotTakenIn where there are no analytics yet."""
        found = state(conn)
        if found is None:
            raise NotTakenIn("There are no analytics yet; a start with any role makes them.")
        self._log_conn, self._conn = log_conn, conn
        self._means = means
        self._shape = found.shape
        self._store = Store(found.shape, means.repeat)
        self._report, self._stopping = report, stopping
        self._started = time.monotonic()
        conn.execute(checking_sql.TABLES)
        self._aside = Aside(log_conn, conn)
        self._goal = self._aside.head()
        self._arrival = Arrival(log_conn, conn, means, self._goal)

    def compare(self) -> Found:
        """Find what differs, and change nothing. Raises NotTakenIn, and Stopped."""
        self._arrival.await_relay(self._waiting)
        self._aside.read_rows(self._reading)
        self._aside.read_videos(self._known_until(), self._reading)
        videos = self._compare_videos()
        with self._snapshot():
            viewers = checking.viewers_by_day(self._conn)
        every = days(self._conn, self._shape, viewers, datetime.now(UTC))
        differing: dict[datetime, Difference] = {}
        for number, since in enumerate(every, start=1):
            self._compare_day(since, differing, viewers.get(since.date(), NO_VIEWERS))
            self._tell(ReplayState.COMPARING, number, len(every))
        self._settle(differing)
        return Found(self._arrival.due(), self._aside.events, videos, differing)

    def mend(self, found: Found) -> int:
        """Make what differs what it should be; returns in how many places it still does.

        Raises NotTakenIn, Stopped, and psycopg.Error.
        """
        for ids in mending.wrong_videos(self._conn):
            with mending.alone(self._conn, self._shape):
                self._aside.read_videos(self._known_until())
                times = mending.mend_videos(self._conn, self._store, ids)
            if self._shape is Shape.TIMESCALE:
                refresh(self._conn, times, datetime.now(UTC))
        for number, since in enumerate(sorted(found.days), start=1):
            self._mend_day(since)
            self._tell(ReplayState.CATCHING_UP, number, len(found.days))
        return self._left(found)

    def _mend_day(self, since: datetime) -> None:
        day, differs = Day(since, self._arrival.due()), checking.nothing_differs()
        with mending.alone(self._conn, self._shape):
            self._aside.read_rows()
            checking.compare_rows(self._conn, day, differs)
            times = mending.mend_rows(self._conn, self._log_conn, self._store, day)
            checking.compare_derived(self._conn, day, differs, UNKNOWN)
            mending.mend_derived(self._conn, self._shape, day)
        if self._shape is Shape.TIMESCALE:
            mending.refresh_day(self._conn, day, datetime.now(UTC))
            refresh(self._conn, times, datetime.now(UTC))

    def _left(self, found: Found) -> int:
        left: dict[datetime, Difference] = {}
        for since in found.days:
            self._compare_day(since, left, UNKNOWN)
        self._settle(left)
        videos = self._compare_videos() if found.videos.differs else found.videos
        return checking.merged([videos, *left.values()]).total

    def _compare_videos(self) -> Difference:
        found = checking.nothing_differs()
        with self._snapshot():
            self._aside.read_videos(self._known_until())
            checking.compare_videos(self._conn, found)
        return found

    def _compare_day(
        self, since: datetime, differing: dict[datetime, Difference], viewers: Digest
    ) -> None:
        """Look at a day, and put it among those that differ, or take it away from them."""
        found = checking.nothing_differs()
        with self._snapshot():
            day = Day(since, self._arrival.due())
            # Up to its end: what is stored in the snapshot was recorded before it.
            self._aside.read_rows()
            checking.compare_rows(self._conn, day, found)
            checking.compare_derived(self._conn, day, found, viewers)
        differing.pop(since, None)
        if found.differs:
            differing[since] = found

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """A transaction that sees one moment: rows, what follows from them, and the places."""
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
        """Whether this may be right in a moment, by itself."""
        sums = any(table.table in checking_sql.SUMS for table in found.tables)
        return (self._shape is Shape.TIMESCALE and sums) or self._arrival.misses(found)

    def _known_until(self) -> int:
        """The position up to which the videos are known; they are read from the log itself."""
        return places.taken(self._conn, places.VIDEOS).position

    def _waiting(self) -> None:
        self._tell(ReplayState.BUILDING, 0, self._goal)

    def _reading(self, position: int) -> None:
        self._tell(ReplayState.BUILDING, position, max(self._goal, position))

    def _tell(self, state: ReplayState, position: int, target: int) -> None:
        if self._stopping.is_set():
            raise Stopped
        seconds = time.monotonic() - self._started
        events = self._aside.events
        rate = events / seconds if seconds > 0 else 0.0
        self._report(Progress(NAME, state, position, target, events, rate, None))
