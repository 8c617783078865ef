"""Co-occurrence: who engaged with which videos, and which videos are neighbours by that.

A viewer's engagement of one kind with a video counts once, however often it is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.projection import columns
from infra.advisory_locks import Lock, lock_in_transaction
from infra.postgres.connection import array
from projections.analytics.videos import listed
from projections.recommendations import turns
from projections.recommendations.attention import measure
from projections.recommendations.model import EngagementKind, Weighing
from projections.recommendations.neighbours import NOTHING, Mass, add_pairs
from projections.recommendations.turns import Viewer, numbers

KNOWN = b"""
SELECT viewer, video_id::text, watched_at, stayed_at, liked_at, unliked_at, turn
FROM unnest(%s::text[], %s::uuid[]) AS asked (viewer, video_id)
JOIN analytics.engaged USING (viewer, video_id)
"""
NUMBERS = b"""
SELECT video_id::text, number FROM analytics.engagement WHERE video_id = ANY (%s::uuid[])
"""
LAST_NUMBER = b"SELECT coalesce(max(number), 0) FROM analytics.engagement"
MOVE = b"""
INSERT INTO analytics.engaged AS e (
    viewer, video_id, watched_at, stayed_at, liked_at, unliked_at, turn)
SELECT * FROM unnest(%s::text[], %s::uuid[], %s::timestamptz[], %s::timestamptz[],
                     %s::timestamptz[], %s::timestamptz[], %s::bigint[])
ON CONFLICT (viewer, video_id) DO UPDATE
SET watched_at = excluded.watched_at, stayed_at = excluded.stayed_at,
    liked_at = excluded.liked_at, unliked_at = excluded.unliked_at, turn = excluded.turn
"""
# Two weights of their own times come to this at the later one.
GAIN = b"""
INSERT INTO analytics.engagement AS kept (number, video_id, weight, as_of)
SELECT * FROM unnest(%(numbers)s::int[], %(videos)s::uuid[], %(weights)s::float8[],
                     %(times)s::float8[])
    AS gained (number, video_id, weight, as_of) ORDER BY number
ON CONFLICT (number) DO UPDATE
SET weight = kept.weight * power(2::float8, greatest(
            (kept.as_of - greatest(kept.as_of, excluded.as_of)) / %(half_life)s::float8, -1000))
        + excluded.weight * power(2::float8, greatest(
            (excluded.as_of - greatest(kept.as_of, excluded.as_of)) / %(half_life)s::float8,
            -1000)),
    as_of = greatest(kept.as_of, excluded.as_of)
"""
LEAVE_SOME = b"""
UPDATE analytics.engagement SET weight = %(nothing)s
WHERE number = ANY (%(numbers)s::int[]) AND weight < %(nothing)s
"""
# By how much they are engaged with, and how new they are: of each category, and of all videos under
# the name that is no category's.
ALL_VIDEOS = ""
TOPS = f"""
WITH weighed AS (
    SELECT category, video_id,
           ln(weight) + as_of * ln(2) / %(half_life)s::float8
           + ln((%(shares)s::float8[])[width_bucket(
               greatest(0, max(as_of) OVER () - extract(epoch FROM completed_at)::float8),
               %(ages)s::float8[])]) AS strength
    FROM analytics.engagement JOIN analytics.videos AS v USING (video_id)
    WHERE {listed("v")}),
listed AS (
    SELECT category, video_id, strength FROM weighed WHERE category <> %(all_videos)s
    UNION ALL SELECT %(all_videos)s, video_id, strength FROM weighed),
ranked AS (
    SELECT category, video_id, row_number() OVER (
        PARTITION BY category ORDER BY strength DESC, video_id) AS place
    FROM listed)
