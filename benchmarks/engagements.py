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
from projections.recommendations.model import MOST_WATCHED, Weighing
from projections.recommendations.turns import PART


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
# One in five likes what it has watched; some videos are far more watched than others. Each user has
# one of each span of popularity, in turns, and so none twice.
ENGAGED = b"""
INSERT INTO analytics.engaged (viewer, video_id, watched_at, liked_at, turn)
SELECT 'user-' || u, lpad(to_hex(
           floor((%(videos)s - %(each)s) * ((place + random()) / %(each)s) ^ 3)::int + place
       ), 32, '0')::uuid, at, CASE WHEN mod(k, 5) = 0 THEN at END, k + 1
FROM generate_series(0, %(each)s - 1) AS k, generate_series(0, %(users)s - 1) AS u,
     LATERAL (SELECT mod(k + u, %(each)s) AS place, %(now)s - (1 - (k + random()) / %(each)s)
                                                     * interval '90 days' AS at) AS drawn
"""
VIEWERS = b"""
WITH turns AS (
    SELECT *, ((turn - 1) / %(part)s)::int AS part,
           extract(epoch FROM watched_at)::float8 AS watched,
           extract(epoch FROM liked_at)::float8 AS liked
    FROM analytics.engaged),
earlier AS (
    INSERT INTO analytics.earlier_turns
    SELECT viewer, part, array_agg(video_id ORDER BY turn), array_agg(watched ORDER BY turn),
           array_agg(NULL::float8), array_agg(liked ORDER BY turn)
    FROM turns WHERE part < %(parts)s GROUP BY viewer, part)
INSERT INTO analytics.viewers
SELECT viewer, date_trunc('hour', max(watched_at), 'UTC'), 1, %(parts)s,
       array_agg(video_id ORDER BY turn), array_agg(watched ORDER BY turn),
       array_agg(NULL::float8), array_agg(liked ORDER BY turn),
       (array_agg(video_id ORDER BY turn DESC))[:%(watched)s],
       (array_agg(watched ORDER BY turn DESC))[:%(watched)s]
FROM turns WHERE part >= %(parts)s GROUP BY viewer
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
    each = size.engagements // size.users
    given = {
        "now": now,
        "most": weighing.neighbours,
        "each": each,
        "part": PART,
        "parts": max(each // PART - 1, 0),
        "watched": MOST_WATCHED,
        **asdict(size),
    }
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
        install(conn, [Likes()])
        conn.execute(b"SET work_mem = '256MB'; SET synchronous_commit = off; SELECT setseed(0.5)")
        for what, statement in (
            ("videos", VIDEOS),
            ("engagements", ENGAGED),
            ("viewers", VIEWERS),
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
