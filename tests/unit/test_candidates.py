"""Candidates and their order, made quickly: the same as by the plain form of `plain_ranking`."""

from __future__ import annotations

from array import array
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from random import Random
from uuid import UUID

import pytest

from projections.recommendations.attention import default_attention
from projections.recommendations.blend import blend
from projections.recommendations.candidates import NO_TRENDS, Trends, material_of, question_of
from projections.recommendations.model import EngagedVideo, Material, Profile, Weighing
from projections.recommendations.video_facts import (
    NeighbourList,
    Vicinity,
    VideoFacts,
    categories_of,
)
from projections.trending import Ranked
from tests.plain_ranking import plain_blend, plain_material

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
CATEGORIES = ["art", "film", "music", "news", None]
WEIGHING = Weighing()
ATTENTION = default_attention(WEIGHING)
SEEDS = [*range(40)]


class World:
    """Videos and what lies around a user, at random; few values, so that many are equal."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.few = seed % 2 == 0
        videos = self.chance.choice([5, 60, 900])
        self.videos = [self._video(number) for number in range(videos)]

    def _video(self, number: int) -> VideoFacts:
        chance, video_id = self.chance, UUID(int=number)
        facts = VideoFacts(video_id.bytes, video_id, chance.choice(CATEGORIES), "owner")
        facts.completed = NOW - self._value() * 90 * 86_400
        facts.listed = chance.random() < 0.9
        if chance.random() < 0.05:
            facts.owner = "ann"
        if chance.random() < 0.9:
            facts.as_of = NOW - self._value() * 86_400
            facts.mass = 5 * self._value() + facts.as_of * WEIGHING.decay
        return facts

    def _value(self) -> float:
        return self.chance.randint(0, 3) / 3 if self.few else self.chance.random()

    def some(self, most: int) -> list[VideoFacts]:
        return self.chance.sample(self.videos, min(most, len(self.videos)))

    def engaged(self, most: int) -> list[EngagedVideo]:
        at = [NOW - self.chance.random() * 30 * 86_400 for _ in range(most)]
        found = zip(self.some(self.chance.randint(0, most)), sorted(at, reverse=True), strict=False)
        return [EngagedVideo(each.video_id, datetime.fromtimestamp(at, UTC)) for each, at in found]

    def neighbours(self, of: VideoFacts) -> NeighbourList:
        """Return a list; what nobody engaged with has none, and is in none."""
        videos = [each for each in self.some(100) if each.mass > -inf and each is not of]
        if of.mass == -inf or not videos or self.chance.random() < 0.2:
            return NeighbourList()
        weights = array("d", (0.1 + self._value() for _ in videos))
        as_of = NOW - self._value() * 10 * 86_400
        return NeighbourList(videos, weights, as_of, sum(weights))


def made(seed: int) -> tuple[Material, Material]:
    """Return what the program makes of a world, and what the plain form does."""
    world = World(seed)
    is_new = seed % 8 == 7
    profile = Profile("ann", *([[], []] if is_new else [world.engaged(20), world.engaged(10)]))
    ranked = [
        Ranked(place, each.video_id, world.chance.randint(0, 9), 0, 0, 0, 0, 0, 0)
        for place, each in enumerate(world.some(50), 1)
    ]
    trends = Trends.of(ranked)
    similar = [(each.video_id, world._value()) for each in world.some(world.chance.choice([0, 20]))]
    known = {each.key: each for each in world.videos}
    asked = question_of(profile, trends, similar, WEIGHING)
    seeds = [
        (known[key], share, world.neighbours(known[key])) for key, share in asked.seeds.items()
    ]
    tops = [
        [(category or "", each) for each in world.some(world.chance.randint(1, 100))]
        for category in world.chance.sample(CATEGORIES, world.chance.randint(1, 3))
    ]
    around = Vicinity(
        seeds,
        categories_of(seeds),
        tops,
        [("", each) for each in world.some(100)],
        [known[key] for key in asked.others],
    )
    engaged = {each.key for each in world.some(world.chance.choice([0, 10, 200]))}
    without = [each.video_id for each in world.some(world.chance.choice([0, 20]))]
    limit = world.chance.choice([1, 10, 60])
    given = (profile, around, engaged, trends, ATTENTION)
    quick, plain = (
        find(*given, similar=similar, without=without, limit=limit, weighing=WEIGHING)
        for find in (material_of, plain_material)
    )
    interest = {"art": 0.5, "film": 0.9} if world.chance.random() < 0.5 else {}
    return replace(quick, interest=interest), replace(plain, interest=interest)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_candidates_and_their_signals_are_those_of_the_plain_form(seed: int) -> None:
    quick, plain = made(seed)
    assert [each[:2] for each in quick.candidates] == [each[:2] for each in plain.candidates]
    assert [each.because for each in quick.candidates] == [
        each.because for each in plain.candidates
    ]
    for one, other in zip(quick.candidates, plain.candidates, strict=True):
        assert (*one[2:6], one.popular) == pytest.approx((*other[2:6], other.popular), rel=1e-9)
    assert (quick.telling, quick.sure) == pytest.approx((plain.telling, plain.sure), rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_is_that_of_the_plain_form(seed: int) -> None:
    quick, plain = made(seed)
    found = blend(quick, limit=60)
    told = plain_blend(plain)
    assert [(each.video_id, each.signal, each.because) for each in found] == [
        (video, signal, because) for video, _, signal, because in told
    ]
    assert [each.score for each in found] == pytest.approx([score for _, score, *_ in told])


def test_of_two_that_pull_alike_the_first_is_told() -> None:
    one, other, near = (
        VideoFacts(UUID(int=n).bytes, UUID(int=n), listed=True, mass=0.0, as_of=0.0)
        for n in (1, 2, 3)
    )
    alike = NeighbourList([near], array("d", [1.0]), 0.0, 1.0)
    seeds = [(each, 1.0, alike) for each in (one, other)]
    around = Vicinity(seeds, {}, [()], (), ())
    (found,) = material_of(Profile("ann"), around, (), NO_TRENDS, ATTENTION).candidates
    assert (found.video_id, found.because) == (near.video_id, one.video_id)


def test_tops_take_turns_until_each_has_ended() -> None:
    a, b, c = (("", VideoFacts(bytes([n]) * 16, UUID(int=n))) for n in range(3))
    assert [*Vicinity((), {}, [[a, b], [c]], (), ()).tops] == [a, c, b]


def test_the_worlds_have_what_makes_a_difference() -> None:
    """Neighbours beyond those that are looked at, equal signals, and users of whom little is known.

    Else nothing above would tell whether they are treated alike.
    """
    materials = [made(seed)[0] for seed in SEEDS]
    assert any(material.profile.is_empty for material in materials)
    assert min(len(material.candidates) for material in materials) < 5
    near = [[each.neighbour for each in material.candidates] for material in materials]
    assert any(len(set(each)) < len(each) and max(each, default=0.0) > 0 for each in near)
    assert any(each.similar for material in materials for each in material.candidates)
