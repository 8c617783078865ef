"""Co-occurrence: who engaged with which videos, and which videos are neighbours by that.

A viewer's engagement of one kind with a video counts once, however often it is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.projection import columns
from infra.advisory_locks import Lock, lock_in_transaction
from infra.postgres.connection import texts
from projections.analytics.calendar import start_of_hour
from projections.analytics.videos import listed
from projections.recommendations.attention import measure
from projections.recommendations.model import EngagementKind, Weighing
from projections.recommendations.neighbours import NOTHING, Mass, add_pairs, masses

KNOWN = b"""
SELECT viewer, video_id::text, watched_at, stayed_at, liked_at, unliked_at, turn,
       watch_paired_at, stay_paired_at, like_paired_at
FROM unnest(%s::text[], %s::uuid[]) AS asked (viewer, video_id)
JOIN analytics.engaged USING (viewer, video_id)
"""
# What comes next is paired with these, of which only that is told: to write and to read times takes
# most of the time.
LAST = b"""
SELECT asked.viewer, video_id::text, NULL, NULL, NULL, NULL, turn, watch_paired_at, stay_paired_at,
       like_paired_at
FROM unnest(%s::text[]) AS asked (viewer)
CROSS JOIN LATERAL (
    SELECT * FROM analytics.engaged AS e
    WHERE e.viewer = asked.viewer AND turn IS NOT NULL ORDER BY turn DESC LIMIT %s) AS last
"""
# What had its turn before and after a video that is known already.
AROUND = b"""
SELECT e.viewer, video_id::text, NULL, NULL, NULL, NULL, e.turn, watch_paired_at, stay_paired_at,
       like_paired_at
FROM unnest(%(viewers)s::text[], %(turns)s::bigint[]) AS asked (viewer, turn)
JOIN analytics.engaged AS e ON e.viewer = asked.viewer
 AND e.turn BETWEEN asked.turn - %(most)s AND asked.turn + %(most)s
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
INSERT INTO analytics.engaged AS e (
    viewer, video_id, watched_at, stayed_at, liked_at, unliked_at, turn, watch_paired_at,
    stay_paired_at, like_paired_at)
