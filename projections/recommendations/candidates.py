"""Which videos may be recommended to a user, and what speaks for each."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import count, islice
from math import exp, fsum, inf
from typing import NamedTuple, TypeVar
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from projections.recommendations.attention import Attention
from projections.recommendations.model import Candidate, Material, Profile, VideoKey, Weighing
from projections.recommendations.prompt import MOST_CANDIDATES, MOST_TRENDING
from projections.recommendations.video_facts import (
    FactStore,
    Question,
    Surroundings,
    VideoFacts,
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


class Near(NamedTuple):
    """A neighbour of the profile: `score` is how near it is, compared with the others."""

    score: float
    facts: VideoFacts


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
    """The nearest that may be recommended, and how much brought any neighbours together with the
    profile, each of whose videos counts by its share; as of a time in seconds since 1970.

    `pulls` are by how much the weights in the list of each video of the profile are multiplied.
    """

    nearest: Sequence[Near]
    pairs: float
    as_of: float
    pulls: Sequence[float]


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
    conn: AsyncConnection[TupleRow], asked: Question, weighing: Weighing
) -> Surroundings:
    """Return what lies around a user as it is now; raise psycopg.Error."""
    store = FactStore(weighing.half_life_seconds, ONE_QUESTION_SECONDS)
    (around,) = await store.load(conn, [asked])
    return around


def question_of(
    profile: Profile,
    trends: Trends,
    similar: Sequence[tuple[UUID, float]],
    weighing: Weighing,
) -> Question:
    """Return what has to be known for the candidates of a user."""
    seeds = {video.bytes: share for video, share in seeds_of(profile, weighing).items()}
    others = [*trends.candidates, *(video.bytes for video, _ in similar)]
    # In the order of ids, for the last digits of sums.
    return Question(dict(sorted(seeds.items())), others)


async def engaged_with(
    conn: AsyncConnection[TupleRow], viewer: str, around: Surroundings
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
    around: Surroundings,
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
    seeds = around.seeds
    known = {facts.key for facts, *_ in seeds}.union(engaged, (video.bytes for video in without))
    viewer = profile.user_id

    def eligible(facts: VideoFacts) -> bool:
        return facts.listed and facts.key not in known and facts.owner != viewer

    neighbourhood = _neighbourhood(around, eligible, weighing)
    near = {facts: score for score, facts in neighbourhood.nearest}
    tops = [
        facts for category, facts in around.tops if facts.category == category and eligible(facts)
    ][:limit]
    popular = [facts for _, facts in around.popular if eligible(facts)][:limit]
    others = {facts.key: facts for facts in around.others if eligible(facts)}
    found = [*dict.fromkeys([*others.values(), *popular, *tops, *near])]
    latest = max((each.as_of for each in found if each.as_of is not None), default=-inf)
    alike = {video.bytes: min(max(value, 0.0), 1.0) for video, value in similar}
    signals = _signals(found, near, alike, around.categories, attention, latest)
    sources: list[Sequence[VideoFacts]] = [
        _first(limit, near, signals.neighbour),
        tops,
        [others[key] for key in sorted(alike, key=lambda key: (-alike[key], key)) if key in others],
        [others[key] for key in trends.candidates if key in others],
        popular,
    ]
    chosen = [*islice(take_turns(sources), limit)]
    because = _because(chosen, near, around, neighbourhood.pulls)
    candidates = [
        Candidate(
            facts.video_id,
            facts.category,
            trends.shares.get(facts.key, 0.0),
            signals.neighbour.get(facts, 0.0),
            signals.same_category.get(facts, 0.0),
            signals.similar.get(facts, 0.0),
            because.get(facts),
            signals.popular.get(facts, 0.0),
        )
        for facts in chosen
    ]
    telling = weighing.telling(latest - profile.latest.timestamp()) if profile.latest else 0.0
    return Material(
        profile,
        vary(candidates) if profile.is_empty else candidates,
        telling=telling,
        sure=_sure(neighbourhood, around, latest, weighing),
    )


def _neighbourhood(
    around: Surroundings, eligible: Callable[[VideoFacts], bool], weighing: Weighing
) -> Neighbourhood:
    """Return the neighbours of the profile.

    A neighbour's weight is divided by a power of how much each of the two was engaged with. Only
    how these compare matters: so all is as of the latest time of any list, and nothing is too small
    for its own weight, however long the site sleeps.
    """
    decay, lists = weighing.decay, [near for _, _, near in around.seeds if near.videos]
    as_of = max((near.as_of for near in lists), default=0.0)
    now = as_of * decay
    summed: dict[VideoFacts, float] = {}
    pairs, pulls = 0.0, []
    for facts, share, near in around.seeds:
        pull = 0.0
        if near.videos and facts.mass is not None:
            brought = share * exp((near.as_of - as_of) * decay)
            pairs += brought * near.total
            pull = brought * exp(-weighing.profile_exponent * (facts.mass - now))
        pulls.append(pull)
        if not pull:
            continue
        if not summed:
            summed = dict(zip(near.videos, [pull * each for each in near.weights], strict=True))
            continue
        get = summed.get
        for video, weight in zip(near.videos, near.weights, strict=True):
            summed[video] = get(video, 0.0) + pull * weight
    exponent = weighing.popularity_exponent
    nearest = [
        Near(score * exp(-exponent * (facts.mass - now)), facts)
        for facts, score in summed.items()
        if facts.mass is not None and eligible(facts)
    ]
    if len(nearest) > MOST_NEIGHBOURS:
        nearest = sorted(nearest, key=lambda each: (-each.score, each.facts.key))[:MOST_NEIGHBOURS]
    return Neighbourhood(nearest, pairs, as_of, pulls)


def _sure(
    neighbourhood: Neighbourhood, around: Surroundings, latest: float, weighing: Weighing
) -> float:
    """Return how sure the neighbours are, as of the time when somebody was last engaged."""
    if not neighbourhood.nearest:
        return 0.0
    asleep = (neighbourhood.as_of - latest) * weighing.decay
    pairs = neighbourhood.pairs * exp(min(max(asleep, -MOST_ASLEEP), MOST_ASLEEP))
    return weighing.sure(pairs / sum(share for _, share, _ in around.seeds))


def _because(
    chosen: Iterable[VideoFacts],
    near: Collection[VideoFacts],
    around: Surroundings,
    pulls: Sequence[float],
) -> dict[VideoFacts, UUID]:
    """Return of which video of the profile each is the closest neighbour."""
    wanted = {facts for facts in chosen if facts in near}
    best: dict[VideoFacts, tuple[float, UUID]] = {}
    for (seed, _, lists), pull in zip(around.seeds, pulls, strict=True):
        for facts, weight in zip(lists.videos, lists.weights, strict=True):
            if facts in wanted:
                closeness = pull * weight
                if facts not in best or closeness > best[facts][0]:
                    best[facts] = closeness, seed.video_id
    return {facts: seed for facts, (_, seed) in best.items()}


class Signals(NamedTuple):
    """Each video's share of all that was found by a signal."""

    neighbour: Mapping[VideoFacts, float]
    same_category: Mapping[VideoFacts, float]
    similar: Mapping[VideoFacts, float]
    popular: Mapping[VideoFacts, float]


