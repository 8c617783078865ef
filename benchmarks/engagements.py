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
from projections.recommendations.neighbours import FOLDED_AT
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
# All turns of each user. One in five likes what it has watched; some videos are far more watched
# than others. Each user has one of each span of popularity, in turns, and so none twice.
DRAWN = b"""
CREATE TEMPORARY TABLE drawn AS
SELECT 'user-' || u AS viewer, turns.* FROM generate_series(0, %(users)s - 1) AS u
CROSS JOIN LATERAL (
    SELECT array_agg(video ORDER BY k) AS videos, array_agg(at ORDER BY k) AS watched,
           array_agg(CASE WHEN mod(k, 5) = 0 THEN at END ORDER BY k) AS liked
    FROM (SELECT k, 1 + place + floor((%(videos)s - %(each)s)
                                      * ((place + random()) / %(each)s) ^ 3)::int AS video,
                 extract(epoch FROM %(now)s)::float8
                 - floor((1 - (k + random()) / %(each)s) * 7776000) AS at
          FROM generate_series(0, %(each)s - 1) AS k,
               LATERAL (SELECT mod(k + u, %(each)s) AS place) AS placed) AS t) AS turns
"""
# In the order in which they came.
ENGAGED = b"""
INSERT INTO analytics.engaged (viewer, video_id, watched_at, liked_at, turn)
SELECT viewer, lpad(to_hex(video - 1), 32, '0')::uuid, to_timestamp(seen), to_timestamp(praised),
       turn
FROM drawn, unnest(videos, watched, liked) WITH ORDINALITY AS t (video, seen, praised, turn)
ORDER BY turn
"""
VIEWERS = b"""
WITH earlier AS (
    INSERT INTO analytics.earlier_turns
    SELECT viewer, part, videos[begins:ends], watched[begins:ends],
           array_fill(NULL::float8, ARRAY[%(part)s]), liked[begins:ends]
    FROM drawn, generate_series(0, %(parts)s - 1) AS part,
         LATERAL (SELECT part * %(part)s + 1 AS begins, (part + 1) * %(part)s AS ends) AS slice)
INSERT INTO analytics.viewers
SELECT viewer, date_trunc('hour', to_timestamp(watched[%(each)s]), 'UTC'), 1, %(parts)s,
       videos[%(latest)s:], watched[%(latest)s:],
       array_fill(NULL::float8, ARRAY[%(each)s + 1 - %(latest)s]), liked[%(latest)s:], last.*
FROM drawn, LATERAL (
    SELECT array_agg(lpad(to_hex(video - 1), 32, '0')::uuid ORDER BY turn DESC),
           array_agg(at ORDER BY turn DESC)
    FROM unnest(videos, watched) WITH ORDINALITY AS t (video, at, turn)
    WHERE turn > %(each)s - %(watched)s) AS last
"""
TOTALS = b"""
INSERT INTO analytics.engagement (number, video_id, weight, as_of)
SELECT n + 1, lpad(to_hex(n), 32, '0')::uuid, coalesce(weight, 1), extract(epoch FROM %(now)s)
FROM generate_series(0, %(videos)s - 1) AS n
LEFT JOIN (SELECT video - 1, count(*) FROM drawn, unnest(videos) AS video GROUP BY video)
    AS total (n, weight) USING (n)
"""
# As they lie there after many cuts: half of them were just cut, and half have taken deltas since.
LISTS = b"""
INSERT INTO analytics.neighbour_lists (number, neighbours, weights, as_of)
SELECT number, array_agg(other), array_agg(0.5 + random()),
       array_agg(extract(epoch FROM %(now)s)::float8 - random() * 7776000)
FROM generate_series(1, %(videos)s) AS number
CROSS JOIN LATERAL (
    SELECT DISTINCT 1 + floor(%(videos)s * random() ^ 2)::int AS other
    FROM generate_series(1, %(most)s + mod(number, 2) * %(folded_at)s) AS n
    WHERE number > 0) AS others
WHERE other <> number GROUP BY number
"""
# Up to the number at which they are folded.
DELTAS = b"""
INSERT INTO analytics.neighbour_deltas (number, neighbours, weights, as_of)
SELECT number, coalesce(array_agg(other) FILTER (WHERE other <> number), '{}'),
       coalesce(array_agg(0.5 + random()) FILTER (WHERE other <> number), '{}'),
       coalesce(array_agg(extract(epoch FROM %(now)s)::float8) FILTER (WHERE other <> number), '{}')
FROM generate_series(1, %(videos)s) AS number
CROSS JOIN LATERAL (
    SELECT 1 + floor(%(videos)s * random() ^ 2)::int AS other
    FROM generate_series(0, mod(number * 13, %(folded_at)s)) AS n WHERE number > 0) AS others
GROUP BY number
"""
LIKES = b"""
INSERT INTO likes.likes
SELECT video_id, viewer, row_number() OVER () FROM analytics.engaged WHERE liked_at IS NOT NULL
"""


def fill_engagements(url: str, size: Size, now: datetime, weighing: Weighing) -> None:
    """Evenly over 90 days until `now`; every video has nearly all the neighbours that it may."""
    each = size.engagements // size.users
    parts = max(each // PART - 1, 0)
    given = {
        "now": now,
        "most": weighing.neighbours,
        "folded_at": int(FOLDED_AT * weighing.neighbours),
        "each": each,
        "part": PART,
        "parts": parts,
        "latest": parts * PART + 1,
        "watched": MOST_WATCHED,
        **asdict(size),
    }
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
        install(conn, [Likes()])
        conn.execute(b"SET work_mem = '256MB'; SET synchronous_commit = off; SELECT setseed(0.5)")
        for what, statement in (
            ("videos", VIDEOS),
            ("turns", DRAWN),
            ("engagements", ENGAGED),
            ("viewers", VIEWERS),
            ("totals", TOTALS),
            ("lists of neighbours", LISTS),
            ("deltas", DELTAS),
            ("likes", LIKES),
        ):
            say(f"making {what} of {size.engagements:,} engagements")
            conn.execute(statement, given if b"%(" in statement else None)
        rank_categories(conn, weighing)
        conn.execute(b"VACUUM (ANALYZE)")
        conn.execute(b"CHECKPOINT")
