"""Who is not interested says so once, and may take it back."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from commands.dismissals import ChangeInterest
from domain.dismissals import Dismissal, stream_id
from domain.errors import NotFound
from domain.model import Aggregate
from domain.upload import Upload
from domain.video_likes import stream_id as likes_of
from engine.command_bus import Aggregates, Slot
from projections.recommendations.blend import LEAST, blend, interest
from projections.recommendations.model import (
    Candidate,
    DescribedVideo,
    EngagedVideo,
    Material,
    Profile,
)
from tests.unit.given_when_then import AT, by, fact, given

ANN = by("ann")
VIDEO = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
DISMISSED = fact(Dismissal.Dismissed, ANN, video_id=VIDEO, viewer="ann")
TAKEN_BACK = fact(Dismissal.TakenBack, ANN, video_id=VIDEO, viewer="ann")


@pytest.mark.parametrize(
    ("history", "verb", "expected", "stands"),
    [
        ((), "dismiss", (DISMISSED,), True),
        ((), "take_back", (), False),
        ((DISMISSED,), "dismiss", (), True),
        ((DISMISSED,), "take_back", (TAKEN_BACK,), False),
        ((DISMISSED, TAKEN_BACK), "dismiss", (DISMISSED,), True),
        ((DISMISSED, TAKEN_BACK), "take_back", (), False),
    ],
)
def test_what_is_said_again_records_nothing(
    history: tuple[Any, ...], verb: str, expected: tuple[Any, ...], stands: bool
) -> None:
    def wish(dismissal: Dismissal) -> object:
        return getattr(dismissal, verb)(VIDEO, "ann", ANN)

    assert given(Dismissal, *history).when(wish).then(*expected).stands is stands


def test_a_stream_is_of_one_viewer_and_video_and_never_that_of_likes() -> None:
    pairs = [(VIDEO, "ann"), (VIDEO, "bob"), (uuid4(), "ann")]
    ids = [make(*pair) for make in (stream_id, likes_of) for pair in pairs]
    assert len(set(ids)) == len(ids)
    assert stream_id(VIDEO, "ann") == stream_id(VIDEO, "ann")


@pytest.mark.parametrize("not_interested", [True, False])
def test_there_must_be_such_a_video(not_interested: bool) -> None:
    command = ChangeInterest(VIDEO, "ann", not_interested)
    blank: list[Aggregate] = [Upload.blank(VIDEO), Dismissal.blank(stream_id(VIDEO, "ann"))]
    aggregates = Aggregates({each.id: Slot(each) for each in blank})
    with pytest.raises(NotFound):
        command.decide(aggregates, ANN)


def described(*categories: str | None) -> dict[UUID, DescribedVideo]:
    videos = [DescribedVideo(uuid4(), "Title", category=category) for category in categories]
    return {video.video_id: video for video in videos}


def test_each_dismissal_takes_a_little_of_its_category_and_never_more_than_half() -> None:
    known = described("art", "art", None, *["fun"] * 20)
    found = interest([*known, uuid4()], known)
    assert found == {"art": pytest.approx(0.8), "fun": LEAST}


def test_a_category_of_less_interest_comes_later() -> None:
    art, fun = Candidate(UUID(int=1), "art", neighbour=0.5), Candidate(UUID(int=2), "fun")
    fun = Candidate(UUID(int=2), "fun", neighbour=0.48)
    profile = Profile("ann", [EngagedVideo(VIDEO, AT)])
    first = [each.video_id for each in blend(Material(profile, [art, fun]), limit=2)]
    later = Material(profile, [art, fun], interest={"art": 0.9})
    assert first == [art.video_id, fun.video_id]
    assert [each.video_id for each in blend(later, limit=2)] == first[::-1]
