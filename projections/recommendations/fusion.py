"""One order out of two: the blend's, and that of a language model which may be wrong or deceived.

Weighted reciprocal rank fusion, after Cormack, Clarke and Büttcher, "Reciprocal rank fusion
outperforms Condorcet and individual rank learning methods", SIGIR 2009.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from projections.recommendations.model import Recommended

K = 10
"""Added to each rank: the greater, the less the first places differ (the paper has 60)."""
BLEND_WEIGHT = 0.75
"""The blend's share of a score; the model has the rest."""


@dataclass(frozen=True, slots=True)
class RankedByModel:
    """A candidate in its place in a model's order, and the model's reason if that can be shown."""

    video_id: UUID
    reason: str | None = None


def fuse(blended: Sequence[Recommended], ranked: Sequence[RankedByModel]) -> list[Recommended]:
    """All of `blended`, in the order of BLEND_WEIGHT / (K + rank) of both orders added up.

    A video that the model left out follows the ones that it named, in the blend's order; one that
    the blend does not have, or that was named before, does not count. A reason of the model takes
    the place of the blend's. Equal scores keep the blend's order.

    Why these numbers: let a video's expected gain not rise with its rank in the blend. Then an
    answer in random order, of any length, keeps at least 0.9 of the blend's expected NDCG@10
    whatever those gains are: 0.91 when only the blend's first video is of any use, 0.97 for gains
    of 0.8^rank. The blend in reverse keeps at least 0.86, and 0.98 for such gains. A model that
    knows what the viewer likes adds 0.39 to the NDCG of a mediocre blend, one that half knows
    0.28. A video that has itself put first comes from the 18th place to the 10th, from the 5th to
    the 4th, and never to the first. The tests of this module measure all that.
    """
    reasons = _named(blended, ranked)
    ranks = _ranks([*reasons, *(each.video_id for each in blended if each.video_id not in reasons)])
    scored = [
        _worded(each, _score(rank, ranks[each.video_id]), reasons.get(each.video_id))
        for rank, each in enumerate(blended, 1)
    ]
    # The sort is stable.
    return sorted(scored, key=lambda each: -each.score)


def _worded(each: Recommended, score: float, reason: str | None) -> Recommended:
    """The same with its new score, and with the model's reason if there is one."""
    if reason is None:
        return replace(each, score=score)
    return Recommended(each.video_id, score, reason, by_model=True)


def _named(
    blended: Sequence[Recommended], ranked: Sequence[RankedByModel]
) -> dict[UUID, str | None]:
    """What the model said of each video of the blend, in its order; the first time counts."""
    known = {each.video_id for each in blended}
    named: dict[UUID, str | None] = {}
    for each in ranked:
        if each.video_id in known:
            named.setdefault(each.video_id, each.reason)
    return named


def _ranks(videos: Iterable[UUID]) -> dict[UUID, int]:
    return {video: rank for rank, video in enumerate(videos, 1)}


def _score(in_blend: int, by_model: int) -> float:
    return BLEND_WEIGHT / (K + in_blend) + (1 - BLEND_WEIGHT) / (K + by_model)
