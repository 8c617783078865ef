"""Fills the tables of the analytics with a history, in SQL: millions of events in minutes."""

from __future__ import annotations

from datetime import datetime, timedelta

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from benchmarks.bench import say
from projections.analytics.migrating import migrate

DAYS = 30
# One in ten events is of one of the hundred most popular videos in 100,000.
SKEW = 3

VIDEOS = b"""
INSERT INTO analytics.videos (video_id, owner, category, completed_at)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'owner', (ARRAY['art', 'nature', 'music'])[1 + mod(n, 3)],
       %(now)s - random() * %(length)s
FROM generate_series(0, %(videos)s - 1) AS n
"""
# The indexes are made again where they are read from; nothing is stored event by event here.
BARE = b"""
ALTER TABLE analytics.video_analytics DROP CONSTRAINT video_analytics_event_id_timestamp_key;
DROP INDEX analytics.video_analytics_video, analytics.video_analytics_type,
           analytics.video_analytics_user, analytics.video_analytics_session
"""
INDEX = b'CREATE INDEX video_analytics_video ON analytics.video_analytics (video_id, "timestamp")'
EVENTS = b"""
INSERT INTO analytics.video_analytics
SELECT gen_random_uuid(), lpad(to_hex(floor(%(videos)s * place ^ %(skew)s)::int), 32, '0')::uuid,
       'viewer-' || floor(20000 * who),
       kind, %(now)s - age * %(length)s,
       CASE kind WHEN 'view' THEN '{"counts": true, "own": false}'::jsonb
                 WHEN 'watch_time' THEN '{"seconds": 90, "own": false}'
                 WHEN 'share' THEN '{"channel": "mail"}'
                 ELSE '{"delta": 1}' END
FROM (SELECT random() AS place, random() AS who, random() AS age,
             (ARRAY['view', 'view', 'view', 'view', 'view', 'view', 'watch_time', 'watch_time',
                    'like', 'comment', 'share'])[1 + floor(11 * random())] AS kind
      FROM generate_series(1, %(events)s)) AS drawn
"""
HOURLY = b"""
INSERT INTO analytics.video_hourly
SELECT date_trunc('hour', "timestamp", 'UTC'), video_id, views, views, likes, comments, shares,
       seconds, seconds
FROM (SELECT date_trunc('hour', "timestamp", 'UTC') AS "timestamp", video_id,
             count(*) FILTER (WHERE event_type = 'view') AS views,
             count(*) FILTER (WHERE event_type = 'like') AS likes,
             count(*) FILTER (WHERE event_type = 'comment') AS comments,
             count(*) FILTER (WHERE event_type = 'share') AS shares,
             90.0 * count(*) FILTER (WHERE event_type = 'watch_time') AS seconds
      FROM analytics.video_analytics GROUP BY 1, 2) AS counted
ORDER BY 2, 1
"""
DAILY = b"""
INSERT INTO analytics.video_daily
SELECT date_trunc('day', bucket, 'UTC'), video_id, sum(views), sum(trending_views), sum(likes),
       sum(comments), sum(shares), sum(watch_seconds), sum(trending_watch_seconds)
FROM analytics.video_hourly GROUP BY 1, 2
"""
VIEWERS = b"""
INSERT INTO analytics.video_viewers
SELECT DISTINCT video_id, ("timestamp" AT TIME ZONE 'UTC')::date, user_id
FROM analytics.video_analytics WHERE event_type = 'view' ORDER BY 1, 2, 3
"""


def fill_analytics(url: str, events: int, videos: int, now: datetime) -> None:
    """So many events of 30 days until `now`, evenly over time, a few videos far ahead of the rest.

    The tables are the plain ones, with their rollups, as storing each event would have left them.
    """
    given = {"events": events, "videos": videos, "now": now, "skew": SKEW}
    given["length"] = timedelta(days=DAYS)
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
        conn.execute(b"SET work_mem = '256MB'; SET synchronous_commit = off; SELECT setseed(0.5)")
        conn.execute(BARE)
        conn.execute(VIDEOS, given)
        _fill(conn, events, given)
        conn.execute(b"VACUUM (ANALYZE)")


def _fill(conn: Connection[TupleRow], events: int, given: dict[str, object]) -> None:
    say(f"drawing {events:,} events")
    conn.execute(EVENTS, given)
    for what, statement in (
        ("an index of them", INDEX),
        ("their hours", HOURLY),
        ("their days", DAILY),
        ("their viewers", VIEWERS),
    ):
        say(f"making {what}")
        conn.execute(statement)
