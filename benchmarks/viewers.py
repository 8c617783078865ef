"""What a video's stats and a view of it cost after 100,000 viewers, and after a million."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import psycopg
import uvloop
from psycopg import AsyncConnection, Connection, Rollback
from psycopg.rows import TupleRow

from benchmarks.bench import Bench, say
from benchmarks.results import Comparison, Side
from engine.connections import connect
from projections.analytics.calendar import start_of_hour
from projections.analytics.ingest import Store
from projections.analytics.queries import Bucket, Range, read_stats
from projections.analytics.rules import VIEW, Row, Rules
from projections.analytics.schema import Shape, migrate
from projections.analytics.viewers import recount_viewers

VIDEO = UUID(int=1)
DAYS = 30
VIEWS = 1_000
MILLISECONDS = 1e3
GROWN = 1.5

# Each comes twice, mostly on another day; what storing all these views would have left.
VIEWERS = b"""
INSERT INTO analytics.video_viewers (video_id, viewer, day, hour)
SELECT %(video)s, 'viewer-' || mod(n, %(viewers)s), (at AT TIME ZONE 'UTC')::date,
       max(date_trunc('hour', at, 'UTC'))
FROM (SELECT n, %(now)s - random() * make_interval(days => %(days)s) AS at
      FROM generate_series(0, 2 * %(viewers)s - 1) AS n) AS drawn
GROUP BY 2, 3 ORDER BY 3
"""
ROLLUPS = tuple(
    f"""
INSERT INTO analytics.video_{table}
SELECT date_trunc('{unit}', hour, 'UTC'), video_id, count(*), count(*), 0, 0, 0, 0, 0
FROM analytics.video_viewers GROUP BY 1, 2
""".encode()
    for table, unit in (("hourly", "hour"), ("daily", "day"))
)
# How they were counted before there were counts by the hour.
ONE_BY_ONE = b"""
WITH viewed AS MATERIALIZED (
    SELECT day, viewer FROM analytics.video_viewers
    WHERE video_id = %(video)s AND hour >= %(since)s)
SELECT day, count(*) FROM viewed GROUP BY day
UNION ALL SELECT NULL, count(*) FROM (SELECT viewer FROM viewed GROUP BY viewer) AS viewers
"""


@dataclass(frozen=True)
class Place:
    """A database with so many viewers of one video, and connections that read and store."""

    viewers: int
    now: datetime
    conn: AsyncConnection[TupleRow]
    storing: Connection[TupleRow]

    def called(self, what: str) -> str:
        return f"{what}; {self.viewers:,} viewers in {DAYS} days"

    async def stats(self, range_: Range, bucket: Bucket) -> None:
        await read_stats(self.conn, {VIDEO: self.now}, range_, bucket, self.now)

    async def one_by_one(self) -> None:
        values = {"video": VIDEO, "since": self.now - timedelta(days=DAYS)}
        await (await self.conn.execute(ONE_BY_ONE, values)).fetchall()

    def store(self) -> None:
        """Count views of some who were here before and some who were not, and take them back."""
        store, now = Store(Shape.PLAIN, Rules()), self.now
        views = [
            Row(str(uuid4()), str(VIDEO), f"viewer-{each}", VIEW, now, {}, str(uuid4()))
            for each in random.sample(range(2 * self.viewers), VIEWS)
        ]
        with self.storing.transaction():
            store.add(self.storing, views)
            raise Rollback


def run(bench: Bench) -> list[Comparison]:
    """Times in ms, nothing cached: the stats of the video, and storing 1,000 views of it."""
    rounds, calls = bench.size(5, 1), bench.size(30, 2)
    sizes = bench.size(50_000, 500), bench.size(500_000, 1_000)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        few, many = places = [_filled(bench, runner, stack, viewers) for viewers in sizes]

        def repeat(work: Callable[[], object], times: int, _: int) -> float:
            started = time.perf_counter()
            for _ in range(times):
                work()
            return (time.perf_counter() - started) / times * MILLISECONDS

        def ask(place: Place, range_: Range, bucket: Bucket) -> Callable[[], None]:
            return lambda: runner.run(place.stats(range_, bucket))

        reads = {
            "stats of a video, 30d": (Range.MONTH, Bucket.DAY),
            "stats of a video, 24h": (Range.DAY, Bucket.HOUR),
            "stats of a video, all": (Range.ALL, Bucket.DAY),
        }
        storing, counting = f"storing {VIEWS:,} views", "viewers one by one, 30d"
        contenders: dict[str, Callable[[int], float]] = {}
        for place in places:
            for what, how in reads.items():
                contenders[place.called(what)] = partial(repeat, ask(place, *how), calls)
            contenders[place.called(storing)] = partial(repeat, place.store, 2)
            one = partial(lambda place: runner.run(place.one_by_one()), place)
            contenders[place.called(counting)] = partial(repeat, one, 1)
        found = bench.interleave(rounds, contenders)
    sides = {name: Side(name, times) for name, times in found.items()}

    def against(ours: str, baseline: str, at_most: float | None = None) -> Comparison:
        return Comparison("viewers", "ms", sides[ours], sides[baseline], at_most=at_most)

    return [
        *(against(many.called(what), few.called(what), GROWN) for what in reads),
        # All over a table that no longer fits into the cache.
        against(many.called(storing), few.called(storing)),
        against(many.called("stats of a video, 30d"), many.called(counting)),
    ]


def _filled(bench: Bench, runner: asyncio.Runner, stack: ExitStack, viewers: int) -> Place:
    url = bench.database()
    now = start_of_hour(datetime.now(UTC)) - timedelta(minutes=20)
    say(f"drawing {viewers:,} viewers")
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
        values = {"video": VIDEO, "viewers": viewers, "now": now, "days": DAYS}
        conn.execute(VIEWERS, values)
        for statement in ROLLUPS:
            conn.execute(statement)
        recount_viewers(conn, [VIDEO])
        conn.execute(b"VACUUM (ANALYZE)")
    opened = runner.run(AsyncConnection.connect(url, autocommit=True))
    stack.callback(lambda: runner.run(opened.close()))
    return Place(viewers, now, opened, stack.enter_context(connect(url, "bench")))
