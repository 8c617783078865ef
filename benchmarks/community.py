"""A made-up community whose tastes are known: what would be watched next can be said exactly.

Made as latent Dirichlet allocation makes texts (Blei, Ng and Jordan, 2003): for each view a topic
is drawn from the viewer's taste, then a video from that topic. Popularity counts within every topic
and across all of them, and what is new is watched more, so that trending is a fair guess.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate
from random import Random
from uuid import UUID

from benchmarks.history import Event, Film, History, Kind

DAY = timedelta(days=1)
CATEGORIES = ("music", "nature", "sport", "cooking", "games", "science")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a community is like.

    `topics` are finer than categories: several share one. `concentration` is the sum of the
    Dirichlet parameters of a taste: the smaller, the fewer topics a viewer has. Topic n (from 1)
    is liked in proportion to n^-`topic_skew`. The appeal of videos has a Pareto distribution with
    the exponent `appeal`: the smaller, the more a few are watched. A video's freshness halves in
    `fresh_days` down to `evergreen`. `crowd` is the share of views that follow popularity alone,
    `mislabelled` the share of videos with another category than theirs or none.
    """

    users: int = 400
    videos: int = 600
    days: int = 42
    topics: int = 16
    concentration: float = 0.7
    topic_skew: float = 0.5
    appeal: float = 2.0
    fresh_days: float = 10.0
    evergreen: float = 0.1
    crowd: float = 0.1
    mislabelled: float = 0.2
    sittings_per_week: float = 3.0
    views_per_sitting: int = 3
    like_own: float = 0.3
    like_other: float = 0.05


@dataclass(frozen=True, slots=True)
class Community:
    """A history and what is behind it: tastes sum up to 1, a video's mix does too."""

    shape: Shape
    history: History
    tastes: Mapping[str, Sequence[float]]
    _days: Days

    def day_of(self, at: datetime) -> int:
        """Which day that is, from 0."""
        return (at - self._days.begin) // DAY

    def wanted(self, user: str, day: int) -> dict[UUID, float]:
        """How likely each video is to be the user's next one on that day: what nobody can beat."""
        found: dict[UUID, float] = {}
        for topic, share in enumerate(shares(self.tastes[user], self.shape.crowd)):
            shelf = self._days.shelf(day, topic)
            for film, chance in zip(self.history.films, shelf.chances(), strict=False):
                found[film.video_id] = found.get(film.video_id, 0.0) + share * chance
        return found


@dataclass(frozen=True, slots=True)
class Shelf:
    """The videos as one topic weighs them, the weights summed up."""

    sums: Sequence[float]

    def draw(self, chance: Random) -> int:
        """The number of a video."""
        place = bisect(self.sums, chance.random() * self.sums[-1])
        return min(place, len(self.sums) - 1)

    def chances(self) -> list[float]:
        before = [0.0, *self.sums[:-1]]
        total = self.sums[-1]
        return [(after - prior) / total for prior, after in zip(before, self.sums, strict=True)]


@dataclass(frozen=True, slots=True)
class Days:
    """Which videos are on which shelf on which day; the shelf after the topics' is the crowd's.

    Day 0 begins at `begin`.
    """

    shape: Shape
    begin: datetime
    born: Sequence[int]
    appeal: Sequence[float]
    mixes: Sequence[Sequence[float]]
    _shelves: dict[tuple[int, int], Shelf] = field(default_factory=dict)

    def shelf(self, day: int, topic: int) -> Shelf:
        if (day, topic) not in self._shelves:
            weights = (
                (1.0 if topic == self.shape.topics else mix[topic])
                * appeal
                * self._fresh(day - born)
                for mix, appeal, born in zip(self.mixes, self.appeal, self.born, strict=True)
            )
            self._shelves[day, topic] = Shelf(list(accumulate(weights)))
        return self._shelves[day, topic]

    def _fresh(self, age: int) -> float:
        if age < 0:
            return 0.0
        floor = self.shape.evergreen
        return float(floor + (1 - floor) * 2 ** (-age / self.shape.fresh_days))


