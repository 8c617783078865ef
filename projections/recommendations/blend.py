"""The blend: candidates ordered by how likely each is to be watched next, and a reason for each.

Also the order where there is no language model, and what a model's answer is fused with; two
settings of it, interleaved; and what dismissals say of other videos.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from heapq import heapify, heappop, heapreplace
from itertools import islice
from operator import itemgetter
from random import Random
from uuid import UUID
from zlib import crc32

from domain.feedback import Signal, Variant
from projections.recommendations.model import (
    Candidate,
    DescribedVideo,
    Material,
    RankedVideo,
    RecommendationSource,
    Weighing,
)
from projections.recommendations.prompt import plain

TITLE_LENGTH = 60
"""In characters: a reason is a line beside a thumbnail."""

# What each signal of a candidate weighs:
#
#     score = telling · (sure · neighbour + category + similar) + popular + trending
#
# Each signal is a guess at how likely the video is watched next, the weights say how often each is
# right: a mixture. Those that come of the profile are right less often where it tells little.
WEIGHTS = {
    "neighbour": 1.0,
    "same_category": 0.15,
    "similar": 0.1,
    "popular": 0.2,
    "trending": 0.15,
}
TIES = {
    "neighbour": Signal.NEIGHBOUR,
    "same_category": Signal.CATEGORY,
    "similar": Signal.SIMILAR,
}
"""What ties a video to a user."""
SIGNALS_OF_TIES = tuple(TIES.values())
OF_NEIGHBOUR, OF_CATEGORY, OF_SIMILAR = (WEIGHTS[name] for name in TIES)
OF_POPULAR = WEIGHTS["popular"]
# Before Python 3.12, to name a member of an enum takes as long as to call a function.
NEIGHBOUR, TRENDING, POPULAR = Signal.NEIGHBOUR, Signal.TRENDING, Signal.POPULAR
OTHER = Signal.OTHER
# The n-th video of a category (n = 0, 1, …) has its score divided by 1 + n · REPEAT, as in maximal
# marginal relevance (Carbonell and Goldstein, 1998) with a similarity of 1 within a category and 0
# between categories. A new user has shown no taste, and gets more variety.
REPEAT = 0.01
REPEAT_FOR_NEW = 0.1


def blend(
    material: Material, *, limit: int, weights: Mapping[str, float] = WEIGHTS
) -> list[RankedVideo]:
    """Return the first `limit` candidates by falling score; equal scores are ordered by id."""
    repeat = REPEAT_FOR_NEW if material.profile.is_empty else REPEAT
    reason_of = _Reasons(material).of
    return [
        RankedVideo(each.video_id, score, reason_of(each, signal), each.because, False, signal)
        for score, each, signal in islice(_vary(_scored(material, weights), repeat), limit)
    ]


def with_new(
    items: Sequence[RankedVideo], newest: Sequence[RankedVideo], share: float, user_id: str
) -> tuple[RankedVideo, ...]:
    """Return `items` with that share of the places given to new videos; the newest follow.

    Every n-th place is theirs, n = 1 / share. Users get them in turns, so that all are shown to
    somebody. None comes twice.
    """
    known = {each.video_id for each in items}
    new = [each for each in newest if each.video_id not in known]
    every = round(1 / share) if share else 0
    shown = deque(new)
    shown.rotate(crc32(user_id.encode()))
    found: list[RankedVideo] = []
    for each in items:
        if every and shown and (len(found) + 1) % every == 0:
            found.append(replace(shown.popleft(), score=each.score))
        found.append(each)
    known |= {each.video_id for each in found}
    return (*found, *(each for each in new if each.video_id not in known))


def source_of(material: Material) -> RecommendationSource:
    """Return what the blend has to go by: TRENDING where nothing ties a candidate to the user."""
    tied = any(max(_ties(each)) for each in material.candidates)
    if tied and not material.profile.is_empty:
        return RecommendationSource.BLEND
    return RecommendationSource.TRENDING


def _ties(candidate: Candidate) -> tuple[float, float, float]:
    """Return how much of each of TIES there is, in their order."""
    _, _, _, neighbour, same_category, similar, _, _ = candidate
    return OF_NEIGHBOUR * neighbour, OF_CATEGORY * same_category, OF_SIMILAR * similar


# Falling scores, below zero, and rising ids where they are equal; plain tuples, since there are
# sixty for each list.
Scored = tuple[float, int, Candidate, Signal]
BY_SCORE = itemgetter(0, 1)


def _scored(material: Material, weights: Mapping[str, float]) -> list[Scored]:
    """Return the candidates in order, each with the signal that brings it there."""
    telling, sure, interest_in = material.telling, material.sure, material.interest.get
    of_neighbour, of_category = weights["neighbour"], weights["same_category"]
    of_similar, of_popular = weights["similar"], weights["popular"]
    of_trending = weights["trending"]
    scored = []
    for candidate in material.candidates:
        # Once, since each field of a named tuple takes longer than its share of a score.
        video_id, category, trending, neighbour, same_category, similar, _, popular = candidate
        of_profile = (
            of_neighbour * neighbour * sure + of_category * same_category + of_similar * similar
        )
        score = telling * of_profile + (of_popular * popular + of_trending * trending)
        weighed = score * interest_in(category or "", 1.0)
        ties = OF_NEIGHBOUR * neighbour, OF_CATEGORY * same_category, OF_SIMILAR * similar
        most = max(ties)
        if most > OF_POPULAR * popular:
            signal = SIGNALS_OF_TIES[ties.index(most)]
        else:
            signal = TRENDING if trending else POPULAR if popular else OTHER
        scored.append((-weighed, video_id.int, candidate, signal))
    scored.sort(key=BY_SCORE)
    return scored


def _vary(scored: Sequence[Scored], repeat: float) -> Iterator[tuple[float, Candidate, Signal]]:
    """Yield all with lowered scores, best first; those without a category repeat nothing."""
    queues: dict[str | int, list[Scored]] = defaultdict(list)
    for each in scored:
        queues[each[2].category or each[1]].append(each)
    # The next of each queue; when one is yielded, nothing else changes.
    heads = [(*queue[0][:2], 0, queue) for queue in queues.values()]
    heapify(heads)
    while heads:
        lowered, _, given, queue = heads[0]
        _, _, candidate, signal = queue[given]
        yield -lowered, candidate, signal
        given += 1
        if given < len(queue):
            score, number, _, _ = queue[given]
            heapreplace(heads, (score / (1 + given * repeat), number, given, queue))
        else:
            heappop(heads)


REASONS = {
    Signal.TRENDING: "Trending this month",
    Signal.POPULAR: "Popular with other viewers",
    Signal.OTHER: "Something else to watch",
    Signal.SIMILAR: "Similar to what you watched",
}


class _Reasons:
    """Signals in lines for people."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._liked = {each.video_id for each in material.profile.liked}
        # By the numbers of ids, which hash in a third of the time.
        self._neighbours: dict[int | None, str] = {}

    def of(self, candidate: Candidate, signal: Signal) -> str:
        if signal is NEIGHBOUR:
            because = candidate.because
            number = None if because is None else because.int
            reason = self._neighbours.get(number)
            if reason is None:
                reason = self._neighbours[number] = self._because(because)
            return reason
        if signal in REASONS:
            return REASONS[signal]
        category = _line(candidate.category or "")
        return f"Popular in {category} right now" if candidate.trending else f"More in {category}"

    def _because(self, video_id: UUID | None) -> str:
        verb = "liked" if video_id in self._liked else "watched"
        described = self._material.described.get(video_id) if video_id else None
        if described is None or not (title := _line(described.title)):
            return f"Because of what you {verb}"
        return f"Because you {verb} “{title}”"


