"""Which videos may be recommended to a user, and what speaks for each."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from math import exp, fsum, inf
from operator import mul
from typing import NamedTuple, TypeVar
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from projections.recommendations.attention import Attention
from projections.recommendations.model import Candidate, Material, Profile, VideoKey, Weighing
from projections.recommendations.prompt import MOST_CANDIDATES, MOST_TRENDING
from projections.recommendations.video_facts import (
    FactStore,
    Vicinity,
    VideoFacts,
    WantedFacts,
)
from projections.trending import Ranked

ENGAGED_WITH = b"""
SELECT video_id FROM analytics.engaged WHERE viewer = %b AND video_id = ANY (%b::uuid[])
"""

# So many of the nearest are looked at: what is new among them may come before the others.
MOST_NEIGHBOURS = 300
# How many of each source are taken in turn: neighbours, categories, similar, trending, popular.
TURNS = (3, 1, 1, 1, 1)
WEIGHING = Weighing()
# In logarithms: what has decayed further is as little as that.
MOST_ASLEEP = 600.0
# Of facts that are read for one question.
ONE_QUESTION_SECONDS = 3600.0

K = TypeVar("K")


class Trends(NamedTuple):
    """What trends: the first of it are candidates, and all tell how popular others are."""

    candidates: Sequence[VideoKey]
    shares: Mapping[VideoKey, float]

    @classmethod
    def of(cls, ranked: Sequence[Ranked]) -> Trends:
        scores = {each.video_id.bytes: max(each.score, 0.0) for each in ranked}
        return cls(list(scores)[:MOST_TRENDING], shares_of(scores))


NO_TRENDS = Trends((), {})


class Neighbourhood(NamedTuple):
    """What lies around the videos of a profile, as of a time in seconds since 1970.

    `pulled` is how strongly each neighbour is pulled in by all of them; `pulls` are by how much the
    weights in the list of each are multiplied, and `pairs` how much brought any neighbours together
    with the profile, each of whose videos counts by its share.
    """

    around: Vicinity
    pulled: Mapping[VideoFacts, float]
    pulls: Sequence[float]
    pairs: float
    as_of: float

    def closest(self, wanted: Iterable[VideoFacts]) -> dict[VideoFacts, UUID]:
        """Return of which video of the profile each is the closest neighbour."""
        closest: dict[VideoFacts, UUID] = {}
        strongest = dict.fromkeys(wanted, -1.0)
        strongest_of = strongest.get
        for (seed, _, near), pull in zip(self.around.seeds, self.pulls, strict=True):
            video_id = seed.video_id
            for facts, weight in zip(near.videos, near.weights, strict=True):
                least = strongest_of(facts)
                if least is not None and pull * weight > least:
                    closest[facts], strongest[facts] = video_id, pull * weight
        return closest

    def sure(self, latest: float, weighing: Weighing) -> float:
        """Return how sure neighbours are, as of `latest`, when somebody was last engaged."""
        asleep = (self.as_of - latest) * weighing.decay
        pairs = self.pairs * exp(min(max(asleep, -MOST_ASLEEP), MOST_ASLEEP))
        return weighing.sure(pairs / sum(share for _, share, _ in self.around.seeds))


async def material_for(
    conn: AsyncConnection[TupleRow],
    profile: Profile,
    trending: Sequence[Ranked],
    attention: Attention,
    *,
    similar: Sequence[tuple[UUID, float]] = (),
    without: Collection[UUID] = (),
    limit: int = MOST_CANDIDATES,
    weighing: Weighing = WEIGHING,
) -> Material:
    """Return a profile with at most `limit` candidates, all read for it now.

    The arguments are as in `material_of`; raise psycopg.Error.
    """
    trends = Trends.of(trending)
    around = await read_around(conn, question_of(profile, trends, similar, weighing), weighing)
    engaged = await engaged_with(conn, profile.user_id, around)
    return material_of(
        profile,
        around,
        engaged,
        trends,
        attention,
        similar=similar,
        without=without,
        limit=limit,
        weighing=weighing,
    )


async def read_around(
    conn: AsyncConnection[TupleRow], asked: WantedFacts, weighing: Weighing
) -> Vicinity:
    """Return what lies around a user as it is now; raise psycopg.Error."""
    store = FactStore(weighing.half_life_seconds, ONE_QUESTION_SECONDS)
    (around,) = await store.load(conn, [asked])
    return around


def question_of(
    profile: Profile,
    trends: Trends,
    similar: Sequence[tuple[UUID, float]],
    weighing: Weighing,
) -> WantedFacts:
    """Return what has to be known for the candidates of a user."""
    seeds = {video.bytes: share for video, share in seeds_of(profile, weighing).items()}
    others = [*trends.candidates, *(video.bytes for video, _ in similar)]
    # In the order of ids, for the last digits of sums.
    return WantedFacts(dict(sorted(seeds.items())), others)


async def engaged_with(
    conn: AsyncConnection[TupleRow], viewer: str, around: Vicinity
) -> set[VideoKey]:
    """Return which of the videos there the viewer has ever engaged with; raise psycopg.Error."""
    lists = [near.videos for _, _, near in around.seeds]
    tops = [facts for _, facts in (*around.tops, *around.popular)]
    keys = {facts.key for each in (*lists, tops, around.others) for facts in each}
    given = viewer, [UUID(bytes=key) for key in keys]
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(ENGAGED_WITH, given)
        return {video.bytes for (video,) in await cursor.fetchall()}


def material_of(
    profile: Profile,
    around: Vicinity,
    engaged: Collection[VideoKey],
    trends: Trends,
    attention: Attention,
    *,
    similar: Sequence[tuple[UUID, float]] = (),
    without: Collection[UUID] = (),
    limit: int = MOST_CANDIDATES,
    weighing: Weighing = WEIGHING,
) -> Material:
    """Return a profile with at most `limit` candidates; the sources take turns, each with its best.

    The first 20 of what trends are candidates; the rest tells how popular the others are. `similar`
    are videos whose texts are like those of the profile, each from 0 to 1. None of `without` is a
    candidate, nor any that the user has `engaged` with, and no video is one twice. For a new user
    the categories take turns.
    """
    viewer = profile.user_id
    known = {facts.key for facts, *_ in around.seeds}.union(engaged)
    known.update(video.bytes for video in without)

    def eligible(videos: Iterable[VideoFacts], most: int | None = None) -> list[VideoFacts]:
        found = (
            each
            for each in videos
            if each.listed and each.key not in known and each.owner != viewer
        )
        return [*islice(found, most)]

    neighbourhood = _neighbourhood(around, weighing)
    near = _nearest(neighbourhood, eligible(neighbourhood.pulled), weighing)
    of_category = (facts for category, facts in around.tops if facts.category == category)
    tops = eligible(of_category, limit)
    popular = eligible((facts for _, facts in around.popular), limit)
    others = {facts.key: facts for facts in eligible(around.others)}
    # The nearest come first.
    found = [*dict.fromkeys(chain(near, others.values(), popular, tops))]
    latest = max([each.as_of for each in found], default=-inf)
    alike = {video.bytes: min(max(value, 0.0), 1.0) for video, value in similar}
    signals = _signals(found, [*near.values()], alike, around.categories, attention, latest)
    sources: list[Sequence[VideoFacts]] = [
        _best(near, signals.neighbour.shares(), limit),
        tops,
        [others[key] for key in sorted(alike, key=lambda key: (-alike[key], key)) if key in others],
        [others[key] for key in trends.candidates if key in others],
        popular,
    ]
    chosen = take_turns(sources, limit)
    because = neighbourhood.closest([each for each in chosen if each in near])
    place_of = dict(zip(found, count())).__getitem__
    places = [place_of(facts) for facts in chosen]
    candidates = [
        Candidate(
            facts.video_id,
            facts.category,
            trends.shares.get(facts.key, 0.0),
            neighbour,
            same_category,
            alike_,
            because.get(facts),
            popular_,
        )
        for facts, neighbour, same_category, alike_, popular_ in zip(
            chosen, *(signal.shares_of(places) for signal in signals), strict=True
        )
    ]
    telling = weighing.telling(latest - profile.latest.timestamp()) if profile.latest else 0.0
    return Material(
        profile,
        vary(candidates) if profile.is_empty else candidates,
        telling=telling,
        sure=neighbourhood.sure(latest, weighing) if near else 0.0,
    )


def _neighbourhood(around: Vicinity, weighing: Weighing) -> Neighbourhood:
    """Return the neighbours of the profile.

    A neighbour's weight is divided by a power of how much each of the two was engaged with: here by
    that of the profile's video. Only how these compare matters: so all is as of the latest time of
    any list, and nothing is too small for its own weight, however long the site sleeps.
    """
    decay = weighing.decay
    as_of = max((near.as_of for _, _, near in around.seeds if near.videos), default=0.0)
    pulled: dict[VideoFacts, float] = {}
    pairs, pulls = 0.0, []
    for facts, share, near in around.seeds:
        pull = 0.0
        if near.videos:
            brought = share * exp((near.as_of - as_of) * decay)
            pairs += brought * near.total
            pull = brought * exp(weighing.profile_exponent * (as_of * decay - facts.mass))
        pulls.append(pull)
        if not pulled:
            pulled = dict(zip(near.videos, [pull * each for each in near.weights], strict=True))
            continue
        get = pulled.get
        for video, weight in zip(near.videos, near.weights, strict=True):
            pulled[video] = get(video, 0.0) + pull * weight
    return Neighbourhood(around, pulled, pulls, pairs, as_of)


def _nearest(
    neighbourhood: Neighbourhood, eligible: Sequence[VideoFacts], weighing: Weighing
) -> dict[VideoFacts, float]:
    """Return how near each is that may be recommended, compared with the others."""
    pulled, exponent = neighbourhood.pulled, weighing.popularity_exponent
    now = neighbourhood.as_of * weighing.decay
    near = {each: pulled[each] * exp(exponent * (now - each.mass)) for each in eligible}
    if len(near) <= MOST_NEIGHBOURS:
        return near
    best = _best(near, [*near.values()], MOST_NEIGHBOURS)
    return {each: near[each] for each in best}


def _best(videos: Collection[VideoFacts], scores: Sequence[float], most: int) -> list[VideoFacts]:
    """Return the videos with the highest scores, in their order; equal ones are ordered by key."""
    # To sort numbers takes a tenth of the time.
    least = sorted(scores, reverse=True)[most - 1] if len(scores) > most else -inf
    best = [
        (-score, each.key, each)
        for score, each in zip(scores, videos, strict=True)
        if score >= least
    ]
    best.sort()
    return [each for *_, each in best[:most]]


class SignalValues(NamedTuple):
    """How much of a signal each of the videos has that were found, the first of them at least."""

    values: Sequence[float]
    total: float

    @classmethod
    def of(cls, values: Sequence[float]) -> SignalValues:
        return cls(values, fsum(values))

    def shares(self) -> list[float]:
        """Return what each has, divided by what all have."""
        total = self.total
        return [value / total for value in self.values] if total else [0.0] * len(self.values)

    def shares_of(self, places: Sequence[int]) -> list[float]:
        """Return the same of the videos at these places."""
        values, total, most = self.values, self.total, len(self.values)
        if not total:
            return [0.0] * len(places)
        return [values[place] / total if place < most else 0.0 for place in places]


class Signals(NamedTuple):
    """What speaks for the videos that were found, in the order of a `Candidate`."""

    neighbour: SignalValues
    same_category: SignalValues
    similar: SignalValues
    popular: SignalValues


def _signals(
    found: Sequence[VideoFacts],
    near: Sequence[float],
    alike: Mapping[VideoKey, float],
    categories: Mapping[str | None, float],
    attention: Attention,
    latest: float,
) -> Signals:
    """Return what speaks for what was found, the first of which are `near`.

    Ages count up to `latest`, when somebody was last engaged.
    """
    ages, going_on = attention.by_age
    left = [going_on[bisect_right(ages, latest - each.completed)] for each in found]
    most = max([each.mass for each in found], default=-inf)
    if most == -inf:
        most = 0.0
    masses = [*map(mul, map(exp, [each.mass - most for each in found]), left)]
    share_of = categories.get
    liked = [share_of(each.category, 0.0) for each in found] if categories else ()
    like = [alike.get(each.key, 0.0) for each in found] if alike else ()
    return Signals(
        SignalValues.of([*map(mul, near, left)]),
        SignalValues.of([*map(mul, masses, liked)]),
        SignalValues.of([*map(mul, like, left)]),
        SignalValues.of(masses),
    )


def seeds_of(profile: Profile, weighing: Weighing) -> dict[UUID, float]:
    """Return how much each video of the profile tells of the next; the newest tells most."""
    seeds: dict[UUID, float] = {}
    for weight, engaged in ((weighing.watched, profile.watched), (weighing.liked, profile.liked)):
        for place, each in enumerate(engaged, 1):
            share = weight / place**weighing.profile_fade
            seeds[each.video_id] = seeds.get(each.video_id, 0.0) + share
    return seeds


def take_turns(sources: Sequence[Sequence[K]], most: int) -> list[K]:
    """Return so many videos at most, each once, a few of each source in turn."""
    taken: dict[K, None] = {}
    left = [iter(source) for source in sources]
    before = -1
    while before < len(taken) < most:
        before = len(taken)
        for source, number in zip(left, TURNS, strict=True):
            enough = len(taken) + number
            for video in source:
                if video not in taken:
                    taken[video] = None
                    if len(taken) == enough:
                        break
    return list(taken)[:most]


def vary(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first of each category, then the second of each, and so on."""
    turns: defaultdict[str | None, Iterator[int]] = defaultdict(count)
    return sorted(candidates, key=lambda each: next(turns[each.category]))


def shares_of(values: Mapping[K, float]) -> dict[K, float]:
    """Return the values divided by their sum."""
    total = fsum(values.values())
    return {key: value / total for key, value in values.items()} if total else dict(values)
