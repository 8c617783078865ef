"""Ids of lists say what was offered to whom, and how sure what comes of that is."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import product
from math import isclose
from uuid import UUID, uuid4

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from domain.errors import Invalid
from domain.feedback import (
    CHOSEN,
    SHOWN,
    SIGNALS,
    VARIANTS,
    GivenList,
    ListTooOld,
    ListUnknown,
    Offer,
    Signal,
    Variant,
)
from projections.feedback.reports import sign_test, wilson

KEY = bytes(range(32))
AT = datetime(2026, 11, 30, 10, 59, 30, tzinfo=UTC)
OFFERS = [Offer(uuid4(), source, variant) for source, variant in product(SIGNALS, VARIANTS)]
LIST = GivenList.given("ann", AT, OFFERS, 12345)


class TestIds:
    def test_a_list_is_what_its_id_says(self) -> None:
        assert GivenList.opened(LIST.signed(KEY), "ann", KEY) == LIST
        assert LIST.hour == datetime(2026, 11, 30, 10, tzinfo=UTC)

    @pytest.mark.parametrize("number", [0, 1, 10, 50])
    def test_an_id_fits_in_a_path(self, number: int) -> None:
        told = GivenList.given("ann", AT, [Offer(uuid4(), Signal.LLM)] * number).signed(KEY)
        assert re.fullmatch("[A-Za-z0-9_-]+", told)
        assert len(told) == 32 + 24 * number

    @pytest.mark.parametrize("user", ["bob", "an", "annn", "", "Ann"])
    def test_it_is_of_its_user_alone(self, user: str) -> None:
        with pytest.raises(ListUnknown):
            GivenList.opened(LIST.signed(KEY), user, KEY)

    def test_another_key_opens_nothing(self) -> None:
        with pytest.raises(ListUnknown):
            GivenList.opened(LIST.signed(KEY), "ann", KEY[::-1])

    def test_where_the_name_ends_and_the_list_begins_is_no_matter_of_taste(self) -> None:
        # A user whose name ends as another one's list begins.
        id_ = GivenList.given("ann", AT, OFFERS[:1]).signed(KEY)
        assert GivenList.opened(id_, "ann", KEY).offers == (OFFERS[0],)
        with pytest.raises(ListUnknown):
            GivenList.opened(id_, "ann\x01", KEY)

    @for_all(st.integers(0, 31), st.integers(1, 255))
    def test_no_byte_can_be_changed(self, place: int, change: int) -> None:
        id_ = GivenList.given("ann", AT, OFFERS[:1]).signed(KEY)
        other = list(id_.encode())
        other[place] = (other[place] ^ change) % 128
        if bytes(other) != id_.encode():
            with pytest.raises(ListUnknown):
                GivenList.opened(bytes(other).decode(), "ann", KEY)

    def test_no_byte_can_be_spelled_otherwise(self) -> None:
        for number in range(100):
            id_ = GivenList.given(f"ann-{number}", AT, OFFERS[:1]).signed(KEY)
            other = id_.translate({ord("-"): "+", ord("_"): "/"})
            if other != id_:
                with pytest.raises(ListUnknown):
                    GivenList.opened(other, f"ann-{number}", KEY)

    @for_all(st.text())
    def test_any_text_is_no_list(self, text: str) -> None:
        with pytest.raises(ListUnknown):
            GivenList.opened(text, "ann", KEY)

    def test_places_of_old_ids_stay(self) -> None:
        """Ids that were given name sources and variants by their places."""
        assert [str(each) for each in SIGNALS] == [
            "neighbour",
            "similar",
            "category",
            "trending",
            "new",
            "llm",
            "other",
            "popular",
        ]
        assert [str(each) for each in VARIANTS] == ["default", "a", "b"]


class TestReports:
    def test_the_same_is_reported_under_the_same_id(self) -> None:
        again = GivenList.given("ann", AT - timedelta(minutes=59), OFFERS[3:], 12345)
        assert LIST.report_id(SHOWN, 4) == again.report_id(SHOWN, 1)

    def test_whatever_differs_has_another_id(self) -> None:
        one = [Offer(UUID(int=1), Signal.NEW, Variant.A)]
        others = [
            Offer(UUID(int=2), Signal.NEW, Variant.A),
            Offer(UUID(int=1), Signal.LLM, Variant.A),
            Offer(UUID(int=1), Signal.NEW, Variant.B),
        ]
        lists = [GivenList.given("ann", AT, [offer], 1) for offer in others]
        lists += [
            GivenList.given("ann", AT, one, 1),
            GivenList.given("ann", AT, one, 2),
            GivenList.given("bob", AT, one, 1),
            GivenList.given("ann", AT + timedelta(hours=1), one, 1),
        ]
        found = [each.report_id(topic, 1) for each in lists for topic in (SHOWN, CHOSEN)]
        assert len(set(found)) == len(found)

    def test_places_are_those_of_the_list_each_once(self) -> None:
        ids = [offer.video_id for offer in OFFERS]
        assert LIST.places([ids[4], ids[0], ids[4]]) == [5, 1]
        with pytest.raises(Invalid, match=str(UUID(int=7))):
            LIST.places([ids[0], UUID(int=7)])

    def test_they_come_within_a_day(self) -> None:
        LIST.require_reportable(AT + timedelta(hours=24))
        with pytest.raises(ListTooOld):
            LIST.require_reportable(AT + timedelta(hours=25, minutes=1))


class TestStatistics:
    @pytest.mark.parametrize(
        ("successes", "trials", "low", "high"),
        [
            # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in
            # Medicine 17 (1998), table I, method 3.
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ],
    )
    def test_the_interval_is_that_of_the_literature(
        self, successes: int, trials: int, low: float, high: float
    ) -> None:
        found = wilson(successes, trials)
        assert found is not None
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)

    def test_without_trials_nothing_is_known(self) -> None:
        assert wilson(0, 0) is None
        assert sign_test(0, 0) is None

    @pytest.mark.parametrize(
        ("wins", "losses", "expected"),
        [(5, 0, 0.0625), (0, 5, 0.0625), (1, 1, 1.0), (8, 2, 0.109375), (0, 10, 0.001953125)],
    )
    def test_the_sign_test_is_exact(self, wins: int, losses: int, expected: float) -> None:
        assert sign_test(wins, losses) == expected

    def test_where_the_exact_sum_ends_the_two_agree(self) -> None:
        exact, normal = sign_test(460, 540), sign_test(461, 541)
        assert exact is not None
        assert normal is not None
        assert isclose(exact, normal, rel_tol=0.02)