def _signals(
    found: Sequence[VideoFacts],
    near: Mapping[VideoFacts, float],
    alike: Mapping[VideoKey, float],
    categories: Mapping[str, float],
    attention: Attention,
    latest: float,
) -> Signals:
    """Return what speaks for what was found.

    Ages count up to `latest`, when somebody was last engaged.
    """
    ages, going_on = attention.columns()
    left = {
        each: going_on[max(bisect_right(ages, latest - each.completed) - 1, 0)] for each in found
    }
    most = max((each.mass for each in found if each.mass is not None), default=0.0)
    masses = {each: exp(each.mass - most) * left[each] for each in found if each.mass is not None}
    liked_most = {
        each: mass * share
        for each, mass in masses.items()
        if (share := categories.get(each.category or ""))
    }
    return Signals(
        neighbour=shares_of({each: score * left[each] for each, score in near.items()}),
        same_category=shares_of(liked_most),
        similar=shares_of(
            {each: alike[each.key] * left[each] for each in found if each.key in alike}
            if alike
            else {}
        ),
        popular=shares_of(masses),
    )


def _first(
    limit: int, videos: Iterable[VideoFacts], shares: Mapping[VideoFacts, float]
) -> list[VideoFacts]:
    """Return those with the greatest shares; equal ones by id."""
    order = [(-shares[each], each.key, each) for each in videos]
    return [each for *_, each in nsmallest(limit, order)]


def seeds_of(profile: Profile, weighing: Weighing) -> dict[UUID, float]:
    """Return how much each video of the profile tells of the next; the newest tells most."""
    seeds: dict[UUID, float] = {}
    for weight, engaged in ((weighing.watched, profile.watched), (weighing.liked, profile.liked)):
        for place, each in enumerate(engaged, 1):
            share = weight / place**weighing.profile_fade
            seeds[each.video_id] = seeds.get(each.video_id, 0.0) + share
    return seeds


def take_turns(sources: Sequence[Sequence[K]]) -> Iterator[K]:
    """Yield each video once, a few of each source in turn."""
    taken: set[K] = set()
    left = [iter(source) for source in sources]
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


def shares_of(values: Mapping[K, float]) -> dict[K, float]:
    """Return the values divided by their sum."""
    total = fsum(values.values())
    return {key: value / total for key, value in values.items()} if total else dict(values)
