"""Co-occurrence: who engaged with which videos, and which videos are neighbours by that.

A viewer's engagement of one kind with a video counts once, however often it is given.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import LiteralString, NamedTuple, TypeVar

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.projection import columns
from infra.advisory_locks import Lock, lock_in_transaction
from infra.postgres.connection import array, texts
from projections.analytics.calendar import start_of_hour
from projections.recommendations.model import EngagementKind, Weighing

MOST_HALVINGS = 1000.0

Key = tuple[str, str]
"""A viewer and a video."""
Pair = tuple[str, str]
"""Two videos, the lesser id first."""

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
CLEAR_TOPS = b"DELETE FROM analytics.category_tops"
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

K = TypeVar("K")


class Engagement(NamedTuple):
    """A viewer watched or liked a video; ids are text, which hashes faster than UUID."""

    viewer: str
    video_id: str
    kind: EngagementKind
    at: datetime


@dataclass(slots=True)
class Mass:
    """A weight as it was at a time (seconds since 1970); it halves with each half-life."""

    weight: float
    as_of: float

    def add(self, weight: float, at: float, half_life: float) -> None:
        """Add a weight of another time; the order of additions makes no difference."""
        if at > self.as_of:
            self.weight, weight = weight, self.weight
            self.as_of, at = at, self.as_of
        self.weight += weight * 2.0 ** -min((self.as_of - at) / half_life, MOST_HALVINGS)


@dataclass(slots=True)
class Times:
    """When a viewer last watched and last liked a video."""

    watched: datetime | None = None
    liked: datetime | None = None

    def of(self, kind: EngagementKind) -> datetime | None:
        return self.liked if kind is EngagementKind.LIKED else self.watched

    def move(self, kind: EngagementKind, at: datetime) -> bool:
        """Take a later time; return whether it was later."""
        before = self.of(kind)
        if before is not None and before >= at:
            return False
        if kind is EngagementKind.LIKED:
            self.liked = at
        else:
            self.watched = at
        return True

    def each(self) -> list[tuple[EngagementKind, datetime]]:
        both = (EngagementKind.WATCHED, self.watched), (EngagementKind.LIKED, self.liked)
        return [(kind, at) for kind, at in both if at is not None]


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
        latest = max(at for _, at in self.times[video_id].each())
        insort(self.recent, (latest, video_id))
        del self.recent[:-most]

    def others(self, video_id: str, most: int) -> list[str]:
        """Return the last videos beside this one, the latest first."""
        return [video for _, video in reversed(self.recent) if video != video_id][:most]


@dataclass(slots=True)
class PairingChange:
    """What a batch comes to: times that moved, weights that videos and pairs of videos gained."""

    times: dict[Key, Times] = field(default_factory=dict)
    gained: dict[str, Mass] = field(default_factory=dict)
    pairs: dict[Pair, Mass] = field(default_factory=dict)


def add(masses: dict[K, Mass], key: K, weight: float, at: float, half_life: float) -> None:
    """Add to one of many masses."""
    mass = masses.get(key)
    if mass is None:
        masses[key] = Mass(weight, at)
    else:
        mass.add(weight, at, half_life)


class Pairing:
    """Takes engagements in one by one."""

    def __init__(self, weighing: Weighing, viewers: dict[str, Viewer]) -> None:
        """`viewers` know the times of all videos that come, and enough of the last ones."""
        self._weighing = weighing
        self._viewers = viewers
        self.change = PairingChange()

    def take(self, event: Engagement) -> None:
        """Take in an engagement: the first of its kind counts, each further one moves the time."""
        viewer = self._viewers[event.viewer]
        times = viewer.times.setdefault(event.video_id, Times())
        is_new = times.of(event.kind) is None
        if not times.move(event.kind, event.at):
            return
        self.change.times[event.viewer, event.video_id] = times
        if is_new:
            self._count(viewer, event)
        viewer.remember(event.video_id, self._weighing.paired_with + 1)

    def _count(self, viewer: Viewer, event: Engagement) -> None:
        weighing, hour = self._weighing, start_of_hour(event.at)
        weight, at = weighing.of(event.kind), event.at.timestamp()
        add(self.change.gained, event.video_id, weight, at, weighing.half_life_seconds)
        viewer.hours[hour] = viewer.hours.get(hour, 0) + 1
        if viewer.hours[hour] <= weighing.paired_per_hour:
            for other in viewer.others(event.video_id, weighing.paired_with):
                self._pair(event.video_id, other, weight, at, viewer.times[other])

    def _pair(self, video_id: str, other: str, weight: float, at: float, times: Times) -> None:
        pair = (video_id, other) if video_id < other else (other, video_id)
        weighing = self._weighing
        for kind, then in times.each():
            both, later = weight * weighing.of(kind), max(at, then.timestamp())
            add(self.change.pairs, pair, both, later, weighing.half_life_seconds)


def keep(
    conn: Connection[TupleRow], batch: Sequence[Engagement], weighing: Weighing
) -> frozenset[str]:
    """Take engagements in; return the viewers of whom something new is known.

    Run it in a transaction, which then holds a lock.
    """
    lock_in_transaction(conn, Lock.RECOMMENDATION_ROWS)
    if not batch:
        return frozenset()
    pairing = Pairing(weighing, _viewers(conn, batch, weighing))
    for event in batch:
        pairing.take(event)
    _write(conn, pairing.change, weighing)
    return frozenset(viewer for viewer, _ in pairing.change.times)


def rank_categories(conn: Connection[TupleRow], weighing: Weighing) -> None:
    """Rank the videos of each category by engagement, in place of the last ranking.

    Its order changes only with what is kept, since all weights decay alike.
    """
    given = {"half_life": weighing.half_life_seconds, "most": weighing.category_tops}
    with conn.transaction():
        lock_in_transaction(conn, Lock.RECOMMENDATION_ROWS)
        conn.execute(CLEAR_TOPS)
        conn.execute(TOPS, given)


def _viewers(
    conn: Connection[TupleRow], batch: Sequence[Engagement], weighing: Weighing
) -> dict[str, Viewer]:
    """Return what the pairing has to know of the batch's viewers."""
    viewers = {event.viewer: Viewer() for event in batch}
    keys = {(event.viewer, event.video_id) for event in batch}
    for viewer, video_id, *times in conn.execute(KNOWN, columns(keys), prepare=True):
        viewers[viewer].times[video_id] = Times(*times)
    fresh = [event for event in batch if _is_new(event, viewers[event.viewer])]
    if fresh:
        _recall(conn, fresh, viewers, weighing)
    return viewers


