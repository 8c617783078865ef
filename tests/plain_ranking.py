"""How candidates are found and ordered, said as plainly as it goes: what the quick form must equal.

Each step is written for a reader, with a list of its own and no thought for how often it is taken.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import exp, fsum, inf
from typing import TypeVar
from uuid import UUID

from domain.feedback import Signal
from projections.recommendations.attention import Attention
from projections.recommendations.blend import REPEAT, REPEAT_FOR_NEW, TIES, WEIGHTS
from projections.recommendations.candidates import MOST_NEIGHBOURS, TURNS, Trends, vary
from projections.recommendations.model import Candidate, Material, Profile, VideoKey, Weighing
from projections.recommendations.video_facts import Vicinity, VideoFacts

K = TypeVar("K")
Scores = dict[VideoFacts, float]


def plain_material(
    profile: Profile,
    around: Vicinity,
    engaged: Collection[VideoKey],
    trends: Trends,
    attention: Attention,
    *,
    similar: Sequence[tuple[UUID, float]],
    without: Collection[UUID],
    limit: int,
    weighing: Weighing,
) -> Material:
    """Return what `material_of` does."""
    known = {facts.key for facts, *_ in around.seeds} | set(engaged)
    known |= {video.bytes for video in without}

    def eligible(videos: Iterable[VideoFacts]) -> list[VideoFacts]:
        return [
            each
            for each in videos
            if each.listed and each.key not in known and each.owner != profile.user_id
        ]

    as_of = max((near.as_of for _, _, near in around.seeds if near.videos), default=0.0)
    pulled: defaultdict[VideoFacts, list[tuple[float, UUID]]] = defaultdict(list)
    pairs = 0.0
    for seed, share, near in around.seeds:
        for facts, weight in zip(near.videos, near.weights, strict=True):
            brought = share * exp((near.as_of - as_of) * weighing.decay)
            fame = exp(weighing.profile_exponent * (as_of * weighing.decay - seed.mass))
            pulled[facts].append((brought * fame * weight, seed.video_id))
        pairs += share * exp((near.as_of - as_of) * weighing.decay) * near.total

    nearness = {
        each: sum(pull for pull, _ in pulled[each])
        * exp(weighing.popularity_exponent * (as_of * weighing.decay - each.mass))
        for each in eligible(pulled)
    }
    nearest = _first(nearness, MOST_NEIGHBOURS)
    tops = eligible(facts for category, facts in around.tops if facts.category == category)[:limit]
    popular = eligible(facts for _, facts in around.popular)[:limit]
    others = {facts.key: facts for facts in eligible(around.others)}
    found = [*dict.fromkeys((*nearest, *others.values(), *popular, *tops))]

    latest = max((each.as_of for each in found), default=-inf)
    left = {each: attention.left(latest - each.completed) for each in found}
    most = max((each.mass for each in found if each.mass > -inf), default=0.0)
    alike = {video.bytes: min(max(value, 0.0), 1.0) for video, value in similar}
    by_nearness = _shares({each: nearness[each] * left[each] for each in nearest})
    masses = {each: exp(each.mass - most) * left[each] for each in found}
    by_category = _shares(
        {each: masses[each] * around.categories.get(each.category, 0.0) for each in found}
    )
    by_text = _shares({each: alike.get(each.key, 0.0) * left[each] for each in found})
    by_mass = _shares(masses)

    sources: list[Sequence[VideoFacts]] = [
        _first(by_nearness, limit),
        tops,
        [others[key] for key in sorted(alike, key=lambda key: (-alike[key], key)) if key in others],
        [others[key] for key in trends.candidates if key in others],
        popular,
    ]
    candidates = [
        Candidate(
            each.video_id,
            each.category,
            trends.shares.get(each.key, 0.0),
            by_nearness.get(each, 0.0),
            by_category[each],
            by_text[each],
            # The first of those that pull it most.
            max(pulled[each], key=lambda pull: pull[0])[1] if each in by_nearness else None,
            by_mass[each],
        )
        for each in islice(_turns(sources), limit)
    ]
    sure = 0.0
    if nearest:
        asleep = min(max((as_of - latest) * weighing.decay, -600.0), 600.0)
        sure = weighing.sure(pairs * exp(asleep) / sum(share for _, share, _ in around.seeds))
    return Material(
        profile,
        vary(candidates) if profile.is_empty else candidates,
        telling=weighing.telling(latest - profile.latest.timestamp()) if profile.latest else 0.0,
        sure=sure,
    )


def _first(scores: Scores, most: int) -> list[VideoFacts]:
    return sorted(scores, key=lambda each: (-scores[each], each.key))[:most]


def _shares(values: Scores) -> Scores:
    total = fsum(values.values())
    return {each: value / total if total else 0.0 for each, value in values.items()}


def _turns(sources: Sequence[Sequence[K]]) -> Iterator[K]:
    """Yield each video once, a few of each source in turn."""
    left, taken = [deque(source) for source in sources], set[K]()
    while any(left):
        for source, number in zip(left, TURNS, strict=True):
            given = 0
            while source and given < number:
                if (video := source.popleft()) not in taken:
                    taken.add(video)
                    given += 1
                    yield video


def plain_blend(material: Material) -> list[tuple[UUID, float, Signal, UUID | None]]:
    """Return what `blend` does, without the reasons."""
    repeat = REPEAT_FOR_NEW if material.profile.is_empty else REPEAT
    scores = {each: _score(each, material) for each in material.candidates}
    given: defaultdict[str | UUID, int] = defaultdict(int)
    lowered: list[tuple[Candidate, float]] = []
    for each in sorted(scores, key=lambda each: (-scores[each], each.video_id.int)):
        kind = each.category or each.video_id
        lowered.append((each, scores[each] / (1 + given[kind] * repeat)))
        given[kind] += 1
    lowered.sort(key=lambda pair: (-pair[1], pair[0].video_id.int))
    return [(each.video_id, score, _signal(each), each.because) for each, score in lowered]


def _score(candidate: Candidate, material: Material) -> float:
    told: Mapping[str, float] = candidate._asdict()
    sure = {"neighbour": material.sure}
    of_profile = sum(WEIGHTS[name] * told[name] * sure.get(name, 1.0) for name in TIES)
    of_all = sum(WEIGHTS[name] * told[name] for name in ("popular", "trending"))
    interest = material.interest.get(candidate.category or "", 1.0)
    return (material.telling * of_profile + of_all) * interest


def _signal(candidate: Candidate) -> Signal:
    told: Mapping[str, float] = candidate._asdict()
    strongest = max(TIES, key=lambda name: WEIGHTS[name] * told[name])
    if WEIGHTS[strongest] * told[strongest] > WEIGHTS["popular"] * candidate.popular:
        return TIES[strongest]
    if candidate.trending:
        return Signal.TRENDING
    return Signal.POPULAR if candidate.popular else Signal.OTHER
