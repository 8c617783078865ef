"""Co-occurrence: who engaged with which videos, which videos are neighbours by that, and which
of them may be recommended to a user.

A viewer's engagement of one kind with a video counts once, however often it is given.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count, islice
from math import log
from typing import Any, LiteralString, NamedTuple, TypeVar
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from engine.projection import columns
from infra.advisory_locks import Lock, lock_in_transaction
from infra.postgres.connection import array, fetch_as, texts
from projections.analytics.calendar import start_of_hour
from projections.recommendations.model import Candidate, EngagementKind, Profile, Weighing
from projections.recommendations.prompt import MOST_CANDIDATES, MOST_TRENDING
from projections.trending import Ranked

MOST_HALVINGS = 1000.0

KNOWN = b"""
SELECT viewer, video_id::text, watched_at, liked_at
FROM unnest(%s::text[], %s::uuid[]) AS asked (viewer, video_id)
JOIN analytics.engaged USING (viewer, video_id)
"""
LAST = b"""
SELECT asked.viewer, video_id::text, watched_at, liked_at, engaged_at
FROM unnest(%s::text[]) AS asked (viewer)
CROSS JOIN LATERAL (
    SELECT video_id, watched_at, liked_at, engaged_at FROM analytics.engaged AS e
    WHERE e.viewer = asked.viewer ORDER BY engaged_at DESC LIMIT %s) AS last
"""
# Up to a limit, since it is only asked whether that is reached.
BUSY = b"""
SELECT viewer, hour, (
    SELECT count(*) FROM (
        SELECT FROM analytics.engaged AS e WHERE e.viewer = asked.viewer
          AND engaged_at >= hour AND engaged_at < hour + interval '1 hour' LIMIT %s) AS found)
FROM unnest(%s::text[], %s::timestamptz[]) AS asked (viewer, hour)
"""
MOVE = b"""
INSERT INTO analytics.engaged AS e (viewer, video_id, watched_at, liked_at)
SELECT * FROM unnest(%s::text[], %s::uuid[], %s::timestamptz[], %s::timestamptz[])
ON CONFLICT (viewer, video_id) DO UPDATE
SET watched_at = excluded.watched_at, liked_at = excluded.liked_at
"""
# Two weights of their own times come to this at the later one.
MERGE: LiteralString = """
    weight = kept.weight * power(2::float8, greatest(
            (kept.as_of - greatest(kept.as_of, excluded.as_of)) / %(half_life)s::float8, -1000))
        + excluded.weight * power(2::float8, greatest(
            (excluded.as_of - greatest(kept.as_of, excluded.as_of)) / %(half_life)s::float8,
            -1000)),
    as_of = greatest(kept.as_of, excluded.as_of)
"""
GAIN: LiteralString = f"""
INSERT INTO analytics.engagement AS kept (video_id, weight, as_of)
SELECT * FROM unnest(%(videos)s::uuid[], %(weights)s::float8[], %(times)s::float8[])
    AS gained (video_id, weight, as_of) ORDER BY video_id
ON CONFLICT (video_id) DO UPDATE SET {MERGE}
"""
# `xmax` of a row that was inserted is 0. Gives the videos that have too many neighbours now. To be
# planned each time: a plan for any number of rows reads whole tables for a few.
PAIR: LiteralString = f"""
WITH pairs AS (
    SELECT * FROM unnest(%(ones)s::uuid[], %(others)s::uuid[], %(weights)s::float8[],
                         %(times)s::float8[]) AS told (one, other, weight, as_of)),
added AS (
    INSERT INTO analytics.neighbours AS kept (video_id, neighbour_id, weight, as_of)
    SELECT one, other, weight, as_of FROM pairs
    UNION ALL SELECT other, one, weight, as_of FROM pairs ORDER BY 1, 2
    ON CONFLICT (video_id, neighbour_id) DO UPDATE SET {MERGE}
    RETURNING kept.video_id, (kept.xmax = 0) AS fresh),
grown AS (
    UPDATE analytics.engagement AS e SET neighbours = e.neighbours + found.fresh
    FROM (SELECT video_id, count(*) AS fresh FROM added WHERE fresh GROUP BY video_id) AS found
    WHERE e.video_id = found.video_id
    RETURNING e.video_id, e.neighbours)
