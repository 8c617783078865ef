"""Live events: as they happen, and again after a connection has broken off."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from uuid import UUID, uuid4

import pytest
from backlot_client import (
    Backlot,
    CommentRemoved,
    CommentShown,
    LikesCounted,
    LiveEvent,
    Problem,
    VideoRemoved,
)
from backlot_client.event_stream import ServerSentEvent, decode_events
from backlot_client.generated.api.videos import remove_video

from .conftest import MakeClient
from .faults import Faults


def first_comment(client: Backlot, events: Iterator[LiveEvent], video_id: UUID) -> UUID:
    """The first comment that is told from here on, the one that is posted now at the latest."""
    told = next(events)
    client.comment(video_id, "Later")
    shown = (each for each in chain([told], events) if isinstance(each, CommentShown))
    return next(shown).comment.comment_id


def test_a_video_is_followed_to_its_end(client: MakeClient, video_id: UUID) -> None:
    alice, bob = client("alice"), client("bob")
    events = client("bob").follow(video_id)
    first = next(events)
    assert isinstance(first, LikesCounted)
    assert first.likes_count == 0
    bob.like(video_id)
    second = next(events)
    assert isinstance(second, LikesCounted)
    assert second.likes_count == 1
    # What other readers of lines take for an end of a line.
    comment = bob.comment(video_id, "Two\u2028lines\x85of rain")
    shown = next(each for each in events if isinstance(each, CommentShown))
    assert (shown.kind, shown.comment.content) == ("comment", "Two\u2028lines\x85of rain")
    bob.delete_comment(comment.comment_id)
    removed = next(each for each in events if isinstance(each, CommentRemoved))
    assert removed.comment_id == comment.comment_id
    remove_video.sync(video_id, client=alice.api)
    assert isinstance(list(events)[-1], VideoRemoved)
    with pytest.raises(Problem) as caught:
        next(bob.follow(video_id))
    assert caught.value.type == "not-found"


def test_what_happened_while_the_connection_was_broken_is_told(
    client: MakeClient, video_id: UUID, faults: Faults, slept: list[float]
) -> None:
    bob = client("bob", transport=faults)
    faults.break_stream_after = 1
    events = bob.follow(video_id)
    first = next(events)
    # Not read yet: it breaks off behind the first event.
    comment = client("alice").comment(video_id, "Missed")
    assert first_comment(client("alice"), events, video_id) == comment.comment_id
    before, after = faults.sent_to("GET", "/events")
    assert "Last-Event-ID" not in before.headers
    assert after.headers["Last-Event-ID"] == first.id
    assert len(slept) == 1


def test_one_who_comes_back_begins_where_it_was(client: MakeClient, video_id: UUID) -> None:
    bob = client("bob")
    bob.like(video_id)
    position = bob.position
    comment = bob.comment(video_id, "Missed")
    events = bob.follow(video_id, after=position)
    assert first_comment(bob, events, video_id) == comment.comment_id


def test_a_video_that_never_was_is_not_followed(client: MakeClient) -> None:
    with pytest.raises(Problem) as caught:
        next(client("bob").follow(uuid4()))
    assert caught.value.type == "not-found"


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_streams_are_read_however_they_are_cut(size: int) -> None:
    text = (
        ": hello\n\nid: 1\nevent: a\ndata: one\ndata: two\n\nid: 2\n\r\n"
        "event: b\rdata:ä\u2028ö\r\rid: 3\r\nunknown\r\ndata: x\r\n\r\ndata: cut off"
    )
    told = text.encode()
    chunks = [told[at : at + size] for at in range(0, len(told), size)]
    assert list(decode_events(chunks)) == [
        ServerSentEvent("a", "one\ntwo", "1"),
        ServerSentEvent("message", "", "2"),
        ServerSentEvent("b", "ä\u2028ö", "2"),
        ServerSentEvent("message", "x", "3"),
    ]
