"""What viewers did last, a row each: the latest turns, the videos watched last, and how busy it is.

A video has its turn when its viewer first engages with it. What comes next is paired with those
that had theirs last: they lie in the viewer's row, and go to `analytics.earlier_turns` in parts as
new ones come. These are looked at only when somebody likes, unlikes or stays with a video of then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from typing import TypeAlias

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.projection import columns
from infra.postgres.connection import texts
from projections.analytics.calendar import start_of_hour
from projections.recommendations.model import MOST_WATCHED, EngagementKind

PART = 20
"""Turns in a part, as the migration has it: at least as many as a video is paired with."""

# Arrays come and go as texts, whose elements need no quotes: that takes a tenth of the time.
LATEST = b"""
SELECT viewer, hour, engaged, parts, videos::text, watched::text, stayed::text, liked::text,
       last_watched_ids::text, last_watched_at::text
FROM unnest(%s::text[]) AS asked (viewer) JOIN analytics.viewers USING (viewer)
"""
EARLIER = b"""
SELECT viewer, part, videos::text, watched::text, stayed::text, liked::text
FROM unnest(%s::text[], %s::int[]) AS asked (viewer, part)
JOIN analytics.earlier_turns USING (viewer, part)
"""
# ON CONFLICT would lock each row that is there before it is changed, and log the lock.
SAVE = b"""
WITH given AS MATERIALIZED (
    SELECT unnest(%s::text[]) AS viewer, unnest(%s::timestamptz[]) AS hour,
           unnest(%s::int[]) AS engaged, unnest(%s::int[]) AS parts,
           unnest(%s::text[])::int[] AS videos, unnest(%s::text[])::float8[] AS watched,
           unnest(%s::text[])::float8[] AS stayed, unnest(%s::text[])::float8[] AS liked,
           unnest(%s::text[])::uuid[] AS last_watched_ids,
           unnest(%s::text[])::float8[] AS last_watched_at),
kept AS (
    UPDATE analytics.viewers AS v
    SET hour = given.hour, engaged = given.engaged, parts = given.parts, videos = given.videos,
        watched = given.watched, stayed = given.stayed, liked = given.liked,
        last_watched_ids = given.last_watched_ids, last_watched_at = given.last_watched_at
    FROM given WHERE v.viewer = given.viewer
    RETURNING v.viewer)
INSERT INTO analytics.viewers (viewer, hour, engaged, parts, videos, watched, stayed, liked,
                               last_watched_ids, last_watched_at)
SELECT * FROM given WHERE viewer NOT IN (SELECT viewer FROM kept)
"""
SAVE_EARLIER = b"""
INSERT INTO analytics.earlier_turns (viewer, part, videos, watched, stayed, liked)
SELECT viewer, part, videos::int[], watched::float8[], stayed::float8[], liked::float8[]
FROM unnest(%s::text[], %s::int[], %s::text[], %s::text[], %s::text[], %s::text[])
    AS given (viewer, part, videos, watched, stayed, liked)
