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

from projections.recommendations.model import Weighing
from projections.recommendations.turns import numbers

MOST_HALVINGS = 1000.0
# What is left of a weight of which all was taken back is a rounding error.
NOTHING = 1e-9

# Gives the videos that have enough deltas to be folded. To be planned each time, as is the next: a
# plan for any number of rows reads whole tables for a few. What is there is updated first, since ON
# CONFLICT locks each row before that, and logs it. Arrays are unnested in a list of columns, since
# what stands after FROM is stored, row by row, before it is read.
APPEND = b"""
WITH given AS MATERIALIZED (
    SELECT one AS number, array_agg(other) AS neighbours, array_agg(weight) AS weights,
           array_agg(at) AS as_of
    FROM (SELECT unnest(%(ones)s::int[]) AS one, unnest(%(others)s::int[]) AS other,
                 unnest(%(weights)s::float8[]) AS weight, unnest(%(times)s::float8[]) AS at
          UNION ALL SELECT unnest(%(others)s::int[]), unnest(%(ones)s::int[]),
                           unnest(%(weights)s::float8[]), unnest(%(times)s::float8[])
          ORDER BY 1) AS both_ways
    GROUP BY one),
grown AS (
    UPDATE analytics.neighbour_deltas AS kept
    SET neighbours = given.neighbours || kept.neighbours, weights = given.weights || kept.weights,
        as_of = given.as_of || kept.as_of
    FROM given
    WHERE kept.number = given.number AND kept.number = ANY (ARRAY (SELECT number FROM given))
    RETURNING kept.number, cardinality(kept.neighbours) AS deltas),
begun AS (
    INSERT INTO analytics.neighbour_deltas (number, neighbours, weights, as_of)
    SELECT * FROM given WHERE number NOT IN (SELECT number FROM grown)
    RETURNING number, cardinality(neighbours) AS deltas)
SELECT number FROM (TABLE grown UNION ALL TABLE begun) AS appended WHERE deltas >= %(most)s
"""
# By this share of the best that a cut leaves. The next deltas then find room, and are taken as they
# are; with a share of 1, one or two more that came with a batch would have the list cut each time.
FOLDED_AT = 0.9
# Rows are looked up in the order of their index, in one go: a sixth less than one by one.
ORDERLY = b"SET LOCAL enable_nestloop = off"
ROW_BY_ROW = b"SET LOCAL enable_nestloop = on"
# A list that has room takes the deltas as they are; else, and where something was taken back, the
# weights of a pair are added as of its latest time, by way of the latest of the batch. When there
# are too many neighbours, the best are kept by the weight that a reader sees; what was removed goes
# first. How popular they are is looked up once for all lists, and then found in an ordered array by
# bisection: a join for each member of a list takes twice as long.
FOLD = b"""
WITH grown AS MATERIALIZED (
    SELECT number, d.neighbours || l.neighbours AS neighbours, d.weights || l.weights AS weights,
           d.as_of || l.as_of AS as_of
    FROM unnest(%(videos)s::int[]) AS asked (number)
    JOIN analytics.neighbour_deltas AS d USING (number)
    LEFT JOIN analytics.neighbour_lists AS l USING (number)),
emptied AS (
    UPDATE analytics.neighbour_deltas SET neighbours = '{}', weights = '{}', as_of = '{}'
    WHERE number = ANY (%(videos)s::int[])),
roomy AS (
    SELECT number FROM grown
    WHERE cardinality(neighbours) <= 2 * %(most)s AND number <> ALL (%(lessened)s::int[])),
summed AS MATERIALIZED (
    SELECT number, list.* FROM grown CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(neighbour), '{}') AS neighbours,
               coalesce(array_agg(weight), '{}') AS weights,
               coalesce(array_agg(latest), '{}') AS as_of
        FROM (
            SELECT neighbour, max(at) AS latest, CASE count(*) WHEN 1 THEN min(weight) ELSE
                       sum(weight * power(2::float8, greatest(-1000, least(1000,
                           (at - %(now)s::float8) / %(half_life)s::float8))))
                       * power(2::float8, greatest(-1000, least(1000,
                           (%(now)s::float8 - max(at)) / %(half_life)s::float8)))
                   END AS weight
            FROM (SELECT unnest(neighbours) AS neighbour, unnest(weights) AS weight,
                         unnest(as_of) AS at) AS parts
            GROUP BY neighbour) AS pairs
        WHERE weight >= %(nothing)s) AS list
    WHERE number NOT IN (TABLE roomy)),
popular AS MATERIALIZED (
    SELECT array_agg(number::float8) AS numbers, array_agg(much) AS much
    FROM (
        SELECT number, CASE
            WHEN EXISTS (SELECT FROM analytics.videos AS v
                         WHERE v.video_id = e.video_id AND removed) THEN 'Infinity'
            ELSE %(exponent)s::float8 * (ln(weight) + as_of * ln(2) / %(half_life)s::float8)
            END AS much
        FROM analytics.engagement AS e
        WHERE number = ANY (ARRAY (
            SELECT unnest(neighbours) FROM summed WHERE cardinality(neighbours) > 2 * %(most)s))
        ORDER BY number) AS found),
cut AS (
    SELECT number, best.* FROM summed CROSS JOIN LATERAL (
        SELECT array_agg(neighbour), array_agg(weight), array_agg(at)
        FROM (
            SELECT * FROM (SELECT unnest(neighbours) AS neighbour, unnest(weights) AS weight,
                                  unnest(as_of) AS at) AS all_of_them
            ORDER BY ln(weight) + at * ln(2) / %(half_life)s::float8
                     - (SELECT much FROM popular)[width_bucket(
                           neighbour::float8, (SELECT numbers FROM popular))] DESC, neighbour
            LIMIT %(most)s) AS kept) AS best
    WHERE cardinality(neighbours) > 2 * %(most)s),
folded (number, neighbours, weights, as_of) AS MATERIALIZED (
    SELECT grown.* FROM grown JOIN roomy USING (number)
    UNION ALL SELECT * FROM summed WHERE cardinality(neighbours) <= 2 * %(most)s
    UNION ALL TABLE cut),
changed AS (
    UPDATE analytics.neighbour_lists AS kept
    SET neighbours = folded.neighbours, weights = folded.weights, as_of = folded.as_of
    FROM folded WHERE kept.number = folded.number
    RETURNING kept.number)
INSERT INTO analytics.neighbour_lists (number, neighbours, weights, as_of)
SELECT * FROM folded WHERE number NOT IN (TABLE changed)
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
    conn: Connection[TupleRow], pairs: Mapping[tuple[int, int], Mass], weighing: Weighing
) -> None:
    """Add what pairs of videos gained, in both directions; what is taken back is below zero.

    Every video of the pairs has its row in `analytics.engagement`, by whose number it is named. The
    caller's transaction holds the lock of these rows.
    """
    weights = [mass.weight for mass in pairs.values()]
    times = [mass.as_of for mass in pairs.values()]
    appended = {
        "ones": numbers([one for one, _ in pairs]),
        "others": numbers([other for _, other in pairs]),
        "weights": numbers(weights),
        "times": numbers(times),
        "most": int(FOLDED_AT * weighing.neighbours),
    }
    conn.execute(ORDERLY)
    full = {video for (video,) in conn.execute(APPEND, appended, prepare=False)}
    conn.execute(ROW_BY_ROW)
    lessened: set[int] = set()
    if min(weights) < NOTHING:
        # A reader never meets a delta that takes something back.
        lessened.update(*(pair for pair, mass in pairs.items() if mass.weight < NOTHING))
    if full or lessened:
        folded: dict[str, Any] = {
            "videos": numbers([*(full | lessened)]),
            "lessened": numbers([*lessened]),
            "now": max(times),
            "half_life": weighing.half_life_seconds,
            "most": weighing.neighbours,
            "exponent": weighing.popularity_exponent,
            "nothing": NOTHING,
        }
        conn.execute(FOLD, folded, prepare=False)
