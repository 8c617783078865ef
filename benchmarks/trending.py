"""What a ranking and the stats of a video cost after a million events, and after ten million."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from statistics import median, quantiles
from uuid import UUID

import psycopg
import uvloop
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from benchmarks.bench import Bench, medians, say
from benchmarks.filling import SKEW, fill_analytics
from benchmarks.results import Comparison, Side
from projections.analytics.settling import settle
from projections.analytics.stats import Bucket, Range, stats_of
from projections.analytics.trending import Formula, Trending
from projections.analytics.windows import Window

LIMIT = 20
MILLISECONDS = 1e3
STATS = "stats of a video, 30 days"

# The ranking of the same window as the formula has it, from the events: what rollups are for.
FROM_EVENTS = b"""
SELECT video_id, base * power(2, -extract(epoch FROM %(now)s - completed_at)::float8 / 604800)
FROM (SELECT video_id, sum(
          CASE event_type
              WHEN 'view' THEN 1.0 * ((metadata->>'counts')::boolean
                                      AND NOT (metadata->>'own')::boolean)::int
              WHEN 'like' THEN 5.0 * (metadata->>'delta')::int
              WHEN 'comment' THEN 3.0 * (metadata->>'delta')::int
              WHEN 'watch_time' THEN 0.1 * (metadata->>'seconds')::float8 / 60
              ELSE 0 END
          * CASE WHEN "timestamp" >= %(now)s - interval '24 hours' THEN 2 ELSE 1 END) AS base
      FROM analytics.video_analytics
      WHERE "timestamp" >= %(now)s - interval '30 days'
      GROUP BY video_id) AS sums
JOIN analytics.videos USING (video_id)
WHERE NOT removed ORDER BY 2 DESC LIMIT 20
"""


@dataclass(frozen=True)
class Place:
    """A database with so many events until `now`."""

    events: int
    videos: int
    now: datetime
    conn: AsyncConnection[TupleRow]

    def called(self, what: str) -> str:
        return f"{what}, {self.events:,} events"

    async def rank(self, window: Window) -> None:
        await Trending(Formula()).rank(self.conn, window, limit=LIMIT, now=self.now)

    async def rank_events(self) -> None:
        cursor = await self.conn.execute(FROM_EVENTS, {"now": self.now})
        await cursor.fetchall()

    async def stats(self) -> None:
        """Of a video that somebody watches."""
        video = UUID(int=int(self.videos * random.random() ** SKEW))
        await stats_of(self.conn, video, Range.MONTH, Bucket.DAY, began=self.now, now=self.now)


def run(bench: Bench) -> list[Comparison]:
    """Times in ms of one call, nothing cached; the p99 beside the median."""
    sizes = bench.size(1_000_000, 2_000), bench.size(10_000_000, 20_000)
    videos, rounds, calls = bench.size(100_000, 200), bench.size(5, 2), bench.size(40, 3)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        few, many = (_filled(bench, runner, stack, events, videos) for events in sizes)
        contenders: dict[str, Callable[[int], dict[str, float]]] = {}
        for place in (few, many):
            for window in Window:
                work = partial(place.rank, window)
                contenders[place.called(window)] = partial(_timed, runner, work, calls)
            contenders[place.called(STATS)] = partial(_timed, runner, place.stats, calls * 5)
            raw = partial(_timed, runner, place.rank_events, bench.size(2, 1))
            contenders[place.called("from the events themselves")] = raw
        found = bench.interleave(rounds, contenders)
    sides = {
        name: Side(name, [each["p50"] for each in notes], medians(list(notes)))
        for name, notes in found.items()
    }
    grown = [
        Comparison("trending", "ms", sides[many.called(what)], sides[few.called(what)], at_most=1.5)
        for what in (*Window, STATS)
    ]
    raw_name = "from the events themselves"
    return [
        *grown,
        *(
            Comparison(
                "trending", "ms", sides[place.called(Window.MONTH)], sides[place.called(raw_name)]
            )
            for place in (few, many)
        ),
    ]


def _filled(
    bench: Bench, runner: asyncio.Runner, stack: ExitStack, events: int, videos: int
) -> Place:
    url, now = bench.database(), datetime.now(UTC)
    fill_analytics(url, events, videos, now)
    say(f"settling the sums of {events:,} events")
    with psycopg.connect(url, autocommit=True) as conn:
        for window in Window:
            started = time.perf_counter()
            settle(conn, window, recent_hours=Formula().recent_hours, now=now)
            say(f"{window}: {time.perf_counter() - started:.1f} s")
        conn.execute(b"VACUUM (ANALYZE) analytics.trending_sums")
    opened = runner.run(AsyncConnection.connect(url, autocommit=True))
    stack.callback(lambda: runner.run(opened.close()))
    return Place(events, videos, now, opened)


def _timed(
    runner: asyncio.Runner, work: Callable[[], Awaitable[None]], calls: int, _round: int
) -> dict[str, float]:
    """The median and the 99th percentile of so many calls, in ms."""

    async def go() -> list[float]:
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            await work()
            times.append((time.perf_counter() - started) * MILLISECONDS)
        return times

    times = runner.run(go())
    most = quantiles(times, n=100, method="inclusive")[98] if len(times) > 1 else times[0]
    return {"p50": median(times), "p99": most}