ON CONFLICT (viewer, part) DO UPDATE
SET watched = excluded.watched, stayed = excluded.stayed, liked = excluded.liked
"""

Times: TypeAlias = "list[float | None]"
"""In seconds since 1970."""


PairedVideo: TypeAlias = "tuple[int, float | None, float | None, float | None]"
"""A video that had its turn, by number, and when it was watched, stayed with and liked, as it was
paired."""


@dataclass(slots=True)
class Turns:
    """Some turns of a viewer, one after another; the first is the `first`, counted from 1 on.

    `videos` are the numbers of videos.
    """

    first: int
    videos: list[int] = field(default_factory=list)
    watched: Times = field(default_factory=list)
    stayed: Times = field(default_factory=list)
    liked: Times = field(default_factory=list)
    changed: bool = False

    @classmethod
    def parsed(cls, first: int, videos: str, watched: str, stayed: str, liked: str) -> Turns:
        """Return what the database has, as text."""
        found: list[int] = orjson.loads(_json(videos))
        never: Times = [None] * len(found)
        return cls(
            first,
            found,
            _times(watched) or [*never],
            _times(stayed) or [*never],
            _times(liked) or [*never],
        )

    def texts(self) -> list[str]:
        """Return the columns for the database."""
        never = len(self.videos)
        return [
            numbers(self.videos),
            *(
                numbers(times) if times.count(None) < never else "{}"
                for times in (self.watched, self.stayed, self.liked)
            ),
        ]

    def times_of(self, kind: EngagementKind) -> Times:
        """Return when engagements of this kind were paired."""
        if kind is EngagementKind.WATCHED:
            return self.watched
        return self.stayed if kind is EngagementKind.STAYED else self.liked

    def between(self, low: int, high: int) -> Iterator[PairedVideo]:
        """Yield those from one turn to another, both included, that are among these."""
        part = slice(max(low - self.first, 0), max(high - self.first + 1, 0))
        return zip(
            self.videos[part],
            self.watched[part],
            self.stayed[part],
            self.liked[part],
            strict=True,
        )

    def append(self, video: int) -> int:
        """Give a video its turn; return which it is."""
        self.videos.append(video)
        for times in (self.watched, self.stayed, self.liked):
            times.append(None)
        return self.first + len(self.videos) - 1

    def split(self) -> Turns:
        """Take away the first part, and return it."""
        part = Turns(
            self.first,
            self.videos[:PART],
            self.watched[:PART],
            self.stayed[:PART],
            self.liked[:PART],
            changed=True,
        )
        for column in (self.videos, self.watched, self.stayed, self.liked):
            del column[:PART]
        self.first += PART
        return part


NEVER = datetime.fromtimestamp(0, UTC)


@dataclass(slots=True)
class Viewer:
    """What a viewer did last: `engaged` are the new engagements in the latest `hour` of any.

    `latest` are at least the last PART turns, and `earlier` some parts of the others, by number.
    `last_watched` are videos and when they were watched, in seconds since 1970.
    """

    hour: datetime = NEVER
    engaged: int = 0
    latest: Turns = field(default_factory=lambda: Turns(1))
    earlier: dict[int, Turns] = field(default_factory=dict)
    last_watched: dict[str, float] = field(default_factory=dict)

    def engage(self, at: datetime) -> int:
        """Count a new engagement; return how many there are in its hour.

        What comes late counts in the latest hour.
        """
        hour = start_of_hour(at)
        if hour > self.hour:
            self.hour, self.engaged = hour, 0
        self.engaged += 1
        return self.engaged

    def watch(self, video_id: str, at: float) -> None:
        """Note when a video was watched last."""
        self.last_watched[video_id] = at

    def around(self, turn: int, most: int) -> Iterator[PairedVideo]:
        """Return the videos at most so many turns before and after one, that one included."""
        low, high = turn - most, turn + most
        earlier = _parts(low, min(high, self.latest.first - 1))
        return chain(
            *(self.earlier[number].between(low, high) for number in earlier),
            self.latest.between(low, high),
        )

    def pair(self, turn: int, kind: EngagementKind, at: float | None) -> float | None:
        """Note when an engagement with the video of a turn was paired; return what stood there."""
        turns = self.latest
        if turn < turns.first:
            turns = self.earlier[(turn - 1) // PART]
        times, place = turns.times_of(kind), turn - turns.first
        before, times[place], turns.changed = times[place], at, True
        return before

    def ended_parts(self) -> Iterator[tuple[int, Turns]]:
        """Yield the earlier parts to be saved, by number; leave less than two in `latest`."""
        while len(self.latest.videos) >= 2 * PART:
            part = self.latest.split()
            self.earlier[(part.first - 1) // PART] = part
        return ((number, each) for number, each in self.earlier.items() if each.changed)


def load(conn: Connection[TupleRow], names: Collection[str]) -> dict[str, Viewer]:
    """Return the viewers of these names, without their earlier turns."""
    viewers = {name: Viewer() for name in names}
    for row in conn.execute(LATEST, (texts(list(viewers)),), prepare=True):
        name, hour, engaged, parts, *turns, last_ids, last_times = row
        last = dict(zip(_ids(last_ids), orjson.loads(_json(last_times)), strict=True))
        latest = Turns.parsed(parts * PART + 1, *turns)
        viewers[name] = Viewer(hour, engaged, latest, last_watched=last)
    return viewers


def load_earlier(
    conn: Connection[TupleRow],
    viewers: Mapping[str, Viewer],
    turns: Iterable[tuple[str, int]],
    most: int,
) -> None:
    """Add what lies around turns, given by viewer and number, at most so many before and after."""
    parts = {
        (name, part)
        for name, turn in turns
        for part in _parts(turn - most, min(turn + most, viewers[name].latest.first - 1))
    }
    if parts:
        for name, part, *columns_ in conn.execute(EARLIER, columns(parts), prepare=True):
            viewers[name].earlier[part] = Turns.parsed(part * PART + 1, *columns_)


def save(conn: Connection[TupleRow], viewers: Mapping[str, Viewer]) -> None:
    """Store the viewers, of whom there is at least one."""
    earlier = [
        (name, part, *turns.texts())
        for name, viewer in viewers.items()
        for part, turns in viewer.ended_parts()
    ]
    if earlier:
        conn.execute(SAVE_EARLIER, columns(sorted(earlier)), prepare=True)
    rows = []
    for name, viewer in sorted(viewers.items(), key=itemgetter(0)):
        # As they are shown.
        last = sorted(viewer.last_watched.items(), key=lambda each: (-each[1], each[0]))
        ids, times = [video for video, _ in last], [at for _, at in last]
        rows.append(
            (
                name,
                viewer.hour,
                viewer.engaged,
                (viewer.latest.first - 1) // PART,
                *viewer.latest.texts(),
                _ids_text(ids[:MOST_WATCHED]),
                numbers(times[:MOST_WATCHED]),
            )
        )
    conn.execute(SAVE, columns(rows), prepare=True)


def numbers(values: Sequence[float | None]) -> str:
    """Return an array literal of numbers; `repr` of each takes five times as long."""
    return "{" + orjson.dumps(values).decode()[1:-1] + "}"


def _parts(low: int, high: int) -> range:
    """Return the numbers of the parts that hold the turns from one number to another."""
    return range((max(low, 1) - 1) // PART, (high - 1) // PART + 1)


def _json(text: str) -> str:
    """Return an array of numbers as JSON."""
    return f"[{text[1:-1].replace('NULL', 'null')}]"


def _times(text: str) -> Times:
    times: Times = orjson.loads(_json(text))
    return times


def _ids(text: str) -> list[str]:
    return text[1:-1].split(",") if len(text) > len("{}") else []


def _ids_text(ids: Sequence[str]) -> str:
    return "{" + ",".join(ids) + "}"
