"""One viewer counts once, however often and in whatever order they click."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from commands.likes import ChangeLike, LikesOf, Wish
from domain.comment import Comment
from domain.errors import NotFound
from domain.model import Aggregate
from domain.upload import Upload
from domain.video_likes import VideoLikes, stream_id
from engine.command_bus import Aggregates, Slot
from engine.lookups import LookupResults
from infra.http.shapes import LikeState
from tests.unit.given_when_then import by, fact, given

ANN = by("ann")
VIDEO = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
LIKED = fact(VideoLikes.Liked, ANN, video_id=VIDEO, viewer="ann")
UNLIKED = fact(VideoLikes.Unliked, ANN, video_id=VIDEO, viewer="ann")
WISHES = st.lists(st.sampled_from(Wish), max_size=30)


def wish(verb: str) -> Any:
    return lambda likes: getattr(likes, verb)(VIDEO, "ann", ANN)


class TestDomain:
    @pytest.mark.parametrize(
        ("history", "verb", "expected", "liked"),
        [
            ((), "like", (LIKED,), True),
            ((), "unlike", (), False),
            ((), "toggle", (LIKED,), True),
            ((LIKED,), "like", (), True),
            ((LIKED,), "unlike", (UNLIKED,), False),
            ((LIKED,), "toggle", (UNLIKED,), False),
            ((LIKED, UNLIKED), "like", (LIKED,), True),
            ((LIKED, UNLIKED), "unlike", (), False),
            ((LIKED, UNLIKED), "toggle", (LIKED,), True),
        ],
    )
    def test_verbs(self, history: Any, verb: str, expected: Any, liked: bool) -> None:
        assert given(VideoLikes, *history).when(wish(verb)).then(*expected).liked is liked

    @for_all(WISHES)
    def test_whatever_is_wished_events_alternate_from_a_like(self, wishes: list[Wish]) -> None:
        likes = VideoLikes.blank(UUID(int=1))
        for verb in wishes:
            wish(verb)(likes)
        kinds = [type(event) for event in likes.collect_events()]
        assert kinds[:1] in ([], [VideoLikes.Liked])
        assert all(before is not after for before, after in pairwise(kinds))
        assert likes.liked is (kinds[-1:] == [VideoLikes.Liked])

    def test_a_stream_belongs_to_one_viewer_of_one_video(self) -> None:
        ids = {stream_id(UUID(int=video), viewer) for video in (1, 2) for viewer in ("ann", "bob")}
        assert len(ids) == 4
        assert stream_id(VIDEO, "ann") == UUID("b3150aa9-b06f-5296-9819-56079b8daea6")


def known(*aggregates: Aggregate, found: LookupResults | None = None) -> Aggregates:
    """What a like of the video declares, as far as it is known."""
    slots = {stream: Slot(None) for stream in (VIDEO, stream_id(VIDEO, "ann"))}
    slots |= {aggregate.id: Slot(aggregate) for aggregate in aggregates}
    return Aggregates(slots, found)


def video() -> Upload:
    upload = Upload.blank(VIDEO)
    upload.start(
        ANN,
        title="Rain",
        filename="rain.mp4",
        content_type="video/mp4",
        size_bytes=1,
        description=None,
        category=None,
        part_size_bytes=1,
        object_key="key",
        store_upload_id="id",
    )
    upload.complete(1, "etag", ANN)
    return upload


class TestCommand:
    @pytest.mark.parametrize(
        ("wishes", "likes", "expected"),
        [
            ([Wish.LIKE], None, LikeState(has_liked=True, likes_count=1)),
            ([Wish.LIKE, Wish.LIKE], 41, LikeState(has_liked=True, likes_count=42)),
            ([Wish.UNLIKE], 41, LikeState(has_liked=False, likes_count=41)),
            ([Wish.TOGGLE], 0, LikeState(has_liked=True, likes_count=1)),
            ([Wish.TOGGLE, Wish.TOGGLE], 7, LikeState(has_liked=False, likes_count=7)),
        ],
    )
    def test_the_answer_counts_the_callers_own_action(
        self, wishes: list[Wish], likes: int | None, expected: LikeState
    ) -> None:
        found = None if likes is None else LookupResults({}, {LikesOf(VIDEO).place: likes})
        aggregates = known(video(), found=found)
        answers = [ChangeLike(VIDEO, "ann", w).decide(aggregates, ANN) for w in wishes]
        assert answers[-1] == expected

    def test_it_declares_the_streams_that_it_touches(self) -> None:
        streams = ChangeLike(VIDEO, "ann", Wish.LIKE).streams()
        assert streams == (VIDEO, stream_id(VIDEO, "ann"))

    def test_only_a_video_can_be_liked(self) -> None:
        removed = video()
        removed.remove(ANN)
        comment = Comment.blank(VIDEO)
        comment.post(UUID(int=2), "A comment's id is not a video's.", ANN)
        for aggregates in (known(), known(Upload.blank(VIDEO)), known(removed), known(comment)):
            with pytest.raises(NotFound):
                ChangeLike(VIDEO, "ann", Wish.LIKE).decide(aggregates, ANN)
            assert not aggregates.get(VideoLikes, stream_id(VIDEO, "ann")).liked
