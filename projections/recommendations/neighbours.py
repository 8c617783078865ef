"""The neighbours of each video: a list of the best, and the deltas that came since.

An engagement changes the neighbours of about twenty videos. It appends to their deltas, which are
short; a list is written once its video has many deltas, which are folded into it. Lists and deltas
together are always exact: the view `analytics.neighbours` has both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from infra.postgres.connection import array, texts
from projections.recommendations.model import Weighing
from projections.recommendations.turns import numbers

MOST_HALVINGS = 1000.0
# What is left of a weight of which all was taken back is a rounding error.
NOTHING = 1e-9

# Gives the videos that have enough deltas to be folded. To be planned each time, as is the next: a
# plan for any number of rows reads whole tables for a few. What is there is updated first, since ON
# CONFLICT locks each row before that, and logs it.
APPEND = b"""
WITH pairs AS (
    SELECT * FROM unnest(%(ones)s::uuid[], %(others)s::uuid[], %(weights)s::float8[],
                         %(times)s::float8[]) AS told (one, other, weight, at)),
given AS MATERIALIZED (
    SELECT one AS video_id, array_agg(other) AS ids, array_agg(weight) AS weights,
           array_agg(at) AS times
    FROM (SELECT one, other, weight, at FROM pairs
          UNION ALL SELECT other, one, weight, at FROM pairs ORDER BY 1) AS both_ways
    GROUP BY one),
grown AS (
    UPDATE analytics.neighbour_deltas AS kept
    SET neighbour_ids = ids || kept.neighbour_ids, weights = given.weights || kept.weights,
        as_of = times || kept.as_of
    FROM given WHERE kept.video_id = given.video_id
    RETURNING kept.video_id, cardinality(kept.neighbour_ids) AS deltas),
begun AS (
    INSERT INTO analytics.neighbour_deltas (video_id, neighbour_ids, weights, as_of)
    SELECT * FROM given WHERE video_id NOT IN (SELECT video_id FROM grown)
    RETURNING video_id, cardinality(neighbour_ids) AS deltas)
SELECT video_id::text FROM (TABLE grown UNION ALL TABLE begun) AS appended
WHERE deltas >= %(most)s
"""
# The weights of a pair are added as of its latest time, by way of the latest of the batch. When
# there are too many neighbours, the best are kept by the weight that a reader sees; what was
# removed goes first. How popular they are is looked up once for all lists, and then found in an
# ordered array by bisection: a join for each member of a list takes twice as long.
FOLD = b"""
WITH grown AS (
    SELECT video_id, d.neighbour_ids || l.neighbour_ids AS ids, d.weights || l.weights AS weights,
           d.as_of || l.as_of AS times
    FROM unnest(%(videos)s::uuid[]) AS asked (video_id)
    JOIN analytics.neighbour_deltas AS d USING (video_id)
    LEFT JOIN analytics.neighbour_lists AS l USING (video_id)),
emptied AS (
    UPDATE analytics.neighbour_deltas SET neighbour_ids = '{}', weights = '{}', as_of = '{}'
    WHERE video_id = ANY (%(videos)s::uuid[])),
folded AS (
    SELECT video_id, list.* FROM grown CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(id), '{}') AS ids, coalesce(array_agg(weight), '{}') AS weights,
               coalesce(array_agg(latest), '{}') AS times
        FROM (
            SELECT id, max(at) AS latest, CASE count(*) WHEN 1 THEN min(weight) ELSE
                       sum(weight * power(2::float8, greatest(-1000, least(1000,
                           (at - %(now)s::float8) / %(half_life)s::float8))))
                       * power(2::float8, greatest(-1000, least(1000,
                           (%(now)s::float8 - max(at)) / %(half_life)s::float8)))
                   END AS weight
            FROM unnest(ids, weights, times) AS part (id, weight, at) GROUP BY id) AS summed
        WHERE weight >= %(nothing)s) AS list),
popular AS MATERIALIZED (
    SELECT array_agg(video_id) AS ids, array_agg(much) AS much
    FROM (
        SELECT video_id, CASE
            WHEN EXISTS (SELECT FROM analytics.videos AS v
                         WHERE v.video_id = e.video_id AND removed) THEN 'Infinity'
            ELSE %(exponent)s::float8 * (ln(weight) + as_of * ln(2) / %(half_life)s::float8)
            END AS much
        FROM analytics.engagement AS e
        WHERE video_id = ANY (ARRAY (
            SELECT unnest(ids) FROM folded WHERE cardinality(ids) > 2 * %(most)s))
        ORDER BY video_id) AS found),
cut AS (
    SELECT video_id, best.* FROM folded CROSS JOIN LATERAL (
        SELECT array_agg(id), array_agg(weight), array_agg(at)
        FROM (
            SELECT * FROM unnest(ids, weights, times) AS n (id, weight, at)
            ORDER BY ln(weight) + at * ln(2) / %(half_life)s::float8
                     - (SELECT much FROM popular)[width_bucket(id, (SELECT ids FROM popular))] DESC,
                     id
            LIMIT %(most)s) AS kept) AS best
    WHERE cardinality(ids) > 2 * %(most)s)
INSERT INTO analytics.neighbour_lists AS kept (video_id, neighbour_ids, weights, as_of)
SELECT * FROM folded WHERE cardinality(ids) <= 2 * %(most)s UNION ALL SELECT * FROM cut
ON CONFLICT (video_id) DO UPDATE
SET neighbour_ids = excluded.neighbour_ids, weights = excluded.weights, as_of = excluded.as_of
"""


@dataclass(slots=True)
class Mass:
    """A weight as it was at a time (seconds since 1970); it halves with each half-life."""

    weight: float = 0.0
    as_of: float = float("-inf")

    def add(self, weight: float, at: float, half_life: float) -> None:
        """Add a weight of another time; the order of additions makes no difference."""
        if at > self.as_of:
            self.weight, weight = weight, self.weight
            self.as_of, at = at, self.as_of
        self.weight += weight * 2.0 ** -min((self.as_of - at) / half_life, MOST_HALVINGS)


def add_pairs(
    conn: Connection[TupleRow], pairs: Mapping[tuple[str, str], Mass], weighing: Weighing
) -> None:
    """Add what pairs of videos gained, in both directions; what is taken back is below zero.

    Every video of the pairs has its row in `analytics.engagement`. The caller's transaction holds
    the lock of these rows.
    """
    weights = [mass.weight for mass in pairs.values()]
    times = [mass.as_of for mass in pairs.values()]
    appended = {
        "ones": array([one for one, _ in pairs]),
        "others": array([other for _, other in pairs]),
        "weights": numbers(weights),
        "times": numbers(times),
        "most": weighing.neighbours,
    }
    full = {video for (video,) in conn.execute(APPEND, appended, prepare=False)}
    if min(weights) < NOTHING:
        # A reader never meets a delta that takes something back.
        full.update(
            video for pair, mass in pairs.items() if mass.weight < NOTHING for video in pair
        )
    if full:
        folded: dict[str, Any] = {
            "videos": texts(list(full)),
            "now": max(times),
            "half_life": weighing.half_life_seconds,
            "most": weighing.neighbours,
            "exponent": weighing.popularity_exponent,
            "nothing": NOTHING,
        }
        conn.execute(FOLD, folded, prepare=False)