def _is_new(event: Engagement, viewer: Viewer) -> bool:
    times = viewer.times.get(event.video_id)
    return times is None or times.of(event.kind) is None


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
        for viewer, video_id, watched, liked, at in cursor.fetchall():
            viewers[viewer].times.setdefault(video_id, Times(watched, liked))
            viewers[viewer].recent.append((at, video_id))
    for name in names:
        viewers[name].recent.sort()
    hours = {(event.viewer, start_of_hour(event.at)) for event in fresh}
    asked = weighing.paired_per_hour, *columns(hours)
    for viewer, hour, count in conn.execute(BUSY, asked, prepare=True):
        viewers[viewer].hours[start_of_hour(hour)] = count


def _write(conn: Connection[TupleRow], change: PairingChange, weighing: Weighing) -> None:
    if change.times:
        moved = ((*key, times.watched, times.liked) for key, times in sorted(change.times.items()))
        conn.execute(MOVE, columns(moved), prepare=True)
    given = {"half_life": weighing.half_life_seconds, "most": weighing.neighbours}
    if change.gained:
        masses = _masses(change.gained.values())
        gained = {"videos": texts(list(change.gained)), **masses}
        conn.execute(GAIN.encode(), {**gained, **given}, prepare=True)
    if change.pairs:
        ones, others = columns(change.pairs)
        pairs = {"ones": ones, "others": others, **_masses(change.pairs.values())}
        grown = conn.execute(PAIR.encode(), {**pairs, **given}, prepare=False).fetchall()
        _prune(conn, [video for (video,) in grown], weighing)


def _masses(masses: Collection[Mass]) -> dict[str, str]:
    """Return array literals: psycopg's dumpers take far longer."""
    return {
        "weights": array([repr(mass.weight) for mass in masses]),
        "times": array([repr(mass.as_of) for mass in masses]),
    }


def _prune(conn: Connection[TupleRow], videos: Sequence[str], weighing: Weighing) -> None:
    if videos:
        given = {
            "videos": texts(videos),
            "most": weighing.neighbours,
            "half_life": weighing.half_life_seconds,
            "exponent": weighing.popularity_exponent,
        }
        conn.execute(PRUNE, given, prepare=False)
