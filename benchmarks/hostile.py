"""Orders that a language model must not be able to do harm with: useless, wrong, or deceived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from uuid import UUID

from benchmarks.community import new_id
from benchmarks.measures import DEPTH
from projections.recommendations.model import RankedVideo
from projections.recommendations.prompt import MOST_PICKS
from projections.recommendations.ranker import RankedByModel, fuse

Hostile = Callable[[Sequence[UUID], Random], Sequence[UUID]]
"""Makes of the blend's order what a model answers."""

DECEIVERS = 5


def shuffled(blended: Sequence[UUID], chance: Random) -> list[UUID]:
    """The candidates in random order."""
    return chance.sample(blended, len(blended))


def reversed_(blended: Sequence[UUID], _: Random) -> list[UUID]:
    """The worst first."""
    return list(reversed(blended))


def invented(blended: Sequence[UUID], chance: Random) -> list[UUID]:
    """Between two candidates in random order an id that is nobody's, each of them twice."""
    return [id_ for video in shuffled(blended, chance) for id_ in (new_id(chance), video, video)]


def spiteful(blended: Sequence[UUID], _: Random) -> list[UUID]:
    """What the blend would show kept for the end."""
    return [*blended[DEPTH:], *blended[:DEPTH]]


def deceived(blended: Sequence[UUID], _: Random) -> list[UUID]:
    """The last of the blend first, as their titles demanded, then the others as they were."""
    return [*blended[-DECEIVERS:], *blended[:-DECEIVERS]]


HOSTILE: Mapping[str, Hostile] = MappingProxyType(
    {
        "fused with a random order": shuffled,
        "fused with the reversed order": reversed_,
        "fused with all but its first ten": spiteful,
        "fused with invented ids": invented,
        "fused with what titles demand": deceived,
    }
)


def fuse_hostile(blended: Sequence[RankedVideo], hostile: Hostile, chance: Random) -> list[UUID]:
    """Return what a user gets when the model answers so, cut where an answer is cut."""
    ranked = hostile([each.video_id for each in blended], chance)[:MOST_PICKS]
    told = fuse(blended, [RankedByModel(video, "You will love this") for video in ranked])
    return [each.video_id for each in told]
