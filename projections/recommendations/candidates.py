"""Which videos may be recommended to a user, and what speaks for each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from math import log
from typing import Any, LiteralString, NamedTuple, TypeVar
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from infra.postgres.connection import fetch_as
from projections.recommendations.model import Candidate, Profile, Weighing
from projections.recommendations.prompt import MOST_CANDIDATES, MOST_TRENDING
from projections.trending import Ranked

# Looked up by key for each candidate, whatever the planner thinks: hence OFFSET 0.
ELIGIBLE: LiteralString = """
CROSS JOIN LATERAL (
    SELECT v.video_id, v.category FROM analytics.videos AS v
    WHERE v.video_id = candidate AND NOT v.removed AND v.completed_at IS NOT NULL
      AND v.owner <> %(viewer)s AND v.video_id <> ALL (%(known)s)
      AND NOT EXISTS (SELECT FROM analytics.engaged AS e
                      WHERE e.viewer = %(viewer)s AND e.video_id = candidate)
    OFFSET 0) AS video
"""
# In logarithms, since weights of long ago are too small for their own; a video's is divided by a
# power of how much both videos were engaged with. The sum's order is fixed, for its last digits.
# The best are looked at first, until there are enough.
NEIGHBOURS: LiteralString = f"""
WITH seeds AS (SELECT * FROM unnest(%(seeds)s::uuid[], %(shares)s::float8[]) AS s (seed, share)),
scored AS (
    SELECT n.neighbour_id, seed, share * exp(greatest(
               ln(n.weight) + (n.as_of - %(now)s::float8) * %(decay)s::float8
               - %(exponent)s::float8 * (
                   ln(mine.weight) + (mine.as_of - %(now)s::float8) * %(decay)s::float8
                   + ln(its.weight) + (its.as_of - %(now)s::float8) * %(decay)s::float8),
               -600)) AS score
    FROM seeds
    JOIN analytics.neighbours AS n ON n.video_id = seed
    JOIN analytics.engagement AS mine ON mine.video_id = seed
    JOIN analytics.engagement AS its ON its.video_id = n.neighbour_id),
summed AS (
    SELECT neighbour_id AS candidate, sum(score ORDER BY seed) AS score,
           (array_agg(seed ORDER BY score DESC, seed))[1] AS because
    FROM scored GROUP BY neighbour_id ORDER BY 2 DESC, 1 OFFSET 0)
SELECT video_id, category, score, because FROM summed {ELIGIBLE}
ORDER BY score DESC, candidate LIMIT %(limit)s
"""
SHARES = b"""
SELECT category, sum(share ORDER BY video_id) AS share
FROM unnest(%(seeds)s::uuid[], %(shares)s::float8[]) AS s (video_id, share)
JOIN analytics.videos USING (video_id)
WHERE category IS NOT NULL GROUP BY category ORDER BY share DESC, category
"""
TOPS: LiteralString = f"""
SELECT video.video_id, video.category
FROM (SELECT video_id AS candidate, category, place FROM analytics.category_tops
      WHERE category = ANY (%(categories)s)
      ORDER BY place, array_position(%(categories)s::text[], category) OFFSET 0) AS top {ELIGIBLE}
WHERE video.category = top.category
ORDER BY place, array_position(%(categories)s::text[], top.category) LIMIT %(limit)s
"""
FIRST_OF_EACH: LiteralString = f"""
SELECT video.video_id, video.category
FROM (SELECT video_id AS candidate, category, place FROM analytics.category_tops
      ORDER BY place, category OFFSET 0) AS top {ELIGIBLE}
WHERE video.category = top.category
ORDER BY place, top.category LIMIT %(limit)s
"""
THESE: LiteralString = f"""
SELECT video_id, category FROM unnest(%(asked)s::uuid[]) AS asked (candidate) {ELIGIBLE}
"""

MOST_CATEGORIES = 3
# How many of each source are taken in turn: neighbours, categories, similar texts, trending.
TURNS = (3, 1, 1, 1)
WEIGHING = Weighing()

ENGAGED_WITH = b"""
SELECT video_id FROM analytics.engaged WHERE viewer = %s AND video_id = ANY (%s)
"""

K = TypeVar("K")


class FoundVideo(NamedTuple):
    """A video that may be recommended; `score` and `because` where it is a neighbour."""

    video_id: UUID
    category: str | None
    score: float = 0.0
    because: UUID | None = None


class Finder:
    """Finds candidates for one viewer; `seeds` are the profile's videos with their shares."""

    def __init__(
        self,
        conn: AsyncConnection[TupleRow],
        viewer: str,
        seeds: Mapping[UUID, float],
        weighing: Weighing,
    ) -> None:
        self._conn = conn
        self._seeds = seeds
        self._given: dict[str, Any] = {
            "viewer": viewer,
            # Their likes may be known before the sink has seen them.
            "known": list(seeds),
            "seeds": list(seeds),
            "shares": list(seeds.values()),
            "now": datetime.now(UTC).timestamp(),
            "decay": log(2) / weighing.half_life_seconds,
            "exponent": weighing.popularity_exponent,
        }

    async def neighbours(self, limit: int) -> list[FoundVideo]:
        """Return the nearest to all of the profile together, the nearest first."""
        return await self._find(NEIGHBOURS, limit=limit) if self._seeds else []

    async def shares(self) -> dict[str, float]:
        """Return how much the profile is of each category, the greatest first."""
        if not self._seeds:
            return {}
        cursor = await self._conn.execute(SHARES, self._given)
        return dict(await cursor.fetchall())

    async def tops(self, categories: Sequence[str], limit: int) -> list[FoundVideo]:
        """Return the most engaged with of these categories, which take turns."""
        return await self._find(TOPS, categories=list(categories), limit=limit)

    async def first_of_each(self, limit: int) -> list[FoundVideo]:
        """Return the most engaged with of every category; the categories take turns."""
        return await self._find(FIRST_OF_EACH, limit=limit)

    async def these(self, videos: Sequence[UUID]) -> list[FoundVideo]:
        """Return those of these videos that may be recommended."""
        return await self._find(THESE, asked=list(videos))

    async def _find(self, query: LiteralString, **more: Any) -> list[FoundVideo]:
        return await fetch_as(self._conn, FoundVideo, query.encode(), {**self._given, **more})


