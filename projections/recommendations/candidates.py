"""Which videos may be recommended to a user, and what speaks for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count, islice
from math import exp, fsum, inf, log
from typing import Any, LiteralString, NamedTuple, TypeVar
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from infra.postgres.connection import fetch_as
from projections.analytics.videos import listed
from projections.recommendations.attention import Attention
from projections.recommendations.co_occurrence import ALL_VIDEOS
from projections.recommendations.model import Candidate, Material, Profile, Weighing
from projections.recommendations.prompt import MOST_CANDIDATES, MOST_TRENDING
from projections.trending import Ranked

# A mass is given in logarithms, since weights of long ago are too small for their own.
FOUND: LiteralString = """
video.video_id, video.category, extract(epoch FROM video.completed_at)::float8 AS completed,
ln(total.weight) + total.as_of * %(decay)s::float8 AS mass, total.as_of
"""
# Looked up by key for each candidate, whatever the planner thinks: hence OFFSET 0.
ELIGIBLE: LiteralString = f"""
CROSS JOIN LATERAL (
    SELECT v.video_id, v.category, v.completed_at FROM analytics.videos AS v
    WHERE v.video_id = candidate AND {listed("v")}
      AND v.owner <> %(viewer)s AND v.video_id <> ALL (%(known)s)
      AND NOT EXISTS (SELECT FROM analytics.engaged AS e
                      WHERE e.viewer = %(viewer)s AND e.video_id = candidate)
    OFFSET 0) AS video
LEFT JOIN analytics.engagement AS total ON total.video_id = candidate
"""
# A neighbour's weight is divided by a power of how much each of the two was engaged with. The sum's
# order is fixed, for its last digits. The best are looked at first, until there are enough.
NEIGHBOURS: LiteralString = f"""
WITH seeds AS (SELECT * FROM unnest(%(seeds)s::uuid[], %(shares)s::float8[]) AS s (seed, share)),
scored AS (
    SELECT its.video_id, seed, sum(share * exp(greatest(
               ln(n.weight) + (n.as_of - %(now)s::float8) * %(decay)s::float8
               - %(profile_exponent)s::float8
                 * (ln(mine.weight) + (mine.as_of - %(now)s::float8) * %(decay)s::float8)
               - %(exponent)s::float8
                 * (ln(its.weight) + (its.as_of - %(now)s::float8) * %(decay)s::float8),
               -%(asleep)s::float8))) AS score,
           sum(share * exp(greatest(
               ln(n.weight) + (n.as_of - %(now)s::float8) * %(decay)s::float8,
               -%(asleep)s::float8))) AS pairs
    FROM seeds
    JOIN analytics.engagement AS mine ON mine.video_id = seed
    JOIN analytics.neighbour_deltas AS d ON d.number = mine.number
    LEFT JOIN analytics.neighbour_lists AS l ON l.number = mine.number
    CROSS JOIN LATERAL unnest(
        l.neighbours || d.neighbours, l.weights || d.weights, l.as_of || d.as_of)
        AS n (neighbour, weight, as_of)
    JOIN analytics.engagement AS its ON its.number = n.neighbour
    GROUP BY its.video_id, seed),
summed AS (
    SELECT video_id AS candidate, sum(score ORDER BY seed) AS score,
           (array_agg(seed ORDER BY score DESC, seed))[1] AS because,
           sum(sum(pairs)) OVER () AS pairs
    FROM scored GROUP BY video_id ORDER BY 2 DESC, 1 OFFSET 0)
SELECT {FOUND}, score, because, pairs FROM summed {ELIGIBLE}
ORDER BY score DESC, candidate LIMIT %(nearest)s
"""
SHARES = b"""
SELECT category, sum(share ORDER BY video_id) AS share
FROM unnest(%(seeds)s::uuid[], %(shares)s::float8[]) AS s (video_id, share)
JOIN analytics.videos USING (video_id)
WHERE category IS NOT NULL GROUP BY category ORDER BY share DESC, category
"""
RANKED: LiteralString = f"""
SELECT {FOUND}
FROM (SELECT video_id AS candidate, category, place FROM analytics.category_tops AS top
      {{chosen}} ORDER BY place, {{turn}} OFFSET 0) AS top {ELIGIBLE}
