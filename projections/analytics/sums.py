"""What a window holds of each video: from the rollups, or from the sums that were settled.

Both give the same columns; `recent_` is the part that counts as recent, `minutes` were watched.
"""

from __future__ import annotations

from typing import LiteralString

# Whole days come from the daily rollup; what the window's two ends cut off, from the hourly one.
FROM_ROLLUPS: LiteralString = """
SELECT video_id,
       sum(trending_views)::float8 AS views,
       sum(likes)::float8 AS likes,
       sum(comments)::float8 AS comments,
       sum(trending_watch_seconds) / 60 AS minutes,
       coalesce(sum(trending_views) FILTER (WHERE recent), 0)::float8 AS recent_views,
       coalesce(sum(likes) FILTER (WHERE recent), 0)::float8 AS recent_likes,
       coalesce(sum(comments) FILTER (WHERE recent), 0)::float8 AS recent_comments,
       coalesce(sum(trending_watch_seconds) FILTER (WHERE recent), 0) / 60 AS recent_minutes
FROM (
    SELECT video_id, trending_views, likes, comments, trending_watch_seconds,
           bucket >= %(recent)s AS recent
    FROM analytics.video_hourly
    WHERE bucket >= %(last_day)s AND bucket < %(until)s
    UNION ALL
    SELECT video_id, trending_views, likes, comments, trending_watch_seconds,
           bucket >= %(recent)s
    FROM analytics.video_hourly
    WHERE bucket >= %(since)s AND bucket < %(first_day)s
    UNION ALL
    SELECT video_id, trending_views, likes, comments, trending_watch_seconds, false
    FROM analytics.video_daily
    WHERE bucket >= %(first_day)s AND bucket < %(last_day)s
) AS happened
GROUP BY video_id
"""

# A row for each video, and the few hours that are not settled: all of them are recent.
FROM_SETTLED: LiteralString = """
SELECT video_id, sum(views) AS views, sum(likes) AS likes, sum(comments) AS comments,
       sum(minutes) AS minutes, sum(recent_views) AS recent_views,
       sum(recent_likes) AS recent_likes, sum(recent_comments) AS recent_comments,
       sum(recent_minutes) AS recent_minutes
FROM (
    SELECT video_id, views, likes, comments, minutes,
           recent_views, recent_likes, recent_comments, recent_minutes
    FROM analytics.trending_sums
    WHERE time_range = %(time_range)s
    UNION ALL
    SELECT video_id, v, l, c, m, v, l, c, m
    FROM analytics.video_hourly
    CROSS JOIN LATERAL (
        SELECT trending_views::float8, likes::float8, comments::float8, trending_watch_seconds / 60
    ) AS newest (v, l, c, m)
    WHERE bucket >= %(settled_until)s AND bucket < %(until)s
) AS happened
GROUP BY video_id
"""
