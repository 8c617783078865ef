"""What may be recommended to one viewer, asked of the database.

Nothing that the viewer has watched or liked, whenever that was; nothing of the viewer's own;
nothing that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import log
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from projections.recommendations.weighing import Weighing

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


class FoundVideo(NamedTuple):
    """A video that may be recommended; `score` and `because` where it is a neighbour."""

    video_id: UUID
    category: str | None
    score: float = 0.0
    because: UUID | None = None


class Finder:
    """Asks for one viewer; `seeds` are the videos of the profile and how much each of them says."""

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
            # Their likes may be known before the keeper has seen them.
            "known": list(seeds),
            "seeds": list(seeds),
            "shares": list(seeds.values()),
            "now": datetime.now(UTC).timestamp(),
            "decay": log(2) / weighing.half_life_seconds,
            "exponent": weighing.popularity_exponent,
        }

    async def neighbours(self, limit: int) -> list[FoundVideo]:
        """The nearest to all of the profile together, the nearest first."""
        return await self._find(NEIGHBOURS, limit=limit) if self._seeds else []

    async def shares(self) -> dict[str, float]:
        """How much the profile is of each category, the greatest first."""
        if not self._seeds:
            return {}
        cursor = await self._conn.execute(SHARES, self._given)
        return dict(await cursor.fetchall())

    async def tops(self, categories: Sequence[str], limit: int) -> list[FoundVideo]:
        """The most engaged with of these categories, which take turns."""
        return await self._find(TOPS, categories=list(categories), limit=limit)

    async def first_of_each(self, limit: int) -> list[FoundVideo]:
        """The most engaged with of every category; the categories take turns."""
        return await self._find(FIRST_OF_EACH, limit=limit)

    async def these(self, videos: Sequence[UUID]) -> list[FoundVideo]:
        """Those of these videos that may be recommended."""
        return await self._find(THESE, asked=list(videos))

    async def _find(self, query: LiteralString, **more: Any) -> list[FoundVideo]:
        async with self._conn.cursor(row_factory=class_row(FoundVideo)) as cursor:
            await cursor.execute(query.encode(), {**self._given, **more})
            return await cursor.fetchall()
