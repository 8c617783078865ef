"""How good rankings are, against what was really watched afterwards."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import log2
from uuid import UUID

DEPTH = 10


def ndcg(ranked: Sequence[UUID], relevant: Collection[UUID], depth: int = DEPTH) -> float:
    """Normalised discounted cumulative gain, from 0 to 1 (Järvelin and Kekäläinen, 2002).

    DCG = sum of 1 / log2(place + 1) over the relevant among the first `depth`, places from 1; it is
    divided by the DCG of a ranking that has as many of the relevant as fit, all of them first.
    """
    if not relevant:
        raise ValueError("There is nothing to find.")
    ideal = sum(_gain(place) for place in range(1, min(len(relevant), depth) + 1))
    return sum(_gain(place) for place in _places(ranked, relevant, depth)) / ideal


def recall(ranked: Sequence[UUID], relevant: Collection[UUID], depth: int = DEPTH) -> float:
    """The share of the relevant that is among the first `depth`: |found| / |relevant|."""
    if not relevant:
        raise ValueError("There is nothing to find.")
    return len(_places(ranked, relevant, depth)) / len(relevant)


def coverage(
    rankings: Iterable[Sequence[UUID]], catalogue: Collection[UUID], depth: int = DEPTH
) -> float:
    """The share of all videos that anybody is shown (catalogue coverage; Ge et al., 2010)."""
    shown = {video for ranked in rankings for video in ranked[:depth]}
    return len(shown & set(catalogue)) / len(catalogue)


def _gain(place: int) -> float:
    return 1 / log2(place + 1)


def _places(ranked: Sequence[UUID], relevant: Collection[UUID], depth: int) -> list[int]:
    """Where the relevant stand; one that is listed twice counts where it stands first."""
    first: dict[UUID, int] = {}
    for place, video in enumerate(ranked[:depth], 1):
        first.setdefault(video, place)
    return [place for video, place in first.items() if video in relevant]