SELECT video_id::text FROM grown WHERE neighbours > 2 * %(most)s
"""
# By the weight that a reader sees; what was removed goes first. Rows are found by their `ctid`:
# nobody moves them meanwhile, since who writes here holds the lock.
PRUNE = b"""
WITH ranked AS (
    SELECT place_of, row_number() OVER (
        PARTITION BY video_id ORDER BY gone, strength DESC, neighbour_id) AS place
    FROM (
        SELECT n.ctid AS place_of, n.video_id, neighbour_id, coalesce(v.removed, false) AS gone,
               ln(n.weight) + n.as_of * ln(2) / %(half_life)s::float8
               - %(exponent)s::float8
                 * (ln(e.weight) + e.as_of * ln(2) / %(half_life)s::float8) AS strength
        FROM unnest(%(videos)s::uuid[]) AS asked (video_id)
        JOIN analytics.neighbours AS n USING (video_id)
        JOIN analytics.engagement AS e ON e.video_id = n.neighbour_id
        LEFT JOIN analytics.videos AS v ON v.video_id = n.neighbour_id) AS weighed),
cut AS (
    DELETE FROM analytics.neighbours WHERE ctid = ANY (ARRAY (
        SELECT place_of FROM ranked WHERE place > %(most)s)))
UPDATE analytics.engagement SET neighbours = %(most)s WHERE video_id = ANY (%(videos)s::uuid[])
"""
TOPS = b"""
INSERT INTO analytics.category_tops (category, place, video_id)
SELECT category, place, video_id FROM (
    SELECT category, video_id, row_number() OVER (
        PARTITION BY category
        ORDER BY ln(weight) + as_of * ln(2) / %(half_life)s::float8 DESC, video_id) AS place
    FROM analytics.engagement JOIN analytics.videos USING (video_id)
    WHERE NOT removed AND completed_at IS NOT NULL AND category IS NOT NULL) AS ranked
WHERE place <= %(most)s
"""

Times = dict[EngagementKind, datetime]
"""When a viewer last engaged with a video in each way."""


class Engagement(NamedTuple):
    """A viewer watched or liked a video; ids are text, which hashes faster than UUID."""

    viewer: str
    video_id: str
    kind: EngagementKind
    at: datetime


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


@dataclass(slots=True)
class Viewer:
    """What is known of a viewer: the times of some videos, and which came last, in order."""

    times: dict[str, Times] = field(default_factory=dict)
    recent: list[tuple[datetime, str]] = field(default_factory=list)
    # How many new engagements there are in each hour.
    hours: dict[datetime, int] = field(default_factory=dict)

    def remember(self, video_id: str, most: int) -> None:
        """Put the video where its latest time belongs, and keep the last `most` videos."""
        self.recent = [each for each in self.recent if each[1] != video_id]
        insort(self.recent, (max(self.times[video_id].values()), video_id))
        del self.recent[:-most]


class Pairing:
    """Takes engagements in one by one, and holds what they come to.

    `times` are those that moved, by viewer and video; `gained` the weights that videos gained, and
    `pairs` those that pairs of videos did, the lesser id first.
    """

    def __init__(self, weighing: Weighing, viewers: dict[str, Viewer]) -> None:
        """`viewers` know the times of all videos that come, and enough of the last ones."""
        self._weighing = weighing
        self._viewers = viewers
        self.times: dict[tuple[str, str], Times] = {}
        self.gained: defaultdict[str, Mass] = defaultdict(Mass)
        self.pairs: defaultdict[tuple[str, str], Mass] = defaultdict(Mass)

    def take(self, event: Engagement) -> None:
        """Take in an engagement: the first of its kind counts, each further one moves the time."""
        viewer = self._viewers[event.viewer]
        times = viewer.times.setdefault(event.video_id, {})
        before = times.get(event.kind)
        if before is not None and before >= event.at:
            return
        times[event.kind] = event.at
        self.times[event.viewer, event.video_id] = times
        if before is None:
            self._count(viewer, event)
        viewer.remember(event.video_id, self._weighing.paired_with + 1)

    def _count(self, viewer: Viewer, event: Engagement) -> None:
        weighing, hour, video = self._weighing, start_of_hour(event.at), event.video_id
        weight, at = weighing.of(event.kind), event.at.timestamp()
        self.gained[video].add(weight, at, weighing.half_life_seconds)
        viewer.hours[hour] = viewer.hours.get(hour, 0) + 1
        if viewer.hours[hour] > weighing.paired_per_hour:
            return
        others = [other for _, other in reversed(viewer.recent) if other != video]
        for other in others[: weighing.paired_with]:
            mass = self.pairs[min(video, other), max(video, other)]
            for kind, then in viewer.times[other].items():
                both, later = weight * weighing.of(kind), max(at, then.timestamp())
                mass.add(both, later, weighing.half_life_seconds)


def keep(
    conn: Connection[TupleRow], batch: Sequence[Engagement], weighing: Weighing
) -> frozenset[str]:
    """Take engagements in; return the viewers of whom something new is known.

    To be called in a transaction, which then holds a lock.
    """
    lock_in_transaction(conn, Lock.RECOMMENDATION_ROWS)
    if not batch:
        return frozenset()
    pairing = Pairing(weighing, _viewers(conn, batch, weighing))
    for event in batch:
        pairing.take(event)
    _write(conn, pairing, weighing)
    return frozenset(viewer for viewer, _ in pairing.times)


def rank_categories(conn: Connection[TupleRow], weighing: Weighing) -> None:
    """Rank the videos of each category by engagement, in place of the last ranking.

    Its order changes only with what is kept, since all weights decay alike.
    """
    given = {"half_life": weighing.half_life_seconds, "most": weighing.category_tops}
    with conn.transaction():
        lock_in_transaction(conn, Lock.RECOMMENDATION_ROWS)
        conn.execute(b"DELETE FROM analytics.category_tops")
        conn.execute(TOPS, given)


def _viewers(
    conn: Connection[TupleRow], batch: Sequence[Engagement], weighing: Weighing
) -> dict[str, Viewer]:
    """Return what the pairing has to know of the batch's viewers."""
    viewers = {event.viewer: Viewer() for event in batch}
    keys = {(event.viewer, event.video_id) for event in batch}
    for viewer, video_id, *times in conn.execute(KNOWN, columns(keys), prepare=True):
        viewers[viewer].times[video_id] = _times(times)
    fresh = [
        event
        for event in batch
        if event.kind not in viewers[event.viewer].times.get(event.video_id, ())
    ]
    if fresh:
        _recall(conn, fresh, viewers, weighing)
    return viewers