INSERT INTO analytics.category_tops (category, place, video_id)
SELECT category, place, video_id FROM ranked WHERE place <= %(most)s
""".encode()


class Engagement(NamedTuple):
    """A viewer watched a video, stays with it, likes it, or does not like it any more.

    Ids are text, which hashes faster than UUID.
    """

    viewer: str
    video_id: str
    kind: EngagementKind
    at: datetime


@dataclass(slots=True)
class KnownVideo:
    """What is known of a viewer's engagement with a video.

    When it was last watched, since when the viewer stayed, when it was last liked, and no longer
    liked; which turn it had among the viewer's videos. Without a turn nothing of it was paired.
    """

    watched_at: datetime | None = None
    stayed_at: datetime | None = None
    liked_at: datetime | None = None
    unliked_at: datetime | None = None
    turn: int | None = None

    def columns(self) -> tuple[datetime | int | None, ...]:
        """Return the values in the order of `MOVE`."""
        return self.watched_at, self.stayed_at, self.liked_at, self.unliked_at, self.turn

    @property
    def is_liked(self) -> bool:
        """Whether the like stands."""
        return self.liked_at is not None and (
            self.unliked_at is None or self.unliked_at < self.liked_at
        )


Key = tuple[str, str]
"""A viewer and a video."""


class VideoNumbers(dict[str, int]):
    """The number of each video, by id; one that has none gets the next."""

    def __init__(self, known: Mapping[str, int], last: int) -> None:
        """`last` is the last number that was given."""
        super().__init__(known)
        self._last = last

    def __missing__(self, video_id: str) -> int:
        self._last += 1
        self[video_id] = self._last
        return self._last


class Pairing:
    """Takes engagements in one by one, and holds what they come to.

    `moved` are those of which something new is known; `gained` the weights that videos gained, and
    `pairs` those that pairs of videos did, by their numbers, the lesser one first. What an unlike
    takes back is below zero.
    """

    def __init__(
        self,
        weighing: Weighing,
        viewers: Mapping[str, Viewer],
        known: dict[Key, KnownVideo],
        numbers: VideoNumbers,
    ) -> None:
        """`viewers` are all that come, with the turns around the videos that are known."""
        self._weighing = weighing
        self._viewers = viewers
        self._known = known
        self._numbers = numbers
        self.moved: dict[Key, KnownVideo] = {}
        self.gained: defaultdict[str, Mass] = defaultdict(Mass)
        self.pairs: dict[tuple[int, int], Mass] = {}
        self.took_back = False

    def take(self, event: Engagement) -> None:
        """Take in an engagement: each counts once, whichever order they come in.

        A video that is watched again only moves in time. A like counts from the last time that it
        was given, and as if it had never been once it is taken back. Who watches comes before who
        stays.
        """
        key = event.viewer, event.video_id
        known = self._known.setdefault(key, KnownVideo())
        if not self._is_news(known, event):
            return
        self.moved[key] = known
        if event.kind is EngagementKind.WATCHED:
            first, known.watched_at = known.watched_at is None, event.at
            self._viewers[event.viewer].watch(event.video_id, event.at.timestamp())
            if first:
                self._count(known, event)
            return
        if event.kind is EngagementKind.STAYED:
            known.stayed_at = event.at
            self._count(known, event)
            return
        if known.liked_at is not None and known.is_liked:
            self._take_back(known, event, known.liked_at)
        if event.kind is EngagementKind.LIKED:
            known.liked_at = event.at
            self._count(known, event)
        else:
            known.unliked_at = event.at

    def _is_news(self, known: KnownVideo, event: Engagement) -> bool:
        if event.kind is EngagementKind.WATCHED:
            return known.watched_at is None or known.watched_at < event.at
        if event.kind is EngagementKind.STAYED:
            long_enough = self._weighing.long_enough
            return (
                known.stayed_at is None
                and known.watched_at is not None
                and event.at - known.watched_at >= long_enough
            )
        if event.kind is EngagementKind.UNLIKED and known.liked_at is None:
            # Nothing of that like is known: it was no message that can be counted.
            return False
        return all(at is None or at < event.at for at in (known.liked_at, known.unliked_at))

    def _count(self, known: KnownVideo, event: Engagement) -> None:
        weighing, viewer = self._weighing, self._viewers[event.viewer]
        weight, seconds = weighing.of(event.kind), event.at.timestamp()
        self.gained[event.video_id].add(weight, seconds, weighing.half_life_seconds)
        if viewer.engage(event.at) > weighing.paired_per_hour:
            return
        if known.turn is None:
            known.turn = viewer.latest.append(self._numbers[event.video_id])
        self._pair(viewer, event.video_id, known.turn, weight, seconds)
        viewer.pair(known.turn, event.kind, seconds)

    def _take_back(self, known: KnownVideo, event: Engagement, liked_at: datetime) -> None:
        """Take back what a like brought, wherever its video was paired since."""
        weight, viewer = -self._weighing.liked, self._viewers[event.viewer]
        self.took_back = True
        half_life = self._weighing.half_life_seconds
        self.gained[event.video_id].add(weight, liked_at.timestamp(), half_life)
        if known.turn is None:
            return
        at_pairing = viewer.pair(known.turn, EngagementKind.LIKED, None)
        if at_pairing is not None:
            self._pair(viewer, event.video_id, known.turn, weight, at_pairing)

    def _pair(self, viewer: Viewer, video_id: str, turn: int, weight: float, at: float) -> None:
        """Add a weight to the pairs of a video with those that had their turns around it."""
        weighing, number = self._weighing, self._numbers[video_id]
        per_watched, per_stayed, per_liked = (
            weight * its for its in (weighing.watched, weighing.stayed, weighing.liked)
        )
        for other, watched, stayed, liked in viewer.around(turn, weighing.paired_with):
            if other == number:
                continue
            pair = (number, other) if number < other else (other, number)
            # What was before this engagement counts as of it; all of that is added at once.
            gained = 0.0
            if watched is not None:
                if watched > at:
                    self._add(pair, per_watched, watched)
                else:
                    gained = per_watched
            if stayed is not None:
                if stayed > at:
                    self._add(pair, per_stayed, stayed)
                else:
                    gained += per_stayed
            if liked is not None:
                if liked > at:
                    self._add(pair, per_liked, liked)
                else:
                    gained += per_liked
            if gained:
                self._add(pair, gained, at)

    def _add(self, pair: tuple[int, int], weight: float, at: float) -> None:
        mass = self.pairs.get(pair)
        if mass is None:
            self.pairs[pair] = Mass(weight, at)
        else:
            mass.add(weight, at, self._weighing.half_life_seconds)


def keep(
    conn: Connection[TupleRow], batch: Sequence[Engagement], weighing: Weighing
) -> frozenset[str]:
    """Take engagements in; return the viewers of whom something new is known.

    To be called in a transaction, which then holds a lock.
    """
    lock_in_transaction(conn, Lock.RECOMMENDATION_ROWS)
    if not batch:
        return frozenset()
    known = _known(conn, batch)
    viewers = turns.load(conn, {event.viewer for event in batch})
    around = [
        (event.viewer, known[key].turn or 0)
        for event in batch
        if (key := (event.viewer, event.video_id)) in known and _is_fresh(known[key], event)
    ]
    turns.load_earlier(conn, viewers, [each for each in around if each[1]], weighing.paired_with)
    numbers = _numbers(conn, {event.video_id for event in batch})
    pairing = Pairing(weighing, viewers, known, numbers)
    for event in batch:
        pairing.take(event)
    _write(conn, pairing, numbers, weighing)
    changed = frozenset(viewer for viewer, _ in pairing.moved)
    if changed:
        turns.save(conn, {name: viewers[name] for name in changed})
    return changed


def rank_categories(conn: Connection[TupleRow], weighing: Weighing) -> None:
    """Rank the videos of each category, and all, by engagement, in place of the last ranking.

    What age leaves of the attention for them is measured anew before.
    """
    with conn.transaction():
        lock_in_transaction(conn, Lock.RECOMMENDATION_ROWS)
        ages, shares = measure(conn, weighing).columns()
        given = {
            "half_life": weighing.half_life_seconds,
            "ages": ages,
            "shares": shares,
            "all_videos": ALL_VIDEOS,
            "most": weighing.category_tops,
        }
        conn.execute(b"DELETE FROM analytics.category_tops")
        conn.execute(TOPS, given)


def _known(conn: Connection[TupleRow], batch: Sequence[Engagement]) -> dict[Key, KnownVideo]:
    """Return what is known of the batch's videos by their viewers."""
    keys = {(event.viewer, event.video_id) for event in batch}
    found = conn.execute(KNOWN, columns(keys), prepare=True)
    return {(viewer, video_id): KnownVideo(*known) for viewer, video_id, *known in found}


