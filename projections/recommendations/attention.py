"""How much goes on for videos of an age, as the site's own views and likes tell.

News is over within hours, and films are watched for years: no half-life is right for both.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import log
from typing import LiteralString, NamedTuple

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from infra.cache import SingleFlight
from infra.postgres.connection import fetch_as
from projections.recommendations.model import Weighing

HALF_AN_HOUR = 1800.0
AGES = (0.0, *(HALF_AN_HOUR * 2 ** (n / 2) for n in range(30)))
"""In seconds, where each span of ages begins; the last one has no end."""
LOOKED_AT = 10_000
"""So many views and likes, the latest, are looked at."""
FINE = 32.0
"""Ages that differ by less than 1 / FINE are nearly one."""
CACHED_SECONDS = 60.0
"""As long as it is until the next measurement."""
EXPECTED = 100.0
"""So many events of the default count with them: a site with few has not told yet."""

# How much happened at each span of ages, and for how long in all (seconds) videos were of it while
# that happened; videos of nearly one age are taken together. What happens at the age of zero is
# what a video without a time got its time from.
HAPPENED: LiteralString = """
WITH latest AS MATERIALIZED (
    SELECT extract(epoch FROM "timestamp")::float8 AS at,
           extract(epoch FROM completed_at)::float8 AS completed
    FROM ((SELECT video_id, "timestamp" FROM analytics.video_analytics
           WHERE event_type = 'view' AND (metadata->>'counts')::boolean
             AND NOT (metadata->>'own')::boolean
           ORDER BY "timestamp" DESC LIMIT %(most)s)
          UNION ALL
          (SELECT video_id, "timestamp" FROM analytics.video_analytics
           WHERE event_type = 'like' AND coalesce((metadata->>'delta')::int, 1) > 0
           ORDER BY "timestamp" DESC LIMIT %(most)s)
          ORDER BY "timestamp" DESC LIMIT %(most)s) AS happened
    JOIN analytics.videos USING (video_id) WHERE completed_at IS NOT NULL),
span AS (SELECT min(at) AS since, max(at) AS until FROM latest),
ages AS (SELECT * FROM unnest(%(begins)s::float8[], %(ends)s::float8[]) AS a (begins, ends)),
counted AS (
    SELECT (%(begins)s::float8[])[width_bucket(at - completed, %(begins)s::float8[])] AS begins,
           count(*) AS events
    FROM latest WHERE at > completed GROUP BY 1),
exposed AS (
    SELECT begins, sum(
        videos * (least(completed + ends, until) - greatest(completed + begins, since))) AS seconds
    FROM (SELECT count(*) AS videos, avg(completed) AS completed
          FROM (SELECT extract(epoch FROM completed_at)::float8 AS completed FROM analytics.videos
                WHERE NOT removed AND completed_at IS NOT NULL) AS video
          CROSS JOIN span WHERE completed < until
          GROUP BY floor(%(fine)s * ln(greatest(until - completed, 1)))) AS alike
    CROSS JOIN span
    JOIN ages ON completed + ends > since AND completed + begins < until
    GROUP BY begins)
