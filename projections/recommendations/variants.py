"""Two settings of the blend, compared on users: variants, and their orders interleaved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from random import Random
from uuid import UUID

from domain.feedback import Variant
from projections.recommendations.model import RankedVideo, Weighing

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
