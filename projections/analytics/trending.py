"""Which videos trend: the formula, once, over the rollups, so that its cost is not that of events.

    score = base · 2^(-age / half-life) = base - agePenalty
    base = views + likes + comments + watchMinutes + recencyBoost

Each addend is a sum over the window times its weight. `recencyBoost` counts the recent part of it
again, boost - 1 times, so that what happened recently weighs `boost` times as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from infra.settings_analytics import AnalyticsSettings
from projections.analytics.settling import settled
from projections.analytics.sums import FROM_ROLLUPS, FROM_SETTLED
from projections.analytics.windows import Window, edges_of

# Rounded where it orders: sums of fractions differ in their last digits from plan to plan.
# Above 2^-1000, because power() refuses what is too small for it.
SCORED: LiteralString = """
SELECT video_id, score, points.views, points.likes, points.comments, watch_minutes, recency_boost,
       age_penalty
FROM sums
JOIN analytics.videos AS video USING (video_id)
CROSS JOIN LATERAL (
    SELECT %(view_weight)s::float8 * sums.views AS views,
           %(like_weight)s::float8 * sums.likes AS likes,
           %(comment_weight)s::float8 * sums.comments AS comments,
           %(watch_minute_weight)s::float8 * minutes AS watch_minutes,
           (%(recent_boost)s::float8 - 1) * (
               %(view_weight)s::float8 * recent_views
               + %(like_weight)s::float8 * recent_likes
               + %(comment_weight)s::float8 * recent_comments
               + %(watch_minute_weight)s::float8 * recent_minutes) AS recency_boost
) AS points
CROSS JOIN LATERAL (
    SELECT points.views + points.likes + points.comments + watch_minutes + recency_boost AS base,
           greatest(extract(epoch FROM %(now)s::timestamptz - video.completed_at), 0)::float8
               / 3600 AS age_hours
) AS whole
CROSS JOIN LATERAL (
    SELECT base * (1 - power(2::float8, greatest(-age_hours / %(half_life_hours)s::float8, -1000)))
               AS age_penalty
) AS penalty
CROSS JOIN LATERAL (SELECT base - age_penalty AS score) AS result
WHERE NOT video.removed AND video.completed_at IS NOT NULL AND base > 0
"""
IN_CATEGORY: LiteralString = " AND video.category = %(category)s"

RANKED: LiteralString = """
SELECT row_number() OVER (ORDER BY round(score * 1e6) DESC, views DESC, video_id) AS rank, top.*
FROM (SELECT * FROM scored
      ORDER BY round(score * 1e6) DESC, views DESC, video_id LIMIT %(limit)s) AS top
ORDER BY rank
"""

ONE_STATE = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


@dataclass(frozen=True, slots=True)
class Formula:
    """What weighs how much; a view, a like, a comment and a watched minute in points."""

    view_weight: float = 1.0
    like_weight: float = 5.0
    comment_weight: float = 3.0
    watch_minute_weight: float = 0.1
    recent_hours: int = 24
    recent_boost: float = 2.0
    half_life_hours: float = 168.0

    @classmethod
    def from_settings(cls, settings: AnalyticsSettings) -> Formula:
        return cls(
            view_weight=settings.trending_view_weight,
            like_weight=settings.trending_like_weight,
            comment_weight=settings.trending_comment_weight,
            watch_minute_weight=settings.trending_watch_minute_weight,
            recent_hours=settings.trending_recent_hours,
            recent_boost=settings.trending_recent_boost,
            half_life_hours=settings.trending_half_life_hours,
        )

    def weights(self) -> Mapping[str, float]:
        """The parameters of the query that are the formula's."""
        return {
            "view_weight": self.view_weight,
            "like_weight": self.like_weight,
            "comment_weight": self.comment_weight,
            "watch_minute_weight": self.watch_minute_weight,
            "recent_boost": self.recent_boost,
            "half_life_hours": self.half_life_hours,
        }


@dataclass(frozen=True, slots=True)
class Ranked:
    """A video's place and why: the points of each part; all but `age_penalty` are added."""

    rank: int
    video_id: UUID
    score: float
    views: float
    likes: float
    comments: float
    watch_minutes: float
    recency_boost: float
    age_penalty: float


class Trending:
    """The ranking by one formula."""

    def __init__(self, formula: Formula) -> None:
        self.formula = formula

    async def rank(
        self,
        conn: AsyncConnection[TupleRow],
        window: Window,
        *,
        limit: int,
        now: datetime,
        category: str | None = None,
    ) -> list[Ranked]:
        """The first `limit` videos at the time `now`, of one category if given.

        Equal scores are ordered by views, then by id. A video without points is not listed, nor is
        one that was removed.
        """
        scored = SCORED + (IN_CATEGORY if category is not None else "")
        given = {"now": now, "limit": limit, "category": category}
        async with conn.transaction(), conn.cursor(row_factory=class_row(Ranked)) as cursor:
            await cursor.execute(ONE_STATE)
            sums, bounds = await self._sums(conn, window, now)
            query = f"WITH sums AS ({sums}), scored AS ({scored}) {RANKED}"
            await cursor.execute(query.encode(), {**self.formula.weights(), **bounds, **given})
            return await cursor.fetchall()

    async def _sums(
        self, conn: AsyncConnection[TupleRow], window: Window, now: datetime
    ) -> tuple[LiteralString, Mapping[str, Any]]:
        """What the window holds of each video, as a query: of the settled sums if there are any."""
        recent_hours = self.formula.recent_hours
        edges = edges_of(window, now, recent_hours)
        kept = await settled(conn, window, recent_hours=recent_hours, now=now)
        if kept is None:
            return FROM_ROLLUPS, edges.parameters()
        bounds = {"settled_until": kept.until, "until": edges.until}
        return FROM_SETTLED, {"time_range": window.value, **bounds}