SELECT begins, coalesce(events, 0)::float8 AS events, coalesce(seconds, 0)::float8 AS seconds
FROM ages LEFT JOIN counted USING (begins) LEFT JOIN exposed USING (begins) ORDER BY begins
"""
KEEP = b"""
INSERT INTO analytics.attention (age, share)
SELECT * FROM unnest(%s::float8[], %s::float8[])
"""
KEPT = b"SELECT age, share FROM analytics.attention ORDER BY age"


class Happened(NamedTuple):
    """How much happened to videos of an age, and how many seconds they were of it in all."""

    age: float
    events: float
    seconds: float


class AttentionStep(NamedTuple):
    """From this age (seconds) on, that share goes on of what a video is engaged with."""

    age: float
    share: float


@dataclass(frozen=True)
class Attention:
    """What goes on, by rising age; at most 1."""

    steps: Sequence[AttentionStep]

    def columns(self) -> tuple[list[float], list[float]]:
        """Return the ages and the shares."""
        return [step.age for step in self.steps], [step.share for step in self.steps]

    @cached_property
    def by_age(self) -> tuple[list[float], list[float]]:
        """The ages, and what goes on before the first of them and from each of them on."""
        ages, shares = self.columns()
        return ages, [shares[0], *shares]

    def left(self, age: float) -> float:
        """Return what goes on for a video of that age (seconds)."""
        place = bisect_right(self.steps, age, key=lambda step: step.age)
        return self.steps[max(place - 1, 0)].share


def default_attention(weighing: Weighing) -> Attention:
    """Return what is taken for likely while a site has told nothing."""
    return _going_on([AttentionStep(age, weighing.fresh(age)) for age in AGES], weighing)


def measured(happened: Sequence[Happened], weighing: Weighing) -> Attention:
    """Return what goes on, by the likeliest rate of events that never rises with age.

    It is pooled wherever an older span would have more than a younger one (Grenander, 1956).
    EXPECTED events of the default count with what happened. Ages that no video was of are left out;
    without any, it is the default.
    """
    seen = [each for each in happened if each.seconds > 0]
    if not seen:
        return default_attention(weighing)
    weights = [each.seconds * weighing.fresh(each.age) for each in seen]
    pools: list[tuple[list[float], float, float]] = []
    for each, weight in zip(seen, weights, strict=True):
        ages, seconds = [each.age], each.seconds
        events = each.events + EXPECTED * weight / sum(weights)
        while pools and events * pools[-1][2] >= pools[-1][1] * seconds:
            younger, more, longer = pools.pop()
            ages, events, seconds = [*younger, *ages], more + events, longer + seconds
        pools.append((ages, events, seconds))
    most = pools[0][1] / pools[0][2]
    rates = [
        AttentionStep(age, events / seconds / most)
        for ages, events, seconds in pools
        for age in ages
    ]
    return _going_on(rates, weighing)


def _going_on(rates: Sequence[AttentionStep], weighing: Weighing) -> Attention:
    """Return what is to be expected of what a video is engaged with, by the rates at each age.

    That is engagement which halves with each half-life: an average video has collected the more of
    it the older it is. What goes on is the rate over what was collected; half of the most that is
    ever collected counts with it, since little tells little.
    """
    collected = [0.0]
    for one, next_ in pairwise(rates):
        left = 2.0 ** -((next_.age - one.age) / weighing.half_life_seconds)
        collected.append(
            collected[-1] * left + one.share * (1 - left) * weighing.half_life_seconds / log(2)
        )
    usual = max(collected) / 2 or 1.0
    return Attention(
        [
            AttentionStep(rate.age, rate.share / (1 + sum_ / usual))
            for rate, sum_ in zip(rates, collected, strict=True)
        ]
    )


def measure(conn: Connection[TupleRow], weighing: Weighing) -> Attention:
    """Measure the attention by what happened last, and keep it; to be called in a transaction.

    One at a time may do so.
    """
    ends = [after for _, after in pairwise(AGES)]
    given = {"most": LOOKED_AT, "fine": FINE, "begins": list(AGES), "ends": [*ends, float("inf")]}
    rows = [Happened(*row) for row in conn.execute(HAPPENED.encode(), given)]
    found = measured(rows, weighing)
    conn.execute(b"DELETE FROM analytics.attention")
    conn.execute(KEEP, found.columns())
    return found


async def attention_of(conn: AsyncConnection[TupleRow], weighing: Weighing) -> Attention:
    """Return what was measured last."""
    steps = await fetch_as(conn, AttentionStep, KEPT, ())
    return Attention(steps) if steps else default_attention(weighing)


class AttentionCache:
    """What was measured last, read about once a minute by this process; for one event loop."""

    def __init__(self, weighing: Weighing, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._weighing, self._clock = weighing, clock
        self._flight: SingleFlight[Attention] = SingleFlight()
        self._attention = default_attention(weighing)
        self._until = float("-inf")

    @property
    def cached(self) -> Attention | None:
        """Return the cached attention, None where it has to be read."""
        return self._attention if self._clock() < self._until else None

    async def get(self, conn: AsyncConnection[TupleRow]) -> Attention:
        """Return the cached attention, or read it; concurrent callers share one query."""
        if self._clock() >= self._until:
            found = await self._flight.join("", lambda: attention_of(conn, self._weighing))
            self._attention, self._until = found.result, self._clock() + CACHED_SECONDS
        return self._attention
