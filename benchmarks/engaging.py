"""Fills the tables of the recommendations in SQL, as a long history would have left them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

import psycopg

from benchmarks.bench import say
from engine.installation import install
from projections.analytics.schema import migrate
from projections.likes import Likes
from projections.recommendations.co_occurrence import rank_categories
from projections.recommendations.model import Weighing


@dataclass(frozen=True, slots=True)
class Size:
    """How many there are of each; every user has as many engagements as any other."""

    videos: int
    users: int
    engagements: int


VIDEOS = b"""
INSERT INTO analytics.videos (video_id, owner, category, completed_at)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'owner-' || mod(n, 1000), 'category-' || mod(n, 20),
       %(now)s - random() * interval '300 days'
FROM generate_series(0, %(videos)s - 1) AS n
"""
BARE = b"DROP INDEX analytics.engaged_latest, analytics.engaged_watched, analytics.engaged_turns"
# One in five likes what it has watched; some videos are far more watched than others.
ENGAGED = b"""
INSERT INTO analytics.engaged (viewer, video_id, watched_at, liked_at, turn, watch_paired_at,
                               like_paired_at)
SELECT 'user-' || mod(n, %(users)s),
       lpad(to_hex(floor(%(videos)s * random() ^ 3)::int), 32, '0')::uuid,
       at, CASE WHEN mod(n / %(users)s, 5) = 0 THEN at END,
       n / %(users)s + 1, at, CASE WHEN mod(n / %(users)s, 5) = 0 THEN at END
FROM (SELECT n, %(now)s - random() * interval '90 days' AS at
      FROM generate_series(0, %(engagements)s - 1) AS n) AS drawn
ON CONFLICT DO NOTHING
"""
INDEXES = b"""
CREATE INDEX engaged_latest ON analytics.engaged (viewer, engaged_at DESC);
CREATE INDEX engaged_watched ON analytics.engaged (viewer, watched_at DESC)
    WHERE watched_at IS NOT NULL;
CREATE INDEX engaged_turns ON analytics.engaged (viewer, turn) WHERE turn IS NOT NULL
"""
# Between the number that pruning leaves and the one at which it begins.
LISTS = b"""
INSERT INTO analytics.neighbour_lists
SELECT lpad(to_hex(v), 32, '0')::uuid, array_agg(lpad(to_hex(other), 32, '0')::uuid),
       array_agg(0.5 + random()),
       array_agg(extract(epoch FROM %(now)s)::float8 - random() * 7776000)
FROM generate_series(0, %(videos)s - 1) AS v
CROSS JOIN LATERAL (
    SELECT DISTINCT floor(%(videos)s * random() ^ 2)::int AS other
    FROM generate_series(1, %(most)s + mod(v * 7, %(most)s)) AS n WHERE v >= 0) AS drawn
WHERE other <> v GROUP BY v
"""
# Up to the number at which they are folded.
DELTAS = b"""
INSERT INTO analytics.neighbour_deltas
SELECT lpad(to_hex(v), 32, '0')::uuid,
       coalesce(array_agg(lpad(to_hex(other), 32, '0')::uuid) FILTER (WHERE other <> v), '{}'),
       coalesce(array_agg(0.5 + random()) FILTER (WHERE other <> v), '{}'),
       coalesce(array_agg(extract(epoch FROM %(now)s)::float8) FILTER (WHERE other <> v), '{}')
FROM generate_series(0, %(videos)s - 1) AS v
CROSS JOIN LATERAL (
    SELECT floor(%(videos)s * random() ^ 2)::int AS other
    FROM generate_series(0, mod(v * 13, %(most)s)) AS n WHERE v >= 0) AS drawn
GROUP BY v
"""
ENGAGEMENT = b"""
INSERT INTO analytics.engagement
SELECT video_id, coalesce(weight, 1), extract(epoch FROM %(now)s)
FROM analytics.neighbour_lists
LEFT JOIN (SELECT video_id, count(*) AS weight FROM analytics.engaged GROUP BY video_id) AS total
    USING (video_id)
"""
LIKES = b"""
INSERT INTO likes.likes
SELECT video_id, viewer, row_number() OVER () FROM analytics.engaged WHERE liked_at IS NOT NULL
"""


def fill_engagements(url: str, size: Size, now: datetime, weighing: Weighing) -> None:
    """Evenly over 90 days until `now`; every video has nearly all the neighbours that it may."""
    given = {"now": now, "most": weighing.neighbours, **asdict(size)}
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
        install(conn, [Likes()])
        conn.execute(b"SET work_mem = '256MB'; SET synchronous_commit = off; SELECT setseed(0.5)")
        conn.execute(BARE)
        for what, statement in (
            ("videos", VIDEOS),
            ("engagements", ENGAGED),
            ("their indexes", INDEXES),
            ("lists of neighbours", LISTS),
            ("deltas", DELTAS),
            ("totals", ENGAGEMENT),
            ("likes", LIKES),
        ):
            say(f"making {what} of {size.engagements:,} engagements")
            conn.execute(statement, given if b"%(" in statement else None)
        rank_categories(conn, weighing)
        conn.execute(b"VACUUM (ANALYZE)")
        conn.execute(b"CHECKPOINT")
