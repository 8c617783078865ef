"""The order without a language model, and the reasons that people read."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations, product
from uuid import UUID

import pytest

from projections.recommendations.blend import TITLE_LENGTH, WEIGHTS, blend, source_of, with_new
from projections.recommendations.model import (
    Candidate,
    DescribedVideo,
    EngagedVideo,
    Material,
    Profile,
    RankedVideo,
    RecommendationSource,
)

AT = datetime(2026, 3, 14, tzinfo=UTC)
SEEN = UUID(int=999)
KNOWN = Profile("ann", watched=[EngagedVideo(SEEN, AT)])
NEW = Profile("new")


def video(number: int) -> UUID:
    return UUID(int=number)


def candidate(
    number: int,
    category: str | None = None,
    *,
    trending: float = 0.0,
    neighbour: float = 0.0,
    same_category: float = 0.0,
    similar: float = 0.0,
    because: UUID | None = None,
    popular: float = 0.0,
) -> Candidate:
    return Candidate(
        video(number),
        category,
        trending,
        neighbour,
        same_category,
        similar,
        because,
        popular,
    )


def order(*candidates: Candidate, profile: Profile = KNOWN, limit: int = 60) -> list[int]:
    found = blend(Material(profile, candidates), limit=limit)
    return [each.video_id.int for each in found]


def reason(of: Candidate, *titles: DescribedVideo, profile: Profile = KNOWN) -> str:
    material = Material(profile, [of], {each.video_id: each for each in titles})
    return blend(material, limit=1)[0].reason


PLAIN = candidate(1, trending=0.2, neighbour=0.2, same_category=0.2, similar=0.2)


@pytest.mark.parametrize(
    "more",
    [
        PLAIN._replace(video_id=video(2), trending=0.3),
        PLAIN._replace(video_id=video(2), neighbour=0.3),
        PLAIN._replace(video_id=video(2), same_category=0.3),
        PLAIN._replace(video_id=video(2), similar=0.3),
        PLAIN._replace(video_id=video(2), popular=0.1),
    ],
)
def test_more_of_any_signal_puts_a_video_before_its_equals(more: Candidate) -> None:
    assert order(PLAIN, more) == [2, 1]


def test_what_fits_the_user_stands_before_what_only_trends() -> None:
    assert order(candidate(1, trending=1.0), candidate(2, neighbour=1.0, trending=0.3)) == [2, 1]


def test_of_two_that_fit_alike_the_one_that_trends_comes_first() -> None:
    assert order(candidate(1, neighbour=0.5), candidate(2, neighbour=0.5, trending=0.5)) == [2, 1]


def test_the_signals_are_mixed_by_their_weights() -> None:
    both = candidate(1, neighbour=0.2, same_category=0.3, similar=0.4, popular=0.5, trending=0.6)
    (found,) = blend(Material(KNOWN, [both]), limit=1)
    assert found.score == pytest.approx(
        0.2 * WEIGHTS["neighbour"]
        + 0.3 * WEIGHTS["same_category"]
        + 0.4 * WEIGHTS["similar"]
        + 0.5 * WEIGHTS["popular"]
        + 0.6 * WEIGHTS["trending"]
    )


def test_what_comes_of_the_profile_counts_as_far_as_that_tells() -> None:
    near = candidate(1, neighbour=0.2, same_category=0.3, similar=0.4, popular=0.5, trending=0.6)

    def score(telling: float = 1.0, sure: float = 1.0) -> float:
        (found,) = blend(Material(KNOWN, [near], telling=telling, sure=sure), limit=1)
        return found.score

    others = 0.5 * WEIGHTS["popular"] + 0.6 * WEIGHTS["trending"]
    assert score(telling=0.0) == pytest.approx(others)
    assert score(telling=0.5) - others == pytest.approx((score() - others) / 2)
    assert score() - score(sure=0.25) == pytest.approx(0.75 * 0.2 * WEIGHTS["neighbour"])


def test_ties_are_ordered_by_id_whatever_order_they_came_in() -> None:
    same = [candidate(number, "music", neighbour=0.5) for number in (3, 1, 2)]
    assert {tuple(order(*each)) for each in permutations(same)} == {(1, 2, 3)}


def test_each_candidate_comes_once_and_the_scores_never_rise() -> None:
    levels, kinds = (0.0, 0.4, 1.0), ("music", "sport", None)
    many = [
        candidate(number, kind, trending=one, neighbour=other, same_category=third)
        for number, (one, other, third, kind) in enumerate(product(levels, levels, levels, kinds))
    ]
    found = blend(Material(KNOWN, many), limit=len(many))
    scores = [each.score for each in found]
    assert sorted(each.video_id for each in found) == sorted(each.video_id for each in many)
    assert scores == sorted(scores, reverse=True)


def test_no_more_than_asked_for_are_given_and_none_of_nothing() -> None:
    assert order(*(candidate(number) for number in range(5)), limit=2) == [0, 1]
    assert order() == []


def test_another_category_comes_before_one_more_that_is_hardly_better() -> None:
    music = [candidate(number, "music", neighbour=0.8) for number in range(3)]
    assert order(*music, candidate(9, "sport", neighbour=0.795)) == [0, 9, 1, 2]
    assert order(*music, candidate(9, "sport", neighbour=0.4)) == [0, 1, 2, 9]


def test_videos_without_a_category_are_not_more_of_the_same() -> None:
    untold = [candidate(number, neighbour=0.8) for number in range(3)]
    assert order(*untold, candidate(9, "sport", neighbour=0.795)) == [0, 1, 2, 9]


def test_who_is_new_gets_what_trends_varied_by_category() -> None:
    trending = [
        candidate(number, "music" if number < 4 else "sport", trending=1 - number / 36)
        for number in range(6)
    ]
    assert order(*trending, profile=NEW, limit=3) == [0, 4, 1]
    assert order(*trending, profile=KNOWN, limit=4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("share", "places"), [(0.0, []), (0.2, [4, 9, 14]), (0.5, [1, 3, 5, 7])])
def test_new_videos_have_a_bounded_share_of_the_places(share: float, places: list[int]) -> None:
    items = [RankedVideo(video(number), 1 / (1 + number), "Near") for number in range(12)]
    newest = [RankedVideo(video(number), 0.0, "New") for number in (100, 3, 101, 102, 103)]
    seen = set[UUID]()
    for user in ("ann", "bob", "eve", "dan", "ida"):
        found = with_new(items, newest, share, user)
        assert len({each.video_id for each in found}) == len(found) == 16
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
        ids = [each.video_id.int for each in found]
        assert [place for place in range(12 + len(places)) if ids[place] >= 100] == places
        assert [number for number in ids if number < 100] == list(range(12))
        if places:
            seen.add(found[places[0]].video_id)
    # Somebody gets another one first; at the end they come in order.
    assert len(seen) > 1 or not places
    assert with_new([], newest, share, "ann") == tuple(newest)


def test_the_source_is_what_there_was_to_go_by() -> None:
    def source(profile: Profile, *candidates: Candidate) -> RecommendationSource:
        return source_of(Material(profile, candidates))

    assert (
        source(KNOWN, candidate(1, trending=1), candidate(2, neighbour=0.1))
        is RecommendationSource.BLEND
    )
    assert source(KNOWN, candidate(1, same_category=0.1)) is RecommendationSource.BLEND
    assert source(KNOWN, candidate(1, similar=0.1)) is RecommendationSource.BLEND
    assert source(KNOWN, candidate(1, trending=1)) is RecommendationSource.TRENDING
    assert source(NEW, candidate(1, same_category=0.5)) is RecommendationSource.TRENDING
    assert source(KNOWN) is RecommendationSource.TRENDING


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (candidate(1, "music", trending=1), "Trending this month"),
        (candidate(1, "music", same_category=1), "More in music"),
        (candidate(1, "music", same_category=1, trending=0.1), "Popular in music right now"),
        (candidate(1, "music", similar=1), "Similar to what you watched"),
        (candidate(1, "music", neighbour=1), "Because of what you watched"),
        (candidate(1, "music", neighbour=1, because=SEEN), "Because of what you watched"),
        (candidate(1), "Something else to watch"),
        (candidate(1, popular=1), "Popular with other viewers"),
    ],
)
def test_the_reason_is_what_ties_the_video_to_the_user(of: Candidate, told: str) -> None:
    assert reason(of) == told


def test_the_reason_names_what_was_watched_or_liked() -> None:
    near, seen = candidate(1, neighbour=1, because=SEEN), DescribedVideo(SEEN, "Two cats")
    assert reason(near, seen) == "Because you watched “Two cats”"
    liking = Profile("ann", watched=KNOWN.watched, liked=KNOWN.watched)
    assert reason(near, seen, profile=liking) == "Because you liked “Two cats”"


def test_a_title_stays_one_short_line_whatever_is_in_it() -> None:
    near = candidate(1, neighbour=1, because=SEEN)
    turned = DescribedVideo(SEEN, "two\n\ncats\u202e \x07 and\tmore")
    assert reason(near, turned) == "Because you watched “two cats and more”"
    told = reason(near, DescribedVideo(SEEN, "long " * 50))
    assert len(told) <= TITLE_LENGTH + len("Because you watched “”")
    assert told.endswith("long…”")
    assert reason(near, DescribedVideo(SEEN, "\u200b\n")) == "Because of what you watched"
