"""What a question for candidates costs, and one more engagement, as the tables grow."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median, quantiles
from uuid import UUID

import psutil
import uvloop
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from benchmarks.bench import Bench, medians
from benchmarks.engagements import Size, fill_engagements
from benchmarks.results import Comparison, Side
from engine.connections import connect
from engine.projection import columns
from projections.likes import Likes
from projections.recommendations.attention import AttentionCache
from projections.recommendations.candidates import material_for
from projections.recommendations.co_occurrence import Engagement, keep
from projections.recommendations.model import EngagementKind, Weighing
from projections.recommendations.profiles import profile_of
from projections.trending import Ranked

MILLISECONDS, MICROSECONDS = 1e3, 1e6
# As many as a sink takes at once when it is a few seconds behind.
BATCH = 1_000
WEIGHING = Weighing()
ASKED, KEPT = "profile and candidates", "keeping one engagement"
ROWED = "its pairs alone, a row each"
KEPT_CPU = 500.0
TRENDING = 50
SIZES = b"""
SELECT max(cardinality(l.neighbours) + cardinality(d.neighbours)),
       pg_total_relation_size('analytics.neighbour_lists')
       + pg_total_relation_size('analytics.neighbour_deltas'),
       sum(pg_column_size(l.*) + pg_column_size(d.*))
FROM analytics.neighbour_deltas AS d JOIN analytics.neighbour_lists AS l USING (number)
"""
# What the former releases did: a row for each neighbour of each video.
ROWS = b"""
CREATE TABLE pair_rows (
    video_id uuid, neighbour_id uuid, weight float8 NOT NULL, as_of float8 NOT NULL)
    WITH (fillfactor = 70);
INSERT INTO pair_rows
SELECT video_id, neighbour_id, sum(weight), max(as_of) FROM analytics.neighbours GROUP BY 1, 2;
ALTER TABLE pair_rows ADD PRIMARY KEY (video_id, neighbour_id);
VACUUM (ANALYZE) pair_rows
"""
UPSERT = b"""
WITH pairs AS (
    SELECT * FROM unnest(%s::uuid[], %s::uuid[]) AS told (one, other))
INSERT INTO pair_rows AS kept
SELECT one, other, 1, %s FROM pairs UNION ALL SELECT other, one, 1, %s FROM pairs ORDER BY 1, 2
ON CONFLICT (video_id, neighbour_id) DO UPDATE
SET weight = kept.weight * power(2::float8, (kept.as_of - excluded.as_of) / 2592000)
             + excluded.weight,
    as_of = excluded.as_of
"""


@dataclass(frozen=True)
class Place:
    """A database with so many engagements until `now`."""

    size: Size
    now: datetime
    conn: Connection[TupleRow]
    asking: AsyncConnection[TupleRow]

    def cpu_seconds(self) -> float:
        """What PostgreSQL's process for `conn` and this program have taken so far."""
        times = psutil.Process(self.conn.info.backend_pid).cpu_times()
        return float(times.user + times.system) + time.process_time()

    def called(self, what: str) -> str:
        videos, engagements = self.size.videos, self.size.engagements
        return f"{what}; {engagements:,} engagements, {videos:,} videos"


def run(bench: Bench) -> list[Comparison]:
    """Times of one question in ms (p99 beside the median), and of one engagement in µs.

    The questions are of users who have all watched and liked; nothing is cached. The engagements
    are of such users too, in batches as a sink takes them, and nearly all of videos that are new
    to them. Ten times as many of them must cost the same; more videos have more neighbours, which
    PostgreSQL's cache holds less of. CPU is told beside the time that passes.
    """
    tiny = Size(bench.size(10_000, 400), bench.size(1_000, 20), bench.size(50_000, 1_000))
    videos, viewers = bench.size(50_000, 800, large=100_000), bench.size(2_000, 20, large=10_000)
    engagements = bench.size(30_000, 1_000, large=500_000)
    few = Size(videos, viewers, engagements)
    many = Size(videos, 10 * viewers, 10 * engagements)
    rounds, calls, batches = bench.size(3, 2), bench.size(60, 5), bench.size(10, 1)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        places = [_filled(bench, runner, stack, size) for size in (tiny, few, many)]
        contenders: dict[str, Callable[[int], dict[str, float]]] = {}
        for place in places:
            contenders[place.called(ASKED)] = partial(_asked, runner, place, calls)
            contenders[place.called(KEPT)] = partial(_kept, place, batches)
        for statement in ROWS.split(b";"):
            places[1].conn.execute(statement)
        contenders[ROWED] = partial(_rowed, places[1], batches)
        found = bench.interleave(rounds, contenders)
        bounds = [_cheap(found[places[-1].called(KEPT)]), *_bounded(places[-1])]
    sides = {name: _side(name, notes) for name, notes in found.items()}
    small, less, large = places

    def grown(what: str, unit: str, than: Place, at_most: float | None = None) -> Comparison:
        ours, theirs = sides[large.called(what)], sides[than.called(what)]
        return Comparison("recommending", unit, ours, theirs, at_most=at_most)

    return [
        grown(ASKED, "ms", less, 1.5),
        grown(KEPT, "µs", less, 1.5),
        grown(ASKED, "ms", small),
        grown(KEPT, "µs", small),
        Comparison("recommending", "µs", sides[less.called(KEPT)], sides[ROWED], at_most=1.0),
        *bounds,
    ]


