"""Fills the tables of the analytics with a history, in SQL: ten million events in two minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import md5
from itertools import pairwise
from typing import TypeVar
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from benchmarks.bench import say
from projections.analytics.calendar import DAY, start_of_day
from projections.analytics.schema import migrate
from projections.analytics.viewers import COUNTED

T = TypeVar("T")

# One in ten events is of one of the hundred most popular videos in 100,000.
SKEW = 3
WRITERS = 2

VIDEOS = b"""
INSERT INTO analytics.videos (video_id, owner, category, completed_at)
SELECT md5(n::text)::uuid, 'owner', (ARRAY['art', 'nature', 'music'])[1 + mod(n, 3)],
       %(now)s - random() * %(length)s
FROM generate_series(0, %(videos)s - 1) AS n
"""
# Nothing is stored event by event here: the indexes that are read are made again in the end. Rows
# are as quick to read where no log of them was written.
BARE = b"""
ALTER TABLE analytics.video_analytics DROP CONSTRAINT video_analytics_event_id_timestamp_key;
DROP INDEX analytics.video_analytics_video, analytics.video_analytics_type,
           analytics.video_analytics_user, analytics.video_analytics_session,
           analytics.video_hourly_bucket, analytics.video_daily_bucket;
ALTER TABLE analytics.video_hourly DROP CONSTRAINT video_hourly_pkey;
ALTER TABLE analytics.video_daily DROP CONSTRAINT video_daily_pkey;
ALTER TABLE analytics.video_viewers DROP CONSTRAINT video_viewers_pkey;
ALTER TABLE analytics.video_analytics SET UNLOGGED;
ALTER TABLE analytics.video_hourly SET UNLOGGED;
ALTER TABLE analytics.video_daily SET UNLOGGED;
ALTER TABLE analytics.video_viewers SET UNLOGGED
"""
# The events of a day, in order of time, and what storing each of them would have left.
EVENTS = b"""
WITH drawn AS MATERIALIZED (
    SELECT md5(floor(%(videos)s * random() ^ %(skew)s)::int::text)::uuid AS video_id,
           'viewer-' || floor(20000 * random())::int AS viewer,
           %(since)s + (n + random()) * (%(until)s - %(since)s) / %(events)s AS at,
           (ARRAY[1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5])[1 + floor(11 * random())] AS kind
    FROM generate_series(0, %(events)s - 1) AS n
), hours AS MATERIALIZED (
    SELECT date_trunc('hour', at, 'UTC') AS bucket, video_id,
           count(*) FILTER (WHERE kind = 1) AS views,
           count(*) FILTER (WHERE kind = 3) AS likes,
           count(*) FILTER (WHERE kind = 4) AS comments,
           count(*) FILTER (WHERE kind = 5) AS shares,
           90.0 * count(*) FILTER (WHERE kind = 2) AS seconds
    FROM drawn GROUP BY 1, 2
), hourly AS (
    INSERT INTO analytics.video_hourly
    SELECT bucket, video_id, views, views, likes, comments, shares, seconds, seconds,
           likes, comments
    FROM hours ORDER BY bucket
), daily AS (
    INSERT INTO analytics.video_daily
    SELECT date_trunc('day', bucket, 'UTC'), video_id, sum(views), sum(views), sum(likes),
           sum(comments), sum(shares), sum(seconds), sum(seconds), sum(likes), sum(comments)
    FROM hours GROUP BY 1, 2
), viewers AS (
    INSERT INTO analytics.video_viewers
    SELECT video_id, (at AT TIME ZONE 'UTC')::date, max(date_trunc('hour', at, 'UTC')), viewer
    FROM drawn WHERE kind = 1 GROUP BY 1, 2, 4
)
INSERT INTO analytics.video_analytics
SELECT gen_random_uuid(), video_id, viewer,
       (ARRAY['view', 'watch_time', 'like', 'comment', 'share'])[kind], at,
       (ARRAY['{"counts": true, "own": false}', '{"seconds": 90, "own": false}', '{"delta": 1}',
              '{"delta": 1}', '{"channel": "mail"}']::jsonb[])[kind]
FROM drawn WHERE %(raw)s
"""
VIEWERS_HOURLY = f"""
INSERT INTO analytics.viewers_hourly (video_id, bucket, viewers, latest)
{COUNTED.format(these="true")} ORDER BY hour
""".encode()
INDEXES = (
    (
        b"ALTER TABLE analytics.video_hourly ADD PRIMARY KEY (video_id, bucket)",
        b"CREATE INDEX video_hourly_bucket ON analytics.video_hourly (bucket)",
        b"ALTER TABLE analytics.video_daily ADD PRIMARY KEY (video_id, bucket)",
        b"CREATE INDEX video_daily_bucket ON analytics.video_daily (bucket)",
    ),
    (
        b'CREATE INDEX video_analytics_video ON analytics.video_analytics (video_id, "timestamp")',
        b"ALTER TABLE analytics.video_viewers ADD PRIMARY KEY (video_id, viewer, day)",
        VIEWERS_HOURLY,
    ),
)
SETTINGS = b"SET work_mem = '512MB'; SET maintenance_work_mem = '512MB'"


@dataclass(frozen=True)
class History:
    """So many events of so many days until `now`, evenly over time; `raw`: with their own rows."""

    events: int
    days: int
    videos: int
    now: datetime
    raw: bool = True

    def parts(self) -> list[dict[str, object]]:
        """The parameters for the events of each day (UTC)."""
        length = self.days * DAY
        bounds = [self.now - length]
        while bounds[-1] < self.now:
            bounds.append(min(start_of_day(bounds[-1]) + DAY, self.now))
        return [
            {
                "since": since,
                "until": until,
                "events": round(self.events * ((until - since) / length)),
                "videos": self.videos,
                "skew": SKEW,
                "raw": self.raw,
            }
            for since, until in pairwise(bounds)
        ]


def video_of(rank: int) -> UUID:
    """The id of the video that so many are more popular than."""
    return UUID(md5(str(rank).encode(), usedforsecurity=False).hexdigest())


def fill_analytics(url: str, history: History) -> None:
    """A few videos are far ahead of the rest, and lie anywhere among them.

    The tables are the plain ones, with their rollups, as storing each event would have left them.
    """
    say(f"drawing {history.events:,} events of {history.days} days")
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
        conn.execute(BARE)
        length = timedelta(days=history.days)
        conn.execute(VIDEOS, {"videos": history.videos, "now": history.now, "length": length})
    parts = history.parts()
    _at_once(url, [parts[n::WRITERS] for n in range(WRITERS)], _draw)
    say("making their indexes")
    _at_once(url, INDEXES, _index)
    with psycopg.connect(url, autocommit=True) as conn:
        # As autovacuum would have by now.
        conn.execute(b"VACUUM (ANALYZE)")


def _draw(conn: Connection[TupleRow], parts: Iterable[dict[str, object]]) -> None:
    for part in parts:
        conn.execute(EVENTS, part)


def _index(conn: Connection[TupleRow], statements: Iterable[bytes]) -> None:
    for statement in statements:
        conn.execute(statement)


def _at_once(
    url: str, shares: Sequence[T], work: Callable[[Connection[TupleRow], T], None]
) -> None:
    """Each share in a connection of its own."""

    def one(share: T) -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(SETTINGS)
            work(conn, share)

    with ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(one, shares))