def _numbers(conn: Connection[TupleRow], videos: Collection[str]) -> VideoNumbers:
    """Return the numbers of the videos that have one. Nobody else gives any meanwhile."""
    found: dict[str, int] = dict(conn.execute(NUMBERS, (array(videos),), prepare=True).fetchall())
    if len(found) == len(videos):
        return VideoNumbers(found, 0)
    (last,) = conn.execute(LAST_NUMBER).fetchone() or (0,)
    return VideoNumbers(found, last)


def _is_fresh(known: KnownVideo, event: Engagement) -> bool:
    """Return whether the event may change pairs; whoever watches or stays again does not."""
    if event.kind is EngagementKind.WATCHED:
        return known.watched_at is None
    if event.kind is EngagementKind.STAYED:
        return known.stayed_at is None
    return True


def _write(
    conn: Connection[TupleRow], pairing: Pairing, known: VideoNumbers, weighing: Weighing
) -> None:
    if pairing.moved:
        moved = [
            (viewer, video_id, *known.columns())
            for (viewer, video_id), known in sorted(pairing.moved.items(), key=itemgetter(0))
        ]
        conn.execute(MOVE, columns(moved), prepare=True)
    if pairing.gained:
        gained: dict[str, Any] = {
            "numbers": numbers([known[video] for video in pairing.gained]),
            "videos": array(pairing.gained),
            "weights": numbers([mass.weight for mass in pairing.gained.values()]),
            "times": numbers([mass.as_of for mass in pairing.gained.values()]),
            "half_life": weighing.half_life_seconds,
            "nothing": NOTHING,
        }
        conn.execute(GAIN, gained, prepare=True)
        if pairing.took_back:
            conn.execute(LEAVE_SOME, gained, prepare=True)
    if pairing.pairs:
        add_pairs(conn, pairing.pairs, weighing)