async def candidates_for(
    conn: AsyncConnection[TupleRow],
    profile: Profile,
    trending: Sequence[Ranked],
    *,
    similar: Sequence[tuple[UUID, float]] = (),
    limit: int = MOST_CANDIDATES,
    weighing: Weighing = WEIGHING,
) -> list[Candidate]:
    """At most `limit` candidates, each once; the sources take turns, each with its best first.

    The first 20 of `trending` are candidates; the rest tells how popular the others are. `similar`
    are videos whose texts are like those of the profile, each from 0 to 1. For a new user the
    categories take turns.
    """
    seeds = seeds_of(profile, weighing)
    finder = Finder(conn, profile.user_id, seeds, weighing)
    near = await finder.neighbours(limit)
    shares = await finder.shares()
    tops = await _tops(finder, list(islice(shares, MOST_CATEGORIES)), limit)
    trend = [each.video_id for each in trending]
    alike = {video: min(max(value, 0.0), 1.0) for video, value in similar}
    these = await finder.these([*trend[:MOST_TRENDING], *alike])
    found = {each.video_id: each for each in [*these, *tops, *near]}
    sources = [
        [each.video_id for each in near],
        [each.video_id for each in tops],
        sorted(alike, key=lambda video: (-alike[video], video)),
        trend[:MOST_TRENDING],
    ]
    signals = Signals.of(near, shares, tops, trend, alike)
    chosen = islice(take_turns(sources, found), limit)
    candidates = [signals.candidate(found[video]) for video in chosen]
    return vary(candidates) if profile.is_empty else candidates


async def engaged_with(
    conn: AsyncConnection[TupleRow], user_id: str, videos: Sequence[UUID]
) -> set[UUID]:
    """Return those of the videos that the user is known to have watched or liked."""
    cursor = await conn.execute(ENGAGED_WITH, (user_id, list(videos)))
    return {video for (video,) in await cursor.fetchall()}


async def _tops(finder: Finder, categories: Sequence[str], limit: int) -> list[FoundVideo]:
    if categories:
        return await finder.tops(categories, limit)
    return await finder.first_of_each(limit)


def seeds_of(profile: Profile, weighing: Weighing) -> dict[UUID, float]:
    """Return how much each video of the profile tells of the next; the newest tells most."""
    seeds: dict[UUID, float] = {}
    for weight, engaged in ((weighing.watched, profile.watched), (weighing.liked, profile.liked)):
        for place, each in enumerate(engaged):
            share = weight * weighing.profile_fade**place
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
    seen: Counter[str | None] = Counter()
    turns = []
    for candidate in candidates:
        turns.append(seen[candidate.category])
        seen[candidate.category] += 1
    order = sorted(range(len(candidates)), key=lambda place: turns[place])
    return [candidates[place] for place in order]


@dataclass(frozen=True, slots=True)
class Signals:
    """What speaks for each video; 1 is the strongest there is."""

    neighbour: Mapping[UUID, float]
    shares: Mapping[str, float]
    # From 1 for the first of a list to a half for what is not in it.
    tops: Mapping[UUID, float]
    trending: Mapping[UUID, float]
    similar: Mapping[UUID, float]

    @classmethod
    def of(
        cls,
        near: Sequence[FoundVideo],
        shares: Mapping[str, float],
        tops: Sequence[FoundVideo],
        trend: Sequence[UUID],
        alike: Mapping[UUID, float],
    ) -> Signals:
        places = falling([each.video_id for each in tops])
        return cls(
            neighbour=normal({each.video_id: each.score for each in near}),
            shares=normal(shares),
            tops={video: (1 + place) / 2 for video, place in places.items()},
            trending=falling(trend),
            similar=alike,
        )

    def candidate(self, found: FoundVideo) -> Candidate:
        video, share = found.video_id, self.shares.get(found.category or "", 0.0)
        return Candidate(
            video,
            found.category,
            trending=self.trending.get(video, 0.0),
            neighbour=self.neighbour.get(video, 0.0),
            same_category=share * self.tops.get(video, 0.5),
            similar=self.similar.get(video, 0.0),
            because=found.because,
        )


def normal(values: Mapping[K, float]) -> dict[K, float]:
    """Return the values divided by the greatest of them."""
    most = max(values.values(), default=0.0)
    return {key: value / most for key, value in values.items()} if most else dict(values)


def falling(videos: Sequence[UUID]) -> dict[UUID, float]:
    """From 1 for the first of a list evenly down to just above 0."""
    return {video: 1 - place / len(videos) for place, video in enumerate(videos)}