def _times(columns: Iterable[datetime | None]) -> Times:
    """Return the times that a row holds, one column for each kind of engagement."""
    pairs = zip(EngagementKind, columns, strict=True)
    return {kind: at for kind, at in pairs if at is not None}


def _recall(
    conn: Connection[TupleRow],
    fresh: Sequence[Engagement],
    viewers: dict[str, Viewer],
    weighing: Weighing,
) -> None:
    """Load the last videos of viewers with something new, and how many they had each hour."""
    names = list({event.viewer for event in fresh})
    with conn.cursor(binary=True) as cursor:
        cursor.execute(LAST, (texts(names), weighing.paired_with + 1), prepare=True)
        for viewer, video_id, *times, at in cursor.fetchall():
            viewers[viewer].times.setdefault(video_id, _times(times))
            viewers[viewer].recent.append((at, video_id))
    for name in names:
        viewers[name].recent.sort()
    hours = {(event.viewer, start_of_hour(event.at)) for event in fresh}
    asked = weighing.paired_per_hour, *columns(hours)
    for viewer, hour, engaged in conn.execute(BUSY, asked, prepare=True):
        viewers[viewer].hours[start_of_hour(hour)] = engaged


def _write(conn: Connection[TupleRow], pairing: Pairing, weighing: Weighing) -> None:
    if pairing.times:
        moved = (
            (*key, *(times.get(kind) for kind in EngagementKind))
            for key, times in sorted(pairing.times.items())
        )
        conn.execute(MOVE, columns(moved), prepare=True)
    given = {
        "half_life": weighing.half_life_seconds,
        "most": weighing.neighbours,
        "exponent": weighing.popularity_exponent,
    }
    if pairing.gained:
        gained = {"videos": texts(list(pairing.gained)), **_masses(pairing.gained.values())}
        conn.execute(GAIN.encode(), {**gained, **given}, prepare=True)
    if pairing.pairs:
        ones, others = columns(pairing.pairs)
        pairs = {"ones": ones, "others": others, **_masses(pairing.pairs.values())}
        grown = conn.execute(PAIR.encode(), {**pairs, **given}, prepare=False).fetchall()
        if grown:
            crowded = {"videos": texts([video for (video,) in grown])}
            conn.execute(PRUNE, {**crowded, **given}, prepare=False)


