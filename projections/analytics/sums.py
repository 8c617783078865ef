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

OF_VIDEOS: LiteralString = " AND video_id = ANY (%(videos)s)"
# A row for each video, and the few hours that are not settled: all of them are recent. Of all
# videos, or of some.
FROM_SETTLED: LiteralString = """
SELECT video_id,
       coalesce(settled.views, 0) + coalesce(newest.views, 0) AS views,
       coalesce(settled.likes, 0) + coalesce(newest.likes, 0) AS likes,
       coalesce(settled.comments, 0) + coalesce(newest.comments, 0) AS comments,
       coalesce(settled.minutes, 0) + coalesce(newest.minutes, 0) AS minutes,
       coalesce(recent_views, 0) + coalesce(newest.views, 0) AS recent_views,
       coalesce(recent_likes, 0) + coalesce(newest.likes, 0) AS recent_likes,
       coalesce(recent_comments, 0) + coalesce(newest.comments, 0) AS recent_comments,
       coalesce(recent_minutes, 0) + coalesce(newest.minutes, 0) AS recent_minutes
FROM (
    SELECT video_id, views, likes, comments, minutes,
           recent_views, recent_likes, recent_comments, recent_minutes
    FROM analytics.trending_sums WHERE time_range = %(time_range)s{of_videos}
) AS settled
FULL JOIN (
    SELECT video_id, sum(trending_views)::float8 AS views, sum(likes)::float8 AS likes,
           sum(comments)::float8 AS comments, sum(trending_watch_seconds) / 60 AS minutes
    FROM analytics.video_hourly
    WHERE bucket >= %(settled_until)s AND bucket < %(until)s{of_videos}
    GROUP BY video_id
) AS newest USING (video_id)
"""
