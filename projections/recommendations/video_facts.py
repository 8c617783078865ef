"""What recommendations are made from that is the same for every user, in the memory of a process.

How much each video is engaged with, its neighbours, and the most engaged with of each category are
read when somebody's recommendations need them, and again after some seconds: many users share
most of it. Nothing of a single user is here.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from math import exp, inf, log
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from projections.analytics.videos import listed
from projections.recommendations.co_occurrence import ALL_VIDEOS
from projections.recommendations.model import VideoKey

MOST_FACTS, MOST_LISTS, MOST_TOPS = 100_000, 10_000, 2_000
"""So many are in memory, about 60 MB; beyond that all are read anew."""
MOST_FIRST = 1_000
"""Of the tops of all categories, for who has none."""
MOST_CATEGORIES = 3
# What is read together is not read again together.
SOONEST = 0.6

COLUMNS: LiteralString = f"""
v.video_id, v.category, v.owner, extract(epoch FROM v.completed_at)::float8,
{listed("v")}, e.number, ln(e.weight), e.as_of
"""
BY_ID: LiteralString = f"""
SELECT asked.id, {COLUMNS} FROM unnest(%b::uuid[]) AS asked (id)
LEFT JOIN analytics.videos AS v ON v.video_id = asked.id
LEFT JOIN analytics.engagement AS e ON e.video_id = asked.id
"""
BY_NUMBER: LiteralString = f"""
SELECT e.video_id, {COLUMNS} FROM unnest(%b::int[]) AS asked (number)
JOIN analytics.engagement AS e USING (number)
LEFT JOIN analytics.videos AS v ON v.video_id = e.video_id
"""
NEIGHBOURS = b"""
SELECT d.number, l.neighbours || d.neighbours, l.weights || d.weights, l.as_of || d.as_of
FROM unnest(%b::int[]) AS asked (number)
JOIN analytics.neighbour_deltas AS d USING (number)
LEFT JOIN analytics.neighbour_lists AS l USING (number)
"""
TOPS = b"""
SELECT category, array_agg(video_id ORDER BY place) FROM analytics.category_tops
WHERE category = ANY (%b::text[]) GROUP BY category
"""
FIRST_OF_EACH = b"""
SELECT category, video_id FROM analytics.category_tops WHERE category <> %b
ORDER BY place, category LIMIT %b
"""

Conn = AsyncConnection[TupleRow]


@dataclass(slots=True, eq=False)
class VideoFacts:
    """What is known of a video; there is one of these per video in a store, which is read anew.

    `mass` is the logarithm of how much it is engaged with, with what it lost by `decay` until now
    left in: it is given as if of 1970. `completed` and `as_of` are seconds since then. Of what
    nobody engaged with, both are -inf.
    """

    key: VideoKey
    video_id: UUID
    category: str | None = None
    owner: str | None = None
    completed: float = 0.0
    listed: bool = False
    number: int | None = None
    mass: float = -inf
    as_of: float = -inf
    until: float = 0.0


@dataclass(slots=True, eq=False)
class NeighbourList:
    """The neighbours of a video, each once, and how strong each is; all as of one time."""

    videos: Sequence[VideoFacts] = ()
    weights: array[float] = field(default_factory=lambda: array("d"))
    as_of: float = 0.0
    total: float = 0.0
    until: float = 0.0


class Top(NamedTuple):
    """The most engaged with of a category, or the first of each; until when that holds."""

    videos: Sequence[tuple[str, VideoFacts]]
    until: float


class WantedFacts(NamedTuple):
    """What is wanted: around the videos of a profile, each with its share, and of some others."""

    seeds: Mapping[VideoKey, float]
    others: Sequence[VideoKey]


class Vicinity(NamedTuple):
    """All that was asked for; what is not there is left out.

    `categories` are how much of the profile is of each, most first; `chosen` the tops of the first
    three, or the first of each category where there is none.
    """

    seeds: Sequence[tuple[VideoFacts, float, NeighbourList]]
    categories: Mapping[str | None, float]
    chosen: Sequence[Sequence[tuple[str, VideoFacts]]]
    popular: Sequence[tuple[str, VideoFacts]]
    others: Sequence[VideoFacts]

    @property
    def tops(self) -> Iterator[tuple[str, VideoFacts]]:
        """The first of each of the chosen tops, then the second of each, and so on."""
        turns = chain.from_iterable(zip_longest(*self.chosen))
        return (each for each in turns if each is not None)


class FactStore:
    """The facts of many videos; for one event loop, and to be loaded by one task at a time."""

    def __init__(
        self,
        half_life_seconds: float,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What was read is read again after so many `seconds` at the latest."""
        self._decay = log(2) / half_life_seconds
        self._seconds = seconds
        self._clock = clock
        self._facts: dict[VideoKey, VideoFacts] = {}
        self._numbered: dict[int, VideoFacts] = {}
        self._lists: dict[VideoKey, NeighbourList] = {}
        self._tops: dict[str | None, Top] = {}

    def surroundings(self, asked: WantedFacts, since: float | None = None) -> Vicinity | None:
        """Return what was asked for, None where some of it has to be loaded.

        That is as it holds now, or held at `since`.
        """
        now = self._clock() if since is None else since
        facts, lists = self._facts, self._lists
        seeds = []
        for key, share in asked.seeds.items():
            found, near = facts.get(key), lists.get(key)
            if found is None or near is None or found.until < now or near.until < now:
                return None
            seeds.append((found, share, near))
        others = []
        for key in asked.others:
            other = facts.get(key)
            if other is None or other.until < now:
                return None
            others.append(other)
        categories = categories_of(seeds)
        tops = []
        for category in (*_wanted(categories), ALL_VIDEOS):
            top = self._tops.get(category)
            if top is None or top.until < now:
                return None
            tops.append(top.videos)
        *chosen, popular = tops
        return Vicinity(seeds, categories, chosen, popular, others)

    async def load(self, conn: Conn, wanted: Sequence[WantedFacts]) -> Sequence[Vicinity]:
        """Return what these questions ask for, and read what is lacking; raise psycopg.Error."""
        self._make_room()
        begun = self._clock()
        keys = {key for asked in wanted for key in (*asked.seeds, *asked.others)}
        await self._read(conn, keys, begun)
        seeds = {key for asked in wanted for key in asked.seeds}
        await self._read_neighbours(conn, seeds, begun)
        tops: set[str | None] = {ALL_VIDEOS}
        for asked in wanted:
            around = [(self._facts[key], share, NOTHING) for key, share in asked.seeds.items()]
            tops.update(_wanted(categories_of(around)))
        await self._read_tops(conn, tops, begun)
        found = [self.surroundings(asked, begun) for asked in wanted]
        return [each for each in found if each is not None]

    def _make_room(self) -> None:
        """Forget all where there is too much; whoever has some of it keeps that."""
        if (
            len(self._facts) > MOST_FACTS
            or len(self._lists) > MOST_LISTS
            or len(self._tops) > MOST_TOPS
        ):
            self._facts, self._numbered, self._lists, self._tops = {}, {}, {}, {}

    def _until(self) -> float:
        """Return until when what is read now holds."""
        # No secret: that not all is read at once.
        return self._clock() + self._seconds * random.uniform(SOONEST, 1.0)  # noqa: S311

    async def _read(self, conn: Conn, keys: Iterable[VideoKey], begun: float) -> None:
        lacking = [key for key in keys if self._is_old(self._facts.get(key), begun)]
        if lacking:
            ids = [UUID(bytes=key) for key in lacking]
            for row in await _rows(conn, BY_ID.encode(), ids):
                self._keep(row)

    @staticmethod
    def _is_old(found: VideoFacts | NeighbourList | Top | None, begun: float) -> bool:
        return found is None or found.until < begun

    def _keep(self, row: TupleRow) -> VideoFacts:
        video_id, known, category, owner, completed, is_listed, number, weight, as_of = row
        key = video_id.bytes
        facts = self._facts.get(key)
        if facts is None:
            facts = self._facts[key] = VideoFacts(key, video_id)
        facts.category, facts.owner = category, owner
        facts.completed = completed or 0.0
        facts.listed = known is not None and bool(is_listed)
        facts.number = number
        if number is not None:
            facts.as_of, facts.mass = as_of, weight + as_of * self._decay
        facts.until = self._until()
        if number is not None:
            self._numbered[number] = facts
        return facts

    async def _read_neighbours(self, conn: Conn, seeds: Collection[VideoKey], begun: float) -> None:
        lacking = {
            number: key
            for key in seeds
            if self._is_old(self._lists.get(key), begun)
            and (number := self._facts[key].number) is not None
        }
        rows = await _rows(conn, NEIGHBOURS, list(lacking)) if lacking else []
        numbers = {number for _, neighbours, *_ in rows for number in neighbours}
        # When a list is used, it is not looked through for what is out of date: what it names may
        # be older than the list by as long as anything holds.
        old = [each for each in numbers if self._is_old(self._numbered.get(each), begun)]
        if old:
            for row in await _rows(conn, BY_NUMBER.encode(), old):
                self._keep(row)
        until = self._until()
        for key in seeds:
            # What has none, or is not known itself.
            if self._is_old(self._lists.get(key), begun):
                self._lists[key] = NeighbourList(until=until)
        for number, *columns in rows:
            self._lists[lacking[number]] = self._merged(*columns)

    def _merged(
        self, neighbours: Sequence[int], weights: Sequence[float], times: Sequence[float]
    ) -> NeighbourList:
        """Return a list in which each neighbour is once, as of its latest time."""
        latest, decay = max(times, default=0.0), self._decay
        summed: dict[int, float] = {}
        for number, weight, at in zip(neighbours, weights, times, strict=True):
            summed[number] = summed.get(number, 0.0) + weight * exp((at - latest) * decay)
        found = {number: weight for number, weight in summed.items() if number in self._numbered}
        kept = array("d", found.values())
        videos = [self._numbered[number] for number in found]
        return NeighbourList(videos, kept, latest, sum(kept), self._until())

    async def _read_tops(
        self, conn: Conn, categories: Collection[str | None], begun: float
    ) -> None:
        lacking = [each for each in categories if self._is_old(self._tops.get(each), begun)]
        named = [each for each in lacking if each is not None]
        found: dict[str | None, list[tuple[str, UUID]]] = {each: [] for each in lacking}
        if named:
            for category, videos in await _rows(conn, TOPS, named):
                found[category] = [(category, video) for video in videos]
        if None in found:
            found[None] = await _rows(conn, FIRST_OF_EACH, ALL_VIDEOS, MOST_FIRST)
        # Read with the top itself, since it is not looked through when it is used.
        keys = {video.bytes for videos in found.values() for _, video in videos}
        await self._read(conn, keys, begun)
        for category, videos in found.items():
            tops = [(named_, self._facts[video.bytes]) for named_, video in videos]
            self._tops[category] = Top(tops, self._until())


NOTHING = NeighbourList()


def categories_of(
    seeds: Iterable[tuple[VideoFacts, float, NeighbourList]],
) -> dict[str | None, float]:
    """Return how much of a profile is of each category, the greatest share first."""
    shares: dict[str | None, float] = {}
    for facts, share, _ in seeds:
        if facts.category is not None:
            shares[facts.category] = shares.get(facts.category, 0.0) + share
    return dict(sorted(shares.items(), key=lambda each: (-each[1], each[0] or "")))


def _wanted(categories: Mapping[str | None, float]) -> Sequence[str | None]:
    """Return of which categories the tops are wanted; None stands for the first of each."""
    return list(categories)[:MOST_CATEGORIES] or [None]


async def _rows(conn: Conn, query: bytes, *given: Any) -> list[Any]:
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(query, given, prepare=True)
        return await cursor.fetchall()
