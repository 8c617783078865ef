"""Two settings are compared fairly: neither order is shown more, and none is shown twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from domain.feedback import Variant
from infra.settings import SettingsError, load_settings
from infra.settings.features import BLEND
from projections.recommendations.blend import TIES, WEIGHTS, BlendVariant, experiment_of, interleave
from projections.recommendations.model import RankedVideo, Weighing

ORDERS = st.lists(st.integers(0, 30), unique=True, max_size=20)
BASE = BlendVariant(WEIGHTS, Weighing())


def ranked(*numbers: int) -> list[RankedVideo]:
    return [RankedVideo(UUID(int=number), 1.0, "reason") for number in numbers]


def numbers(videos: list[RankedVideo]) -> list[int]:
    return [each.video_id.int for each in videos]


@for_all(ORDERS, ORDERS, st.uuids())
def test_every_video_is_there_once_and_the_list_is_the_same_again(
    a: list[int], b: list[int], seed: UUID
) -> None:
    drafted = interleave(ranked(*a), ranked(*b), seed)
    assert sorted(numbers(drafted)) == sorted({*a, *b})
    assert drafted == interleave(ranked(*a), ranked(*b), seed)


@for_all(ORDERS, ORDERS, st.uuids())
def test_a_team_keeps_its_order_and_picks_the_best_that_is_left(
    a: list[int], b: list[int], seed: UUID
) -> None:
    orders, taken = {Variant.A: a, Variant.B: b}, set[int]()
    for each in interleave(ranked(*a), ranked(*b), seed):
        best = next(number for number in orders[each.variant] if number not in taken)
        assert each.video_id.int == best
        taken.add(best)


@for_all(st.permutations(range(10)), st.permutations(range(10)), st.uuids())
def test_no_team_is_ever_more_than_one_ahead(a: list[int], b: list[int], seed: UUID) -> None:
    lead = 0
    for each in interleave(ranked(*a), ranked(*b), seed):
        lead += 1 if each.variant is Variant.A else -1
        assert abs(lead) <= 1


def test_each_team_is_first_about_as_often() -> None:
    first = Counter(
        interleave(ranked(1, 2), ranked(3, 4), UUID(int=seed))[0].variant for seed in range(1_000)
    )
    # Six standard deviations around a half.
    assert 405 < first[Variant.A] < 595


def test_what_is_compared_has_a_number_of_its_own() -> None:
    others = [
        BASE.changed({"neighbour": 0.5}),
        BASE.changed({"similar": 0.5001}),
        BASE.changed({"popularity_exponent": 0.3}),
        BASE.changed({"profile_fade": 0.5}),
    ]
    found = [experiment_of([BASE, other]) for other in others]
    found.append(experiment_of([BlendVariant(WEIGHTS, Weighing(liked=3.0)), others[0]]))
    assert len(set(found)) == len(found)
    assert all(number is not None and 0 <= number < 2**31 for number in found)
    assert experiment_of([BASE, others[0]]) == found[0]
    assert experiment_of([BASE]) is None


def test_what_is_not_changed_stays() -> None:
    changed = BASE.changed({"neighbour": 0.5, "profile_fade": 0.8})
    assert changed.weights == {**WEIGHTS, "neighbour": 0.5}
    assert changed.weighing == replace(BASE.weighing, profile_fade=0.8)


def test_every_name_of_the_setting_is_one_of_the_blend() -> None:
    assert set(BLEND) <= {*WEIGHTS, *(field.name for field in fields(Weighing))}
    assert set(WEIGHTS) <= set(BLEND)
    assert set(TIES) <= set(WEIGHTS)


class TestSetting:
    def variant(self, text: str) -> dict[str, float]:
        return load_settings({"RECOMMENDATIONS_VARIANT_B": text}).recommendations.variant_b

    def test_it_is_off_by_default(self) -> None:
        assert load_settings({}).recommendations.variant_b == {}
        assert self.variant("") == {}

    def test_it_names_numbers(self) -> None:
        found = self.variant("neighbour=0.5, popularity_exponent = 0.3,")
        assert found == {"neighbour": 0.5, "popularity_exponent": 0.3}

    @pytest.mark.parametrize(
        "text",
        [
            "neighbour",
            "neighbour=much",
            "half_life=3",
            "neighbour=-1",
            "neighbour=11",
            "neighbour=nan",
            "profile_fade=3.5",
            "popularity_exponent=inf",
        ],
    )
    def test_what_it_can_not_be_is_told(self, text: str) -> None:
        with pytest.raises(SettingsError, match="RECOMMENDATIONS_VARIANT_B"):
            self.variant(text)