def _line(title: str) -> str:
    """Return a title on one line, without characters that are unseen or turn the text around."""
    whole = plain(title)
    return whole if len(whole) <= TITLE_LENGTH else f"{whole[: TITLE_LENGTH - 1].rstrip()}…"


TELLING = 20
"""So many, the latest, tell what the user is less interested in."""
# Each of a category takes so much of its videos' scores, up to a half: a category is much wider
# than a video, and what the user watches goes on to count.
STEP = 0.1
LEAST = 0.5


def interest(
    dismissed: Sequence[UUID], described: Mapping[UUID, DescribedVideo]
) -> dict[str, float]:
    """Return by what the scores of some categories are multiplied: from LEAST to 1."""
    found = (described[video].category for video in dismissed if video in described)
    counts = Counter(category for category in found if category is not None)
    return {category: max(LEAST, 1 - STEP * count) for category, count in counts.items()}


EXPERIMENTS = 2**31


@dataclass(frozen=True)
class BlendVariant:
    """Settings of the blend: what each signal weighs, and how candidates are weighed."""

    weights: Mapping[str, float]
    weighing: Weighing

    def changed(self, given: Mapping[str, float]) -> BlendVariant:
        """Return the same with some settings, weights or those of the weighing, otherwise."""
        weights = {name: given.get(name, weight) for name, weight in self.weights.items()}
        rest = {name: value for name, value in given.items() if name not in weights}
        return BlendVariant(weights, replace(self.weighing, **rest))  # type: ignore[arg-type]


def experiment_of(variants: Sequence[BlendVariant]) -> int | None:
    """Return the number that names the settings compared, whatever release has them; else None."""
    if len(variants) < len("AB"):
        return None
    told = repr([(sorted(each.weights.items()), each.weighing) for each in variants])
    return int.from_bytes(sha256(told.encode()).digest()[:4]) % EXPERIMENTS


def interleave(a: Iterable[RankedVideo], b: Iterable[RankedVideo], seed: UUID) -> list[RankedVideo]:
    """Return the videos of two orders, each once, with the team whose it is; one list per seed.

    Team-draft interleaving (Radlinski, Kurup and Joachims, "How Does Clickthrough Data Reflect
    Retrieval Quality?", CIKM 2008): the teams take turns, a coin decides who is first in each, and
    a team picks the best of its own that is not taken yet. So each is as likely to be seen, and
    what is chosen of a team tells how good its order is.
    """
    # No secret: who knows the coin can choose what they like all the same.
    coin = Random(seed.int)  # noqa: S311
    left = {Variant.A: list(a)[::-1], Variant.B: list(b)[::-1]}
    taken: set[UUID] = set()
    drafted: list[RankedVideo] = []
    while any(left.values()):
        first, second = coin.choice([(Variant.A, Variant.B), (Variant.B, Variant.A)])
        for team in (first, second):
            while left[team] and left[team][-1].video_id in taken:
                left[team].pop()
            if left[team]:
                picked = left[team].pop()
                taken.add(picked.video_id)
                drafted.append(replace(picked, variant=team))
    return drafted