def _side(name: str, notes: Sequence[Mapping[str, float]]) -> Side:
    found = medians(list(notes))
    del found["value"]
    return Side(name, [each["value"] for each in notes], found)


def _filled(bench: Bench, runner: asyncio.Runner, stack: ExitStack, size: Size) -> Place:
    url, now = bench.database(), datetime.now(UTC)
    fill_engagements(url, size, now, WEIGHING)
    conn = stack.enter_context(connect(url, "bench"))
    asking = runner.run(AsyncConnection.connect(url, autocommit=True))
    stack.callback(lambda: runner.run(asking.close()))
    return Place(size, now, conn, asking)


def _asked(runner: asyncio.Runner, place: Place, calls: int, _round: int) -> dict[str, float]:
    likes, attention = Likes(), AttentionCache(WEIGHING)
    trending = [
        Ranked(number + 1, UUID(int=number), 1.0, 0, 0, 0, 0, 0, 0) for number in range(TRENDING)
    ]

    async def one() -> float:
        user = f"user-{random.randrange(place.size.users)}"
        started = time.perf_counter()
        profile = await profile_of(place.asking, likes, place.asking, user)
        known = await attention.get(place.asking)
        found = await material_for(place.asking, profile, trending, known, weighing=WEIGHING)
        took = (time.perf_counter() - started) * MILLISECONDS
        if not found.candidates:
            raise RuntimeError(f"There is no candidate for {user}.")
        return took

    async def go() -> list[float]:
        return [await one() for _ in range(calls)]

    times = runner.run(go())
    most = quantiles(times, n=100, method="inclusive")[98]
    return {"value": median(times), "p99": most}


def _kept(place: Place, batches: int, round_: int) -> dict[str, float]:
    times, cpu = [], 0.0
    for number in range(batches):
        # Far enough apart that no user has too many in one hour to be paired.
        at = place.now + (round_ * batches + number) * timedelta(minutes=10)
        batch = [
            Engagement(
                f"user-{random.randrange(place.size.users)}",
                str(UUID(int=random.randrange(place.size.videos))),
                EngagementKind.WATCHED,
                at,
            )
            for _ in range(BATCH)
        ]
        started, cpu_before = time.perf_counter(), place.cpu_seconds()
        with place.conn.transaction():
            keep(place.conn, batch, WEIGHING)
        cpu += place.cpu_seconds() - cpu_before
        times.append((time.perf_counter() - started) / BATCH * MICROSECONDS)
    one = median(times)
    return {
        "value": one,
        "CPU": cpu / (batches * BATCH) * MICROSECONDS,
        "slowest batch": max(times),
        "events/s": MICROSECONDS / one,
    }


def _rowed(place: Place, batches: int, round_: int) -> dict[str, float]:
    videos, times = place.size.videos, []
    for number in range(batches):
        at = (place.now + (round_ * batches + number) * timedelta(minutes=10)).timestamp()
        pairs = {
            frozenset((one, int(videos * random.random() ** 3)))
            for one in random.choices(range(videos), k=BATCH)
            for _ in range(WEIGHING.paired_with)
        }
        ones, others = columns(
            tuple(UUID(int=number) for number in pair) for pair in pairs if len(pair) == 2
        )
        started = time.perf_counter()
        with place.conn.transaction():
            place.conn.execute(UPSERT, (ones, others, at, at), prepare=False)
        times.append((time.perf_counter() - started) / BATCH * MICROSECONDS)
    return {"value": median(times), "slowest batch": max(times)}


def _cheap(kept: Sequence[Mapping[str, float]]) -> Comparison:
    """CPU time, since what else the machine does changes that least."""
    return Comparison(
        "recommending",
        "µs of CPU",
        Side(f"{KEPT}, PostgreSQL and program", [each["CPU"] for each in kept]),
        Side("the bound", [KEPT_CPU]),
        at_most=1.0,
    )


def _bounded(place: Place) -> list[Comparison]:
    most, disk, rows = place.conn.execute(SIZES).fetchone() or (0, 0, 0)
    notes = {"bytes per video": disk / place.size.videos}
    return [
        Comparison(
            "recommending",
            "neighbours",
            Side(place.called("most neighbours of a video"), [float(most)]),
            Side("the bound", [3.0 * WEIGHING.neighbours]),
            at_most=1.0,
        ),
        Comparison(
            "recommending",
            "bytes",
            Side(place.called("neighbours on disk after the load"), [float(disk)], notes),
            Side("their rows", [float(rows)]),
            at_most=3.0,
        ),
    ]