WHERE video.category = top.category OR top.category = %(all_videos)s
ORDER BY place, {{turn}} LIMIT %(limit)s
"""
TOPS_OF_CATEGORIES: LiteralString = RANKED.format(
    chosen="WHERE category = ANY (%(categories)s)",
    turn="array_position(%(categories)s::text[], top.category)",
)
FIRST_OF_EACH: LiteralString = RANKED.format(
    chosen="WHERE category <> %(all_videos)s", turn="top.category"
)
THESE: LiteralString = f"""
SELECT {FOUND} FROM unnest(%(asked)s::uuid[]) AS asked (candidate) {ELIGIBLE}
"""

MOST_CATEGORIES = 3
# So many of the nearest are looked at: what is new among them may come before the others.
MOST_NEIGHBOURS = 300
# How many of each source are taken in turn: neighbours, categories, similar, trending, popular.
TURNS = (3, 1, 1, 1, 1)
WEIGHING = Weighing()
# In logarithms: what has decayed further is as little as that.
MOST_ASLEEP = 600.0

K = TypeVar("K")


class FoundVideo(NamedTuple):
    """A video that may be recommended; `score` and `because` where it is a neighbour.

    `completed` and `as_of` are seconds since 1970, `mass` the logarithm of how much it is engaged
    with; both are None where it is not. `pairs` is how much brought any neighbours together with
    the profile, each of whose videos counts by its share.
    """

    video_id: UUID
    category: str | None
    completed: float
    mass: float | None
    as_of: float | None
    score: float = 0.0
    because: UUID | None = None
    pairs: float = 0.0


async def material_for(
    conn: AsyncConnection[TupleRow],
    profile: Profile,
    trending: Sequence[Ranked],
    attention: Attention,
    *,
    similar: Sequence[tuple[UUID, float]] = (),
    without: Collection[UUID] = (),
    limit: int = MOST_CANDIDATES,
    weighing: Weighing = WEIGHING,
) -> Material:
    """Return a profile with at most `limit` candidates; the sources take turns, each with its best.

    The first 20 of `trending` are candidates; the rest tells how popular the others are. `similar`
    are videos whose texts are like those of the profile, each from 0 to 1. None of `without` is a
    candidate, and no video is one twice. For a new user the categories take turns.
    """
    seeds = seeds_of(profile, weighing)
    given: dict[str, Any] = {
        "viewer": profile.user_id,
        # Their likes may be known before the sink has seen them.
        "known": [*seeds, *without],
        "seeds": list(seeds),
        "shares": list(seeds.values()),
        "now": datetime.now(UTC).timestamp(),
        "decay": log(2) / weighing.half_life_seconds,
        "exponent": weighing.popularity_exponent,
        "profile_exponent": weighing.profile_exponent,
        "nearest": MOST_NEIGHBOURS,
        "asleep": MOST_ASLEEP,
        "all_videos": ALL_VIDEOS,
        "limit": limit,
    }

    async def find(query: LiteralString, **more: Any) -> list[FoundVideo]:
        return await fetch_as(conn, FoundVideo, query.encode(), {**given, **more})

    near: list[FoundVideo] = []
    shares: dict[str | None, float] = {}
    if seeds:
        near = await find(NEIGHBOURS)
        shares = dict(await (await conn.execute(SHARES, given)).fetchall())
    categories = list(shares)[:MOST_CATEGORIES]
    tops = await (
        find(TOPS_OF_CATEGORIES, categories=categories) if categories else find(FIRST_OF_EACH)
    )
    popular = await find(TOPS_OF_CATEGORIES, categories=[ALL_VIDEOS])
    trend = [each.video_id for each in trending]
    alike = {video: min(max(value, 0.0), 1.0) for video, value in similar}
    these = await find(THESE, asked=[*trend[:MOST_TRENDING], *alike])
    found = {each.video_id: each for each in [*these, *popular, *tops, *near]}
    latest = max((each.as_of for each in found.values() if each.as_of is not None), default=-inf)
    # As of then: a site may sleep.
    asleep = min((given["now"] - latest) * given["decay"], MOST_ASLEEP)
    pairs = near[0].pairs * exp(asleep) if near else 0.0
    telling = weighing.telling(latest - profile.latest.timestamp()) if profile.latest else 0.0
    sure = weighing.sure(pairs / sum(seeds.values())) if near else 0.0
    weighed = _weigh(found, trending, alike, shares, attention, latest)
    sources = [
        sorted(
            [each.video_id for each in near],
            key=lambda video: (-weighed[video].neighbour, video),
        ),
        [each.video_id for each in tops],
        sorted(alike, key=lambda video: (-alike[video], video)),
        trend[:MOST_TRENDING],
        [each.video_id for each in popular],
    ]
    candidates = [weighed[video] for video in islice(take_turns(sources, found), limit)]
    return Material(
        profile,
        vary(candidates) if profile.is_empty else candidates,
        telling=telling,
        sure=sure,
    )


def _weigh(
    found: Mapping[UUID, FoundVideo],
    trending: Sequence[Ranked],
    alike: Mapping[UUID, float],
    categories: Mapping[str | None, float],
    attention: Attention,
    latest: float,
) -> dict[UUID, Candidate]:
    """Return what was found with its signals.

    Ages count up to `latest`, when somebody was last engaged.
    """
    left = {video: attention.left(latest - each.completed) for video, each in found.items()}
    most = max((each.mass for each in found.values() if each.mass is not None), default=0.0)
    masses = {
        video: exp(each.mass - most) * left[video]
        for video, each in found.items()
        if each.mass is not None
    }
    liked_most = {
        video: mass * categories.get(found[video].category, 0.0) for video, mass in masses.items()
    }
    near = {video: each.score * left[video] for video, each in found.items()}
    like = {video: value * left[video] for video, value in alike.items() if video in found}
    signals = {
        "trending": shares_of({each.video_id: max(each.score, 0.0) for each in trending}),
        "neighbour": shares_of(near),
        "same_category": shares_of(liked_most),
        "similar": shares_of(like),
        "popular": shares_of(masses),
    }
    return {
        video: Candidate(
            video,
            each.category,
            **{name: share.get(video, 0.0) for name, share in signals.items()},
            because=each.because,
        )
        for video, each in found.items()
    }


def seeds_of(profile: Profile, weighing: Weighing) -> dict[UUID, float]:
    """Return how much each video of the profile tells of the next; the newest tells most."""
    seeds: dict[UUID, float] = {}
    for weight, engaged in ((weighing.watched, profile.watched), (weighing.liked, profile.liked)):
        for place, each in enumerate(engaged, 1):
            share = weight / place**weighing.profile_fade
            seeds[each.video_id] = seeds.get(each.video_id, 0.0) + share
    return seeds


def take_turns(sources: Sequence[Sequence[UUID]], wanted: Collection[UUID]) -> Iterator[UUID]:
    """Yield each video that is wanted once, a few of each source in turn."""
    taken: set[UUID] = set()
    left = [iter([video for video in source if video in wanted]) for source in sources]
    before = -1
    while before < len(taken):
        before = len(taken)
        for source, number in zip(left, TURNS, strict=True):
            for video in islice((each for each in source if each not in taken), number):
                taken.add(video)
                yield video


def vary(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first of each category, then the second of each, and so on."""
    turns: defaultdict[str | None, Iterator[int]] = defaultdict(count)
    return sorted(candidates, key=lambda each: next(turns[each.category]))


def shares_of(values: Mapping[K, float]) -> dict[K, float]:
    """Return the values divided by their sum."""
    total = fsum(values.values())
    return {key: value / total for key, value in values.items()} if total else dict(values)
