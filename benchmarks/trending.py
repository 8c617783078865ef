"""What a ranking and the stats of a video cost after a million events, and after ten million."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median, quantiles

import psycopg
import uvloop
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from benchmarks.analytics import SKEW, History, fill_analytics, video_of
from benchmarks.bench import Bench, medians, say
from benchmarks.results import Comparison, Side
from projections.analytics.calendar import start_of_hour
from projections.analytics.queries import Bucket, Range, read_stats
from projections.trending import Formula, Trending, Window, settle

LIMIT = 20
MILLISECONDS = 1e3
GROWN = 1.5
# Stats of one that somebody watches, and of videos by how many are more popular.
STATS = {
    "stats of a video that somebody watches": None,
    "stats of the 10,000th most viewed video": 9_999,
    "stats of the 1,000th most viewed video": 999,
    "stats of the most viewed video": 0,
}
EVENTS = "from the events themselves, 30d"

# The ranking of the same window as the formula has it, from the events: what rollups are for.
FROM_EVENTS = b"""
SELECT video_id, base * greatest(
           0.3, power(2, -extract(epoch FROM %(now)s - completed_at)::float8 / 259200))
FROM (SELECT video_id, sum(
          CASE event_type
              WHEN 'view' THEN 1.0 * ((metadata->>'counts')::boolean
                                      AND NOT (metadata->>'own')::boolean)::int
              WHEN 'like' THEN 5.0 * (metadata->>'delta')::int
              WHEN 'comment' THEN 3.0 * (metadata->>'delta')::int
              WHEN 'watch_time' THEN 0.1 * (metadata->>'seconds')::float8 / 60
              ELSE 0 END
          * CASE WHEN "timestamp" >= %(now)s - interval '8 hours' THEN 4 ELSE 1 END) AS base
      FROM analytics.video_analytics
      WHERE "timestamp" >= %(now)s - interval '30 days'
      GROUP BY video_id) AS sums
JOIN analytics.videos USING (video_id)
WHERE NOT removed ORDER BY 2 DESC LIMIT 20
"""

Times = dict[str, float]
Work = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Place:
    """A database with a history."""

    history: History
    conn: AsyncConnection[TupleRow]

    def called(self, what: str) -> str:
        return f"{what}; {self.history.events:,} events of {self.history.days} days"

    async def rank(self, window: Window, category: str | None = None) -> None:
        trending, now = Trending(Formula()), self.history.now
        await trending.rank(self.conn, window, limit=LIMIT, now=now, category=category)

    async def rank_events(self) -> None:
        cursor = await self.conn.execute(FROM_EVENTS, {"now": self.history.now})
        await cursor.fetchall()

    async def stats(self, rank: int | None) -> None:
        if rank is None:
            rank = int(self.history.videos * random.random() ** SKEW)
        now, video = self.history.now, video_of(rank)
        await read_stats(self.conn, {video: now}, Range.MONTH, Bucket.DAY, now)

    def work(self) -> dict[str, Work]:
        """What is measured here, by name."""
        work: dict[str, Work] = {
            f"trending {window}": partial(self.rank, window) for window in Window
        }
        work["trending 7d of a category"] = partial(self.rank, Window.WEEK, "art")
        if self.history.raw:
            work |= {name: partial(self.stats, rank) for name, rank in STATS.items()}
        return work


def run(bench: Bench) -> list[Comparison]:
    """Times in ms of one call, nothing cached; the p99 beside the median.

    At forty minutes past the hour, when as much is not settled yet as on the average.
    """
    now = start_of_hour(datetime.now(UTC)) - timedelta(minutes=20)
    few = bench.size(100_000, 2_000, large=1_000_000)
    sizes = few, 10 * few
    videos = bench.size(100_000, 200)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        pairs = [
            [
                _filled(bench, runner, stack, History(events, days, videos, now, raw=days == 30))
                for events in sizes
            ]
            for days in (30, 90)
        ]
        sides = _measured(bench, runner, [place for pair in pairs for place in pair])
    return [
        *(each for few, many in pairs for each in _grown(sides, few, many)),
        *(_against_events(sides, place) for place in pairs[0]),
    ]


def _filled(bench: Bench, runner: asyncio.Runner, stack: ExitStack, history: History) -> Place:
    url = bench.database()
    fill_analytics(url, history)
    say("settling their sums")
    with psycopg.connect(url, autocommit=True) as conn:
        for window in Window:
            started = time.perf_counter()
            settle(conn, window, formula=Formula(), now=history.now)
            say(f"{window}: {time.perf_counter() - started:.1f} s")
        conn.execute(b"VACUUM (ANALYZE) analytics.trending_sums")
    opened = runner.run(AsyncConnection.connect(url, autocommit=True))
    stack.callback(lambda: runner.run(opened.close()))
    return Place(history, opened)


def _measured(bench: Bench, runner: asyncio.Runner, places: list[Place]) -> Mapping[str, Side]:
    rounds, calls = bench.size(5, 2), bench.size(40, 3)
    contenders: dict[str, Callable[[int], Times]] = {}
    for what in places[0].work():
        for place in places:
            if what in place.work():
                work = place.work()[what]
                contenders[place.called(what)] = partial(_timed, runner, work, calls)
    for place in places:
        if place.history.raw:
            contenders[place.called(EVENTS)] = partial(_timed, runner, place.rank_events, 1)
    found = bench.interleave(rounds, contenders)
    return {
        name: Side(name, [each["p50"] for each in times], medians(list(times)))
        for name, times in found.items()
    }


def _grown(sides: Mapping[str, Side], few: Place, many: Place) -> list[Comparison]:
    return [
        Comparison(
            "trending",
            "ms",
            sides[many.called(what)],
            sides[few.called(what)],
            at_most=GROWN,
        )
        for what in many.work()
    ]


def _against_events(sides: Mapping[str, Side], place: Place) -> Comparison:
    ours = sides[place.called(f"trending {Window.MONTH}")]
    return Comparison("trending", "ms", ours, sides[place.called(EVENTS)])


def _timed(runner: asyncio.Runner, work: Work, calls: int, round_: int) -> Times:
    """The median and the 99th percentile of so many calls, in ms; the same calls in each place."""

    async def go() -> list[float]:
        random.seed(round_)
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            await work()
            times.append((time.perf_counter() - started) * MILLISECONDS)
        return times

    times = runner.run(go())
    most = quantiles(times, n=100, method="inclusive")[98] if len(times) > 1 else times[0]
    return {"p50": median(times), "p99": most}