def make_community(seed: int, shape: Shape, *, until: datetime) -> Community:
    """The same for the same arguments; half of the videos are there from the beginning."""
    chance = Random(seed)
    days = _days(chance, shape, until - shape.days * DAY)
    films = [_film(chance, days, number) for number in range(shape.videos)]
    base = [(1 + topic) ** -shape.topic_skew for topic in range(shape.topics)]
    tastes = {
        f"viewer-{number}": dirichlet(chance, base, shape.concentration)
        for number in range(shape.users)
    }
    events = [
        event
        for user, taste in tastes.items()
        for event in _Viewer(user, taste, days, films).events(chance)
    ]
    events.sort(key=lambda event: (event.at, event.user))
    return Community(shape, History(films, events), tastes, days)


def dirichlet(chance: Random, base: Sequence[float], concentration: float) -> list[float]:
    """Shares that sum up to 1, on average in proportion to `base` (Devroye, 1986, XI.4)."""
    total = sum(base)
    # Never all zero, as tiny parameters would have it.
    drawn = [chance.gammavariate(concentration * each / total, 1) + 1e-12 for each in base]
    return [each / sum(drawn) for each in drawn]


def shares(taste: Sequence[float], crowd: float) -> list[float]:
    """How likely a view is of each shelf, the crowd's at the end."""
    return [*((1 - crowd) * share for share in taste), crowd]


def _days(chance: Random, shape: Shape, begin: datetime) -> Days:
    even = [1.0] * shape.topics
    return Days(
        shape,
        begin,
        born=[max(0, chance.randrange(-shape.days, shape.days)) for _ in range(shape.videos)],
        appeal=[chance.paretovariate(shape.appeal) for _ in range(shape.videos)],
        mixes=[dirichlet(chance, even, 0.5) for _ in range(shape.videos)],
    )


def _film(chance: Random, days: Days, number: int) -> Film:
    mix = days.mixes[number]
    topic = max(range(len(mix)), key=lambda each: mix[each])
    category: str | None = CATEGORIES[topic % len(CATEGORIES)]
    if chance.random() < days.shape.mislabelled:
        category = chance.choice([*CATEGORIES, None])
    since = days.begin + days.born[number] * DAY
    title = f"{category or 'film'} of topic {topic}, number {number}"
    return Film(new_id(chance), title, category, f"maker-{number % 97}", since)


@dataclass(frozen=True, slots=True)
class _Viewer:
    user: str
    taste: Sequence[float]
    days: Days
    films: Sequence[Film]

    def events(self, chance: Random) -> list[Event]:
        """All that the viewer does; no video is watched twice, and some come far more often."""
        shape, seen = self.days.shape, set[int]()
        often = shape.sittings_per_week * chance.lognormvariate(-0.125, 0.5)
        found: list[Event] = []
        for day in range(shape.days):
            if chance.random() < often / 7:
                at = self.days.begin + (day + chance.random() * 0.9) * DAY
                found += self._sitting(chance, day, at, seen)
        return found

    def _sitting(self, chance: Random, day: int, at: datetime, seen: set[int]) -> list[Event]:
        shape = self.days.shape
        shelves = shares(self.taste, shape.crowd)
        found: list[Event] = []
        for _ in range(chance.randint(1, 2 * shape.views_per_sitting - 1)):
            (topic,) = chance.choices(range(len(shelves)), shelves)
            number = self.days.shelf(day, topic).draw(chance)
            if number not in seen:
                seen.add(number)
                found += self._view(chance, at, number, own=topic < shape.topics)
                at += timedelta(minutes=6)
        return found

    def _view(self, chance: Random, at: datetime, number: int, *, own: bool) -> list[Event]:
        """What is of the viewer's own taste is watched longer and liked more often."""
        shape = self.days.shape
        liked = chance.random() < (shape.like_own if own else shape.like_other)
        seconds = round(chance.uniform(60, 300) if own else chance.uniform(10, 120), 1)
        # Was the id of a session: without this draw, each seed would make another community.
        chance.getrandbits(128)
        video = self.films[number].video_id
        view = Event(at, self.user, video, Kind.VIEW, seconds)
        if not liked:
            return [view]
        return [view, Event(at + timedelta(seconds=seconds), self.user, video, Kind.LIKE)]


def new_id(chance: Random) -> UUID:
    """A random UUID that is the same for the same seed."""
    return UUID(int=chance.getrandbits(128), version=4)