def _masses(masses: Collection[Mass]) -> dict[str, str]:
    """Return array literals: psycopg's dumpers take far longer."""
    return {
        "weights": array([repr(mass.weight) for mass in masses]),
        "times": array([repr(mass.as_of) for mass in masses]),
    }


# Looked up by key for each candidate, whatever the planner thinks: hence OFFSET 0.
ELIGIBLE: LiteralString = """
CROSS JOIN LATERAL (
    SELECT v.video_id, v.category FROM analytics.videos AS v
    WHERE v.video_id = candidate AND NOT v.removed AND v.completed_at IS NOT NULL
      AND v.owner <> %(viewer)s AND v.video_id <> ALL (%(known)s)
      AND NOT EXISTS (SELECT FROM analytics.engaged AS e
                      WHERE e.viewer = %(viewer)s AND e.video_id = candidate)
    OFFSET 0) AS video
"""
# In logarithms, since weights of long ago are too small for their own; a video's is divided by a
# power of how much both videos were engaged with. The sum's order is fixed, for its last digits.
# The best are looked at first, until there are enough.
NEIGHBOURS: LiteralString = f"""
WITH seeds AS (SELECT * FROM unnest(%(seeds)s::uuid[], %(shares)s::float8[]) AS s (seed, share)),
scored AS (
    SELECT n.neighbour_id, seed, share * exp(greatest(
               ln(n.weight) + (n.as_of - %(now)s::float8) * %(decay)s::float8
               - %(exponent)s::float8 * (
                   ln(mine.weight) + (mine.as_of - %(now)s::float8) * %(decay)s::float8
                   + ln(its.weight) + (its.as_of - %(now)s::float8) * %(decay)s::float8),
               -600)) AS score
    FROM seeds
    JOIN analytics.neighbours AS n ON n.video_id = seed
    JOIN analytics.engagement AS mine ON mine.video_id = seed
    JOIN analytics.engagement AS its ON its.video_id = n.neighbour_id),
summed AS (
    SELECT neighbour_id AS candidate, sum(score ORDER BY seed) AS score,
           (array_agg(seed ORDER BY score DESC, seed))[1] AS because
    FROM scored GROUP BY neighbour_id ORDER BY 2 DESC, 1 OFFSET 0)
SELECT video_id, category, score, because FROM summed {ELIGIBLE}
ORDER BY score DESC, candidate LIMIT %(limit)s
"""
SHARES = b"""
SELECT category, sum(share ORDER BY video_id) AS share
FROM unnest(%(seeds)s::uuid[], %(shares)s::float8[]) AS s (video_id, share)
JOIN analytics.videos USING (video_id)
WHERE category IS NOT NULL GROUP BY category ORDER BY share DESC, category
"""
RANKED: LiteralString = f"""
SELECT video.video_id, video.category
FROM (SELECT video_id AS candidate, category, place FROM analytics.category_tops AS top
      {{chosen}} ORDER BY place, {{turn}} OFFSET 0) AS top {ELIGIBLE}
WHERE video.category = top.category ORDER BY place, {{turn}} LIMIT %(limit)s
"""
TOPS_OF_CATEGORIES: LiteralString = RANKED.format(
    chosen="WHERE category = ANY (%(categories)s)",
    turn="array_position(%(categories)s::text[], top.category)",
)
FIRST_OF_EACH: LiteralString = RANKED.format(chosen="", turn="top.category")
THESE: LiteralString = f"""
SELECT video_id, category FROM unnest(%(asked)s::uuid[]) AS asked (candidate) {ELIGIBLE}
"""

MOST_CATEGORIES = 3
# How many of each source are taken in turn: neighbours, categories, similar texts, trending.
TURNS = (3, 1, 1, 1)
WEIGHING = Weighing()

K = TypeVar("K")


class FoundVideo(NamedTuple):
    """A video that may be recommended; `score` and `because` where it is a neighbour."""

    video_id: UUID
    category: str | None
    score: float = 0.0
    because: UUID | None = None


