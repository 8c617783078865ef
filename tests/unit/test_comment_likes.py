"""A viewer counts once among those who like a comment, and only while everybody sees it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from commands.comment_likes import ChangeCommentLike, Place
from commands.likes import LikesOf, Wish
from domain.comment import Comment
from domain.comment_likes import CommentLikes
from domain.errors import NotFound
from domain.model import Aggregate
from domain.moderation import ActingAs
from domain.upload import Upload, Visibility
from domain.video_likes import stream_id
from engine.command_bus import Aggregates, Slot
from engine.lookups import LookupResults
from infra.http.shapes import LikeState
from tests.unit.given_when_then import by, fact, given

ANN, BOB = by("ann"), by("bob")
VIDEO = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
COMMENT, PARENT = (UUID(int=each) for each in (1, 2))
KEYS = {"comment_id": COMMENT, "video_id": VIDEO, "viewer": "ann"}
LIKED, UNLIKED = (fact(each, ANN, **KEYS) for each in (CommentLikes.Liked, CommentLikes.Unliked))


def wish(verb: str) -> Any:
    return lambda likes: getattr(likes, verb)(COMMENT, VIDEO, "ann", ANN)


@pytest.mark.parametrize(
    ("history", "verb", "expected", "liked"),
    [
        ((), "like", (LIKED,), True),
        ((), "unlike", (), False),
        ((LIKED,), "like", (), True),
        ((LIKED,), "unlike", (UNLIKED,), False),
        ((LIKED, UNLIKED), "like", (LIKED,), True),
        ((LIKED, UNLIKED), "unlike", (), False),
    ],
)
def test_verbs(history: Any, verb: str, expected: Any, liked: bool) -> None:
    assert given(CommentLikes, *history).when(wish(verb)).then(*expected).liked is liked


class World:
    """A video with a comment and a reply to it."""

    def __init__(self) -> None:
        self.upload = Upload.blank(VIDEO)
        self.upload.start(
            BOB, title="Rain", filename="rain.mp4", content_type="video/mp4", size_bytes=9,
            part_size_bytes=9, object_key="k", store_upload_id="s", description=None, category=None,
        )  # fmt: skip
        self.upload.complete(9, "etag", BOB)
        self.parent, self.reply = Comment.blank(PARENT), Comment.blank(COMMENT)
        self.parent.post(VIDEO, "One", BOB)
        self.reply.post(VIDEO, "Two", ANN, parent_id=PARENT)

    def like(self) -> LikeState:
        likes = CommentLikes.blank(stream_id(COMMENT, "ann"))
        there: list[Aggregate] = [self.upload, self.parent, self.reply, likes]
        slots = {each.id: Slot(each) for each in there}
        command = ChangeCommentLike(COMMENT, Place(VIDEO, PARENT), "ann", Wish.LIKE)
        assert set(command.streams()) == set(slots)
        return command.decide(
            Aggregates(slots, LookupResults({}, {LikesOf(COMMENT).place: 4})), ANN
        )


def test_the_answer_counts_the_callers_own() -> None:
    assert World().like() == LikeState(has_liked=True, likes_count=5)


def hide_video(world: World) -> None:
    world.upload.change_visibility(Visibility.PRIVATE, BOB)


def delete_reply(world: World) -> None:
    world.reply.delete(ANN)


def remove_parent(world: World) -> None:
    world.parent.remove(ActingAs.MODERATOR, None, by("mod"))


@pytest.mark.parametrize("change", [hide_video, delete_reply, remove_parent])
def test_what_not_everybody_sees_is_not_liked(change: Any) -> None:
    world = World()
    change(world)
    with pytest.raises(NotFound, match="no such comment"):
        world.like()
