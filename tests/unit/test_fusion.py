"""Two orders become one in which a bad answer costs little and a good one helps, by the figures.

Videos are called by their rank in the blend, from 1; so are orders.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from math import log2
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.recommendations.model import RankedVideo
from projections.recommendations.ranker import RankedByModel, fuse

MOST = 60
ROUNDS = 200
LENGTHS = [(n, named) for n in (5, 11, 15, 20, 30, MOST) for named in {5, min(10, n), n}]
Gains = Sequence[float]


@cache
def blend_of(n: int) -> Sequence[RankedVideo]:
    return [RankedVideo(UUID(int=rank), 1 / rank, f"blend {rank}") for rank in range(1, n + 1)]


def fused(n: int, named: Sequence[int]) -> list[int]:
    """The order of `n` videos, where a model names these."""
    answer = [RankedByModel(UUID(int=rank)) for rank in named]
    return [each.video_id.int for each in fuse(blend_of(n), answer)]


def discounts(n: int) -> list[float]:
    """What each place counts in NDCG@10."""
    return [1 / log2(place + 1) if place <= 10 else 0.0 for place in range(1, n + 1)]


def dcg(order: Sequence[int], gains: Gains) -> float:
    """DCG@10; `gains` are those of the videos by their rank in the blend."""
    return sum(d * gains[rank - 1] for d, rank in zip(discounts(len(order)), order, strict=True))


def share(order: Sequence[int], gains: Gains) -> float:
    """Of the blend's NDCG@10; the best order, by which both are divided, is the same."""
    return dcg(order, gains) / dcg(range(1, len(order) + 1), gains)


def least_share(orders: Sequence[Sequence[int]]) -> float:
    """The least mean share that these orders have for any gains that do not rise.

    Such gains are a mixture of those where the first m videos have 1 and the others 0; so the
    least is at one of these.
    """
    n = len(orders[0])
    totals = [0.0] * n
    for order in orders:
        by_video = dict(zip(order, discounts(n), strict=True))
        kept = accumulate(by_video[rank] for rank in range(1, n + 1))
        for m, (ours, blends) in enumerate(zip(kept, accumulate(discounts(n)), strict=True)):
            totals[m] += ours / blends / len(orders)
    return min(totals)


def test_a_model_that_names_nobody_changes_nothing() -> None:
    assert fused(MOST, []) == list(range(1, MOST + 1))
    assert fuse([], [RankedByModel(uuid4())]) == []


def test_invented_and_repeated_videos_change_nothing() -> None:
    blend, known = blend_of(MOST), [RankedByModel(UUID(int=rank)) for rank in (9, 4, 2)]
    invented = [RankedByModel(uuid4(), "invented") for _ in range(30)]
    noisy = [*invented, known[0], *invented, known[1], known[0], known[2], known[0]]
    assert fuse(blend, noisy) == fuse(blend, known)


def test_a_reason_of_the_model_goes_before_the_blends() -> None:
    found = fuse(blend_of(3), [RankedByModel(UUID(int=2), "model"), RankedByModel(UUID(int=3))])
    assert {each.video_id.int: each.reason for each in found} == {
        1: "blend 1", 2: "model", 3: "blend 3",
    }  # fmt: skip


@given(st.integers(1, MOST), st.lists(st.integers(1, MOST + 20)))
def test_every_video_is_there_once_in_the_order_of_its_score(n: int, named: list[int]) -> None:
    found = fuse(blend_of(n), [RankedByModel(UUID(int=rank)) for rank in named])
    assert sorted(each.video_id.int for each in found) == list(range(1, n + 1))
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_agreement_changes_nothing() -> None:
    assert fused(MOST, range(1, 21)) == list(range(1, MOST + 1))


@pytest.mark.parametrize(("n", "named"), LENGTHS)
def test_an_answer_in_random_order_costs_a_tenth_at_most(n: int, named: int) -> None:
    rng = random.Random(8)
    orders = [fused(n, rng.sample(range(1, n + 1), named)) for _ in range(ROUNDS)]
    assert least_share(orders) >= 0.9


def test_random_relevance_under_a_random_order() -> None:
    rng = random.Random(88)
    ours = blends = 0.0
    for _ in range(ROUNDS):
        gains = [float(rng.random() < 0.8 / (1 + rank)) for rank in range(MOST)]
        ideal = dcg(range(1, MOST + 1), sorted(gains, reverse=True)) or 1.0
        ours += dcg(fused(MOST, rng.sample(range(1, MOST + 1), MOST)), gains) / ideal
        blends += dcg(range(1, MOST + 1), gains) / ideal
    assert 0.9 * blends <= ours < blends


@pytest.mark.parametrize(("n", "named"), LENGTHS)
@pytest.mark.parametrize("first", [True, False])
def test_the_blend_in_reverse_costs_little(n: int, named: int, first: bool) -> None:
    order = fused(n, range(named, 0, -1) if first else range(n, n - named, -1))
    assert least_share([order]) >= 0.86
    assert share(order, [0.8**rank for rank in range(n)]) >= 0.98


@pytest.mark.parametrize(("rank", "place"), [(2, 2), (5, 4), (10, 7), (18, 10), (19, 11), (60, 20)])
def test_how_far_a_video_gets_that_asks_to_be_named_first(rank: int, place: int) -> None:
    others = [each for each in range(1, 21) if each != rank]
    assert fused(MOST, [rank, *others]).index(rank) + 1 == place


def noisy(noise: float) -> Callable[[Gains, random.Random], list[int]]:
    def ranked(gains: Gains, rng: random.Random) -> list[int]:
        seen = [gain + rng.gauss(0, noise) for gain in gains]
        return sorted(range(1, len(gains) + 1), key=lambda rank: -seen[rank - 1])[:20]

    return ranked


@pytest.mark.parametrize(("noise", "gain"), [(0.1, 1.3), (0.5, 1.15), (1.0, 1.05)])
def test_a_model_that_knows_something_helps(noise: float, gain: float) -> None:
    rng = random.Random(888)
    ours = blends = 0.0
    for _ in range(ROUNDS):
        gains = [float(rng.random() < 0.35 / (1 + 0.15 * rank)) for rank in range(MOST)]
        ours += dcg(fused(MOST, noisy(noise)(gains, rng)), gains)
        blends += dcg(range(1, MOST + 1), gains)
    assert ours / blends >= gain
