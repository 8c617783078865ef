"""What happens around a video, as it happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import httpx

from backlot_client.event_stream import ServerSentEvent, decode_events
from backlot_client.generated.models import Comment
from backlot_client.retries import EVENT_STREAM, UNANSWERED, RetryPolicy

# A comment line comes every 15 seconds: without it, the connection is dead.
SILENCE_SECONDS = 45.0


@dataclass(frozen=True)
class LikesCounted:
    """How many like the video: at first, and whenever the number has changed."""

    id: str
    likes_count: int


@dataclass(frozen=True)
class CommentShown:
    """A comment that everybody sees from now on, or that is another one than before.

    Put it in the place of the one with its id, and add it where there is none.
    """

    id: str
    kind: Literal["comment", "comment-edited", "comment-translated"]
    comment: Comment


@dataclass(frozen=True)
class CommentRemoved:
    """A comment that not everybody sees any more."""

    id: str
    comment_id: UUID


@dataclass(frozen=True)
class Reset:
    """More has happened than is told: read the comments again."""

    id: str


@dataclass(frozen=True)
class VideoRemoved:
    """The video is gone, or not for this viewer any more; nothing follows."""

    id: str


LiveEvent = LikesCounted | CommentShown | CommentRemoved | Reset | VideoRemoved


def follow_video(
    http: httpx.Client, policy: RetryPolicy, video_id: UUID, after: str | None
) -> Iterator[LiveEvent]:
    """Return events until the video is removed; connect again wherever a stream ends before.

    Raise Problem, or httpx.TransportError, once a connection was refused as long as the policy
    has patience.
    """
    in_vain = 0
    while True:
        with closing(_stream(http, video_id, after)) as stream:
            for each in stream:
                after, in_vain = each.id or after, 0
                event = live_event(each)
                if event is not None:
                    yield event
                if isinstance(event, VideoRemoved):
                    return
        policy.sleep(policy.pause(in_vain))
        in_vain += 1


def stream_request(
    http: httpx.Client | httpx.AsyncClient, video_id: UUID, after: str | None
) -> httpx.Request:
    """Return the request of a video's live events behind one of them."""
    headers = {"Accept": EVENT_STREAM}
    if after is not None:
        headers["Last-Event-ID"] = after
    timeout = httpx.Timeout(http.timeout.connect, read=SILENCE_SECONDS)
    return http.build_request("GET", f"/videos/{video_id}/events", headers=headers, timeout=timeout)


def _stream(
    http: httpx.Client, video_id: UUID, after: str | None
) -> Generator[ServerSentEvent, None, None]:
    """Return the events of one connection, however it ends; raise where there is none."""
    request = stream_request(http, video_id, after)
    with closing(http.send(request, stream=True)) as stream:
        try:
            yield from decode_events(stream.iter_bytes())
        except UNANSWERED:
            return


def _comment_shown(kind: Literal["comment", "comment-edited", "comment-translated"]) -> Maker:
    return lambda id_, data: CommentShown(id_, kind, Comment.from_dict(data))


Maker = Callable[[str, dict[str, Any]], LiveEvent]
MAKERS: dict[str, Maker] = {
    "likes": lambda id_, data: LikesCounted(id_, data["likesCount"]),
    "comment": _comment_shown("comment"),
    "comment-edited": _comment_shown("comment-edited"),
    "comment-translated": _comment_shown("comment-translated"),
    "comment-removed": lambda id_, data: CommentRemoved(id_, UUID(data["commentId"])),
    "reset": lambda id_, _: Reset(id_),
    "removed": lambda id_, _: VideoRemoved(id_),
}


def live_event(told: ServerSentEvent) -> LiveEvent | None:
    """Return what was told; None for what this release does not know."""
    make = MAKERS.get(told.kind)
    return make(told.id, json.loads(told.data)) if make and told.data else None