async def candidates_for(
    conn: AsyncConnection[TupleRow],
    profile: Profile,
    trending: Sequence[Ranked],
    *,
    similar: Sequence[tuple[UUID, float]] = (),
    without: Collection[UUID] = (),
    limit: int = MOST_CANDIDATES,
    weighing: Weighing = WEIGHING,
) -> list[Candidate]:
    """Return at most `limit` candidates, each once; the sources take turns, each with its best.

    The first 20 of `trending` are candidates; the rest tells how popular the others are. `similar`
    are videos whose texts are like those of the profile, each from 0 to 1. None of `without` is a
    candidate. For a new user the categories take turns.
    """
    seeds = seeds_of(profile, weighing)
    given: dict[str, Any] = {
        "viewer": profile.user_id,
        # Their likes may be known before the sink has seen them.
        "known": [*seeds, *without],
        "seeds": list(seeds),
        "shares": list(seeds.values()),
        "now": datetime.now(UTC).timestamp(),
        "decay": log(2) / weighing.half_life_seconds,
        "exponent": weighing.popularity_exponent,
        "limit": limit,
    }

    async def find(query: LiteralString, **more: Any) -> list[FoundVideo]:
        return await fetch_as(conn, FoundVideo, query.encode(), {**given, **more})

    near: list[FoundVideo] = []
    shares: dict[str | None, float] = {}
    if seeds:
        near = await find(NEIGHBOURS)
        shares = dict(await (await conn.execute(SHARES, given)).fetchall())
    categories = list(shares)[:MOST_CATEGORIES]
    tops = await (
        find(TOPS_OF_CATEGORIES, categories=categories) if categories else find(FIRST_OF_EACH)
    )
    trend = [each.video_id for each in trending]
    alike = {video: min(max(value, 0.0), 1.0) for video, value in similar}
    these = await find(THESE, asked=[*trend[:MOST_TRENDING], *alike])
    found = {each.video_id: each for each in [*these, *tops, *near]}
    sources = [
        [each.video_id for each in near],
        [each.video_id for each in tops],
        sorted(alike, key=lambda video: (-alike[video], video)),
        trend[:MOST_TRENDING],
    ]
    neighbours = normalize({each.video_id: each.score for each in near})
    places, popular, shares = falling_points(sources[1]), falling_points(trend), normalize(shares)
    candidates = [
        Candidate(
            each.video_id,
            each.category,
            trending=popular.get(each.video_id, 0.0),
            neighbour=neighbours.get(each.video_id, 0.0),
            # Within a category, from 1 for the first of its ranking to a half for the unranked.
            same_category=(1 + places.get(each.video_id, 0.0)) / 2 * shares.get(each.category, 0.0),
            similar=alike.get(each.video_id, 0.0),
            because=each.because,
        )
        for each in (found[video] for video in islice(take_turns(sources, found), limit))
    ]
    return vary(candidates) if profile.is_empty else candidates


def seeds_of(profile: Profile, weighing: Weighing) -> dict[UUID, float]:
    """Return how much each video of the profile tells of the next; the newest tells most."""
    seeds: dict[UUID, float] = {}
    for weight, engaged in ((weighing.watched, profile.watched), (weighing.liked, profile.liked)):
        for place, each in enumerate(engaged):
            share = weight * weighing.profile_fade**place
            seeds[each.video_id] = seeds.get(each.video_id, 0.0) + share
    return seeds


def take_turns(sources: Sequence[Sequence[UUID]], wanted: Collection[UUID]) -> Iterator[UUID]:
    """Yield each video that is wanted once, a few of each source in turn."""
    taken: set[UUID] = set()
    left = [iter([video for video in source if video in wanted]) for source in sources]
    before = -1
    while before < len(taken):
        before = len(taken)
        for source, number in zip(left, TURNS, strict=True):
            for video in islice((each for each in source if each not in taken), number):
                taken.add(video)
                yield video


def vary(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first of each category, then the second of each, and so on."""
    turns: defaultdict[str | None, Iterator[int]] = defaultdict(count)
    return sorted(candidates, key=lambda each: next(turns[each.category]))


def normalize(values: Mapping[K, float]) -> dict[K, float]:
    """Return the values divided by the greatest of them."""
    most = max(values.values(), default=0.0)
    return {key: value / most for key, value in values.items()} if most else dict(values)


def falling_points(videos: Sequence[UUID]) -> dict[UUID, float]:
    """Return points for the videos of a list, from 1 for the first evenly down to just above 0."""
    return {video: 1 - place / len(videos) for place, video in enumerate(videos)}
