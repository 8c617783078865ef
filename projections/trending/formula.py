"""The weights of trending, and its formula in SQL, whatever the sums come from.

    score = base · 2^(-age / half-life) = base - agePenalty
    base = views + likes + comments + watchMinutes + recencyBoost

Each addend is a sum over the window times its weight. `recencyBoost` counts the recent part of it
again, boost - 1 times, so that what happened recently weighs `boost` times as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, LiteralString

from infra.settings.features import TrendingSettings

POINTS: LiteralString = (
    "(%(view_weight)s::float8 * {views} + %(like_weight)s::float8 * {likes}"
    " + %(comment_weight)s::float8 * {comments} + %(watch_minute_weight)s::float8 * {minutes})"
)
BOOST: LiteralString = "(%(recent_boost)s::float8 - 1) * " + POINTS.format(
    views="recent_views", likes="recent_likes", comments="recent_comments", minutes="recent_minutes"
)
BASE: LiteralString = (
    POINTS.format(views="views", likes="likes", comments="comments", minutes="minutes")
    + " + "
    + BOOST
)
# Of one row of the hourly rollup, all of which is recent.
RECENT_HOUR: LiteralString = "%(recent_boost)s::float8 * " + POINTS.format(
    views="trending_views",
    likes="likes",
    comments="comments",
    minutes="(trending_watch_seconds / 60)",
)

LISTED: LiteralString = "NOT video.removed AND video.completed_at IS NOT NULL"
IN_CATEGORY: LiteralString = " AND video.category = %(category)s"
NONE_OF: LiteralString = " AND video.video_id <> ALL (%(without)s)"

# Rounded where it orders: sums of fractions differ in their last digits from plan to plan.
# Above 2^-1000, because power() refuses what is too small for it.
SCORED: LiteralString = f"""
SELECT video_id, score, points.views, points.likes, points.comments, watch_minutes, recency_boost,
       age_penalty
FROM sums
JOIN analytics.videos AS video USING (video_id)
CROSS JOIN LATERAL (
    SELECT %(view_weight)s::float8 * sums.views AS views,
           %(like_weight)s::float8 * sums.likes AS likes,
           %(comment_weight)s::float8 * sums.comments AS comments,
           %(watch_minute_weight)s::float8 * minutes AS watch_minutes,
           {BOOST} AS recency_boost
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
WHERE base > 0 AND {LISTED}
"""

RANKED: LiteralString = """
SELECT row_number() OVER (ORDER BY round(score * 1e6) DESC, views DESC, video_id) AS rank, top.*
FROM (SELECT * FROM scored
      ORDER BY round(score * 1e6) DESC, views DESC, video_id LIMIT %(limit)s) AS top
ORDER BY rank
"""


def narrowed(given: Mapping[str, Any]) -> LiteralString:
    """Return the further conditions of listed videos, by `category` and `without` in `given`."""
    in_category: LiteralString = IN_CATEGORY if given["category"] is not None else ""
    return in_category + NONE_OF if given.get("without") else in_category


@dataclass(frozen=True, slots=True)
class Formula:
    """The weights: points of a view, a like, a comment and a watched minute, boost and decay."""

    view_weight: float = 1.0
    like_weight: float = 5.0
    comment_weight: float = 3.0
    watch_minute_weight: float = 0.1
    recent_hours: int = 24
    recent_boost: float = 2.0
    half_life_hours: float = 168.0

    @classmethod
    def from_settings(cls, settings: TrendingSettings) -> Formula:
        """Return the formula of the settings, which have the same names."""
        return cls(**settings.model_dump(include={field.name for field in fields(cls)}))

    def weights(self) -> Mapping[str, float]:
        """Return the formula's parameters of the query."""
        weights = asdict(self)
        del weights["recent_hours"]
        return weights