SELECT * FROM unnest(
    %s::text[], %s::uuid[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[],
    %s::timestamptz[], %s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[])
ON CONFLICT (viewer, video_id) DO UPDATE
SET watched_at = excluded.watched_at, stayed_at = excluded.stayed_at,
    liked_at = excluded.liked_at, unliked_at = excluded.unliked_at, turn = excluded.turn,
    watch_paired_at = excluded.watch_paired_at, stay_paired_at = excluded.stay_paired_at,
    like_paired_at = excluded.like_paired_at
"""
# Two weights of their own times come to this at the later one.
GAIN = b"""
INSERT INTO analytics.engagement AS kept (video_id, weight, as_of)
SELECT * FROM unnest(%(videos)s::uuid[], %(weights)s::float8[], %(times)s::float8[])
    AS gained (video_id, weight, as_of) ORDER BY video_id
ON CONFLICT (video_id) DO UPDATE
SET weight = kept.weight * power(2::float8, greatest(
            (kept.as_of - greatest(kept.as_of, excluded.as_of)) / %(half_life)s::float8, -1000))
        + excluded.weight * power(2::float8, greatest(
            (excluded.as_of - greatest(kept.as_of, excluded.as_of)) / %(half_life)s::float8,
            -1000)),
    as_of = greatest(kept.as_of, excluded.as_of)
"""
LEAVE_SOME = b"""
UPDATE analytics.engagement SET weight = %(nothing)s
WHERE video_id = ANY (%(videos)s::uuid[]) AND weight < %(nothing)s
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
    liked; which turn it had among the viewer's videos, and the times of what was paired. Without a
    turn nothing was.
    """

    watched_at: datetime | None = None
    stayed_at: datetime | None = None
    liked_at: datetime | None = None
    unliked_at: datetime | None = None
    turn: int | None = None
    watch_paired_at: datetime | None = None
    stay_paired_at: datetime | None = None
    like_paired_at: datetime | None = None

    def columns(self) -> tuple[datetime | int | None, ...]:
        """Return the values in the order of `MOVE`."""
        return (
            self.watched_at,
            self.stayed_at,
            self.liked_at,
            self.unliked_at,
            self.turn,
            self.watch_paired_at,
            self.stay_paired_at,
            self.like_paired_at,
        )

    @property
    def is_liked(self) -> bool:
        """Whether the like stands."""
        return self.liked_at is not None and (
            self.unliked_at is None or self.unliked_at < self.liked_at
        )

    def paired(self, weighing: Weighing) -> list[tuple[float, datetime]]:
        """Return the weight and the time of each engagement that counts in pairs."""
        found = []
        if self.watch_paired_at is not None:
            found.append((weighing.watched, self.watch_paired_at))
        if self.stay_paired_at is not None:
            found.append((weighing.stayed, self.stay_paired_at))
        if self.like_paired_at is not None:
            found.append((weighing.liked, self.like_paired_at))
        return found


@dataclass(slots=True)
class Viewer:
    """What is known of a viewer: some videos, by id and by turn, and the last turn that was had."""

    videos: dict[str, KnownVideo] = field(default_factory=dict)
    turns: dict[int, str] = field(default_factory=dict)
    last_turn: int = 0
    # How many new engagements there are in each hour.
    hours: dict[datetime, int] = field(default_factory=dict)

    def recall(self, video_id: str, known: KnownVideo) -> None:
        """Add what the database knows of a video."""
        self.videos.setdefault(video_id, known)
        if known.turn is not None:
            self.turns[known.turn] = video_id
            self.last_turn = max(self.last_turn, known.turn)

    def turn_of(self, video_id: str) -> int:
        """Return the turn of a video; it is the next one if it had none yet."""
        known = self.videos[video_id]
        if known.turn is None:
            self.last_turn += 1
            known.turn = self.last_turn
            self.turns[known.turn] = video_id
        return known.turn


class Pairing:
    """Takes engagements in one by one, and holds what they come to.

    `moved` are those of which something new is known, by viewer and video; `gained` the weights
    that videos gained, and `pairs` those that pairs of videos did, the lesser id first. What an
    unlike takes back is below zero.
    """

    def __init__(self, weighing: Weighing, viewers: dict[str, Viewer]) -> None:
        """`viewers` know all videos that come, the last ones, and those around what is liked."""
        self._weighing = weighing
        self._viewers = viewers
        self.moved: dict[tuple[str, str], KnownVideo] = {}
        self.gained: defaultdict[str, Mass] = defaultdict(Mass)
        self.pairs: dict[tuple[str, str], Mass] = {}
        self.took_back = False

    def take(self, event: Engagement) -> None:
        """Take in an engagement: each counts once, whichever order they come in.

        A video that is watched again only moves in time. A like counts from the last time that it
        was given, and as if it had never been once it is taken back. Who watches comes before who
        stays.
        """
        viewer = self._viewers[event.viewer]
        known = viewer.videos.setdefault(event.video_id, KnownVideo())
        if not self._is_news(known, event):
            return
        self.moved[event.viewer, event.video_id] = known
        if event.kind is EngagementKind.WATCHED:
            first, known.watched_at = known.watched_at is None, event.at
            if first:
                self._count(viewer, event)
            return
        if event.kind is EngagementKind.STAYED:
            known.stayed_at = event.at
            self._count(viewer, event)
            return
        if known.is_liked:
            self._take_back(viewer, event.video_id)
        if event.kind is EngagementKind.LIKED:
            known.liked_at = event.at
            self._count(viewer, event)
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

    def _count(self, viewer: Viewer, event: Engagement) -> None:
        weighing, known = self._weighing, viewer.videos[event.video_id]
        weight, hour = weighing.of(event.kind), start_of_hour(event.at)
        self.gained[event.video_id].add(weight, event.at.timestamp(), weighing.half_life_seconds)
        viewer.hours[hour] = viewer.hours.get(hour, 0) + 1
        if viewer.hours[hour] > weighing.paired_per_hour:
            return
        self._pair(viewer, event.video_id, weight, event.at)
        if event.kind is EngagementKind.LIKED:
            known.like_paired_at = event.at
        elif event.kind is EngagementKind.STAYED:
            known.stay_paired_at = event.at
        else:
            known.watch_paired_at = event.at

    def _take_back(self, viewer: Viewer, video_id: str) -> None:
        """Take back what a like brought, wherever its video was paired since."""
        known, weight = viewer.videos[video_id], self._weighing.liked
        self.took_back = True
        if known.liked_at is not None:
            at = known.liked_at.timestamp()
            self.gained[video_id].add(-weight, at, self._weighing.half_life_seconds)
        at_pairing, known.like_paired_at = known.like_paired_at, None
        if at_pairing is not None:
            self._pair(viewer, video_id, -weight, at_pairing)

    def _pair(self, viewer: Viewer, video_id: str, weight: float, at: datetime) -> None:
        """Add a weight to the pairs of a video with those that had their turns around it."""
        turn, most = viewer.turn_of(video_id), self._weighing.paired_with
        half_life, seconds = self._weighing.half_life_seconds, at.timestamp()
        for each in range(max(turn - most, 1), min(turn + most, viewer.last_turn) + 1):
            other = viewer.turns.get(each)
            if other is None or other == video_id:
                continue
            pair = (video_id, other) if video_id < other else (other, video_id)
            for its, then in viewer.videos[other].paired(self._weighing):
                time = seconds if then <= at else then.timestamp()
                mass = self.pairs.get(pair)
                if mass is None:
                    self.pairs[pair] = Mass(weight * its, time)
                else:
                    mass.add(weight * its, time, half_life)


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
    return frozenset(viewer for viewer, _ in pairing.moved)


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


def _viewers(
    conn: Connection[TupleRow], batch: Sequence[Engagement], weighing: Weighing
) -> dict[str, Viewer]:
    """Return what the pairing has to know of the batch's viewers."""
    viewers = {event.viewer: Viewer() for event in batch}
    keys = {(event.viewer, event.video_id) for event in batch}
    _recall(viewers, conn.execute(KNOWN, columns(keys), prepare=True))
    fresh = [event for event in batch if _is_fresh(viewers[event.viewer], event)]
    turns = {
        (event.viewer, known.turn)
        for event in fresh
        if (known := viewers[event.viewer].videos.get(event.video_id)) and known.turn is not None
    }
    if turns:
        names, numbers = columns(turns)
        around = {"viewers": names, "turns": numbers, "most": weighing.paired_with}
        _recall(viewers, conn.execute(AROUND, around, prepare=True))
    if fresh:
        names = texts(list({event.viewer for event in fresh}))
        _recall(viewers, conn.execute(LAST, (names, weighing.paired_with), prepare=True))
        hours = {(event.viewer, start_of_hour(event.at)) for event in fresh}
        asked = weighing.paired_per_hour, *columns(hours)
        for viewer, hour, engaged in conn.execute(BUSY, asked, prepare=True):
            viewers[viewer].hours[start_of_hour(hour)] = engaged
    return viewers


def _recall(viewers: Mapping[str, Viewer], rows: Iterable[TupleRow]) -> None:
    for viewer, video_id, *known in rows:
        viewers[viewer].recall(video_id, KnownVideo(*known))


def _is_fresh(viewer: Viewer, event: Engagement) -> bool:
    """Return whether the event may change pairs; whoever watches or stays again does not.

    Where nothing is known of the video, who watched it first is among the same events.
    """
    known = viewer.videos.get(event.video_id)
    if event.kind is EngagementKind.WATCHED:
        return known is None or known.watched_at is None
    if event.kind is EngagementKind.STAYED:
        return known is not None and known.stayed_at is None
    return True


def _write(conn: Connection[TupleRow], pairing: Pairing, weighing: Weighing) -> None:
    if pairing.moved:
        moved = [
            (viewer, video_id, *known.columns())
            for (viewer, video_id), known in sorted(pairing.moved.items(), key=itemgetter(0))
        ]
        conn.execute(MOVE, columns(moved), prepare=True)
    if pairing.gained:
        gained: dict[str, Any] = {
            "videos": texts(list(pairing.gained)),
            **masses(pairing.gained.values()),
            "half_life": weighing.half_life_seconds,
            "nothing": NOTHING,
        }
        conn.execute(GAIN, gained, prepare=True)
        if pairing.took_back:
            conn.execute(LEAVE_SOME, gained, prepare=True)
    if pairing.pairs:
        add_pairs(conn, pairing.pairs, weighing)
