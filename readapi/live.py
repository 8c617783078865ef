"""What happens around a video while somebody watches it: likes and comments, as they come.

Pages follow by server-sent events, until their video is removed. A notification wakes what tells
them: however many watch, it asks the log once and the comments once, and where nothing happens it
asks nothing. Who comes back with `Last-Event-ID` is told of the comments in between, as far back
as that is known.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated, Any
from uuid import UUID

import orjson
import structlog
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from psycopg import Error
from psycopg_pool import PoolTimeout
from starlette.types import Receive, Scope, Send

from domain.upload import VideoViewer
from engine.checkpoints import Pool, ReadModelBehind, Waiting
from engine.subscription import woken
from engine.tail import LogTail
from infra.cancellation import cancel
from infra.errors import describe
from infra.http.auth import MaybeCaller
from infra.http.openapi import TOKEN_OPTIONAL, sends
from infra.http.problems import Problem, problems
from infra.http.requests import client_address, subscriber
from infra.http.shapes import Position, decode_position, encode_position
from infra.http.tickets import MAX_TICKET_LENGTH, holder_of
from infra.metrics import gauge
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes
from readapi.comment_cache import CommentCache, ToldComment
from readapi.comment_changes import (
    COUNTED,
    MOST_NEWS_FIRST,
    REMOVED,
    ChangesByVideo,
    CommentChange,
    CommentChanges,
)
from readapi.queries import MAX_TOKEN_LENGTH, Fresh, Read, viewer_of
from readapi.stream_slots import MAX_WATCHERS, LiveLimits, StreamSlots
from readapi.video_cache import LoadedVideo, VideoCache

log = structlog.get_logger(__name__)

# Between two looks at what has happened: of likes a client is told the newest number then.
COALESCE_SECONDS = 0.3
# Where a notification was lost.
POLL_SECONDS = 10.0
# For read models that are on their way; likes are told meanwhile.
WAIT_SECONDS = 1.0
# So that proxies and clients know a silent connection from a dead one.
HEARTBEAT_SECONDS = 15.0
RETRY_MS = 2_000
MOST_COMMENTS = 100
"""Of one video at once, and for one client that is slow: where there are more, it reads again."""

LIVE_WATCHERS = gauge(
    "backlot_live_watchers", "Clients that follow a video's likes and comments as they change."
)


@dataclass(eq=False)
class Watch:
    """One client's view of one video: what it is not told yet.

    Its comments were told up to `position`; None stands for the first look. `slots` are the names
    under which the stream is counted.
    """

    video_id: UUID
    viewer: VideoViewer
    slots: tuple[str, ...] = ()
    position: int | None = None
    count: int | None = None
    removed: bool = False
    pending: list[bytes] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def token(self) -> str:
        """The id of an event that is told when all before it were."""
        return encode_position(self.position or 0)

    def begin(self, now: int) -> None:
        """Know the end of the log, before anything is told; it may have lost what was told."""
        if self.position is None:
            self.position = now
        elif self.position > now:
            self.tell([reset(self.video_id, now)], now)

    def see(self, found: LoadedVideo) -> None:
        """Take in how the video stands now."""
        video = found.video
        if video is None or not video.visible_to(self.viewer):
            self.removed = True
            self.changed.set()
        elif video.likes != self.count:
            self.count = video.likes
            self.changed.set()

    def tell(self, pieces: Sequence[bytes], position: int) -> None:
        """Take in what happened to the comments up to a position."""
        self.position = position
        if pieces:
            self.pending.extend(pieces)
            self.changed.set()
        if len(self.pending) > MOST_COMMENTS:
            self.pending = [reset(self.video_id, position)]


class LiveVideos:
    """Tells all who watch of what changes, while anybody watches."""

    def __init__(
        self,
        pool: Pool,
        tail: LogTail,
        cache: VideoCache,
        comments: CommentCache,
        waiting: Waiting,
        wake: asyncio.Event,
        limits: LiveLimits | None = None,
    ) -> None:
        """`pool` leads to the log; `wake` is set whenever something was recorded."""
        self._pool = pool
        self._tail = tail
        self._cache = cache
        self._comments = comments
        self._waiting = waiting
        self._wake = wake
        self._slots = StreamSlots(limits or LiveLimits())
        self._watches: set[Watch] = set()
        self._follower: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    @cached_property
    def _changes(self) -> CommentChanges:
        """What happens to comments, since the first client came: till then nobody keeps it."""
        return CommentChanges(self._pool, self._tail)

    async def close(self) -> None:
        """End every stream; clients come back to whoever serves then."""
        self._closing.set()
        for watch in self._watches:
            watch.changed.set()
        if self._follower is not None:
            await cancel(self._follower)

    def watch(
        self,
        video_id: UUID,
        viewer: VideoViewer,
        address: str = "",
        *,
        position: int | None = None,
    ) -> Watch:
        """Begin to follow a video, its comments behind a position; `leave` has to end it.

        Raise Problem 503 when too many clients do, 429 when the user or the address has as many
        streams as one may.
        """
        if len(self._watches) >= MAX_WATCHERS or self._closing.is_set():
            detail = "Too many clients follow videos here; ask now and then instead."
            raise Problem(503, "unavailable", detail, headers={"Retry-After": "30"})
        watch = Watch(video_id, viewer, self._slots.take(viewer.user_id, address), position)
        self._watches.add(watch)
        LIVE_WATCHERS.set(len(self._watches))
        self._wake.set()
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow())
        return watch

    def leave(self, watch: Watch) -> None:
        """Give the client's place to others; once is enough."""
        if watch not in self._watches:
            return
        self._watches.discard(watch)
        LIVE_WATCHERS.set(len(self._watches))
        self._slots.free(watch.slots)

    async def stream(self, watch: Watch) -> AsyncGenerator[bytes, None]:
        """Yield the events of a client until it goes, or the server stops.

        They end, too, when the video is removed, or private and the client's viewer may not see it.
        """
        told: int | None = None
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            while not self._closing.is_set():
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await watch.changed.wait()
                except TimeoutError:
                    # A block without data is no event, and its id counts all the same.
                    known = "" if watch.position is None else f"id: {watch.token}\n"
                    yield f": still here\n{known}\n".encode()
                    continue
                watch.changed.clear()
                # Of one moment: an id stands for all that comes before it.
                pending, watch.pending = watch.pending, []
                count, token = watch.count, watch.token
                if watch.removed:
                    yield _event("removed", token, {"videoId": watch.video_id})
                    return
                for piece in pending:
                    yield piece
                if count != told and not self._closing.is_set():
                    told = count
                    yield _event("likes", token, {"likesCount": count})
        finally:
            self.leave(watch)

    async def _follow(self) -> None:
        try:
            while self._watches:
                self._wake.clear()
                whole = False
                try:
                    whole = await self._look()
                except (Error, PoolTimeout, Problem) as error:
                    # The clients keep what they know; they are told when the part is back.
                    log.warning("live_videos_interrupted", error=describe(error))
                await asyncio.sleep(COALESCE_SECONDS)
                if whole:
                    await woken(self._wake, POLL_SECONDS)
        finally:
            self._follower = None

    async def _look(self) -> bool:
        """Tell all who watch what is new to them; return whether nothing is left for later."""
        await self._tail.confirm()
        watches = list(self._watches)
        for watch in watches:
            watch.begin(self._tail.position.events)
        videos = await self._videos({watch.video_id for watch in watches})
        there = [watch for watch in watches if watch.video_id in videos]
        for watch in there:
            watch.see(videos[watch.video_id])
        told = await self._tell_comments([watch for watch in there if not watch.removed])
        return told and len(there) == len(watches)

    async def _videos(self, ids: Iterable[UUID]) -> dict[UUID, LoadedVideo]:
        """Return those of the videos of which it is known who sees them, and their likes."""
        found = await self._cache.found(list(ids))
        lacking: dict[str, int] = {}
        for _, behind in found.values():
            for schema in behind.keys() & {Catalog.name, Likes.name}:
                lacking[schema] = max(behind[schema], lacking.get(schema, 0))
        if lacking and await self._come(lacking):
            found = await self._cache.found(list(found))
        return {
            video_id: each
            for video_id, each in found.items()
            if each.behind.keys().isdisjoint((Catalog.name, Likes.name))
        }

    async def _tell_comments(self, watches: Sequence[Watch]) -> bool:
        """Tell what happened to comments since; return False where that is for later."""
        # Whoever is as far as others of the same video is told the same.
        alike = {(watch.position or 0, watch.video_id) for watch in watches}
        positions = {position for position, _ in alike}
        await self._changes.recall(min(positions, default=self._tail.position.events))
        now = self._tail.position.events
        missed = {each: self._changes.since(each) for each in positions}
        news = {(each, video): _news(missed[each], video) for each, video in alike}
        changes = [change for each in news.values() for change in each or ()]
        comments: Mapping[UUID, ToldComment] = {}
        if changes:
            found = await self._found(changes)
            if found is None:
                return False
            comments = found
        pieces = {
            key: [reset(key[1], now)] if each is None else _pieces(each, comments, now)
            for key, each in news.items()
        }
        for watch in watches:
            watch.tell(pieces[watch.position or 0, watch.video_id], now)
        return True

    async def _found(self, changes: Sequence[CommentChange]) -> dict[UUID, ToldComment] | None:
        """Return those of the comments that everybody sees; None where that is not known yet."""
        ids = list({change.comment_id for change in changes})
        wanted = max(change.position for change in changes)
        found, reached = await self._comments.found(ids)
        if reached < wanted and await self._come({Comments.name: wanted}):
            found, reached = await self._comments.found(ids)
        return found if reached >= wanted else None

    async def _come(self, wanted: Mapping[str, int]) -> bool:
        """Return whether these read models have come to their positions, soon at least."""
        positions = {schema: Position(position) for schema, position in wanted.items()}
        try:
            return await self._waiting.until(positions, WAIT_SECONDS) is None
        except ReadModelBehind:
            return False


def _news(missed: ChangesByVideo | None, video_id: UUID) -> Sequence[CommentChange] | None:
    """Return what is to be told of a video; None where that is unknown, or too much."""
    if missed is None:
        return None
    changes = missed.get(video_id, ())
    return None if len({each.comment_id for each in changes}) > MOST_COMMENTS else changes


def _pieces(
    changes: Sequence[CommentChange], comments: Mapping[UUID, ToldComment], position: int
) -> list[bytes]:
    """Return the events of a stretch that ends at a position: one for each comment, as it is now.

    They come in the order in which the comments changed first. The last one's id is the end of the
    stretch; whoever has fewer begins behind the first change of the last comment that it has.
    """
    first: dict[UUID, int] = {}
    kinds: defaultdict[UUID, set[str]] = defaultdict(set)
    for change in changes:
        first.setdefault(change.comment_id, change.position)
        kinds[change.comment_id].add(change.kind)
    if first:
        first[next(reversed(first))] = position
    return [
        b"id: %b\n%b" % (encode_position(at).encode(), piece)
        for each, at in first.items()
        if (piece := _piece(kinds[each], each, comments.get(each)))
    ]


def _piece(kinds: set[str], comment_id: UUID, comment: ToldComment | None) -> bytes:
    """Return what is told of a comment; nothing of counts that nobody sees."""
    kind = next((each for each in MOST_NEWS_FIRST if each in kinds), REMOVED)
    if comment is None and kinds == {COUNTED}:
        return b""
    if comment is None or kind == REMOVED:
        kind, told = REMOVED, orjson.dumps({"commentId": comment_id})
    elif kind == COUNTED:
        told = comment.counts()
    else:
        told = comment.told()
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), told)


def reset(video_id: UUID, position: int) -> bytes:
    """Return the event that says to read the comments again."""
    return _event("reset", encode_position(position), {"videoId": video_id})


def _event(kind: str, token: str, data: Mapping[str, object]) -> bytes:
    told = orjson.dumps(data)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (token.encode(), kind.encode(), told)


STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """Server-sent events of one client, whose place is free however the answer ends.

    That is also after a HEAD, and where the client was gone before the first event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], leave: Callable[[], None]) -> None:
        """`leave` gives the client's place to others."""
        self._events, self._leave = events, leave
        super().__init__(events, headers=STREAMED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            self._leave()


EXAMPLE = """retry: 2000

id: YmFja2xvdDo3
event: likes
data: {"likesCount":5}

id: YmFja2xvdDo5
event: comment-removed
data: {"commentId":"0d6c9f5e-6a51-4f8e-9b5a-5f0a86f0c0de"}

"""
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events. `likes`: how many like the video, in `likesCount`; at "
        "once, then whenever that changes. `comment`: one that everybody sees from now on, posted, "
        "approved or restored; `reply`: the same of a reply to one; `comment-edited`; "
        "`comment-translated`: what is known of its language and translation is new. Their data "
        "are the `Comment` as `GET /videos/{video_id}/comments` shows it to everybody. "
        "`comment-counts`: likes and replies of one, `likeCount` and `replyCount`, by its "
        "`commentId`. `comment-removed`: one that not everybody sees any more, and no reply to it, "
        "by its `commentId`. `reset`: more has happened than is told; "
        "read the comments again. `removed`, the last one: the video is, or is private by now. "
        "The `id` of an event is a `Backlot-Position`.",
        "headers": sends("X-Accel-Buffering"),
        "content": {
            "text/event-stream": {"schema": {"type": "string"}, "example": EXAMPLE},
        },
    },
    **problems(401, 404, 422, 429, 503),
}
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="The `id` of the last event that the client has, or the `Backlot-Position` of "
        "the comments that it has read: what happened to comments since is told first.",
        max_length=MAX_TOKEN_LENGTH,
    ),
]
After = Annotated[
    str | None,
    Query(
        description="The same, for clients that can't send the header with their first request; "
        "with both, the header counts.",
        max_length=MAX_TOKEN_LENGTH,
    ),
]
TicketOf = Annotated[
    str | None,
    Query(
        description="Stands for a token where none can be sent: of `POST "
        "/videos/{video_id}/events/ticket`.",
        min_length=1,
        max_length=MAX_TICKET_LENGTH,
    ),
]

router = APIRouter(tags=["videos"])


@router.get(
    "/videos/{video_id}/events",
    response_class=StreamingResponse,
    responses=EVENT_STREAM,
    openapi_extra=TOKEN_OPTIONAL,
    summary="Follow likes and comments as they change",
)
async def follow_video(
    video_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    last_event_id: LastEventId = None,
    after: After = None,
    ticket: TicketOf = None,
) -> EventStream:
    """An event that is told twice changes nothing more: comments are told as they are then."""
    since = last_event_id or after
    position = decode_position(since).events if since else None
    if caller is None and ticket is not None:
        caller = await holder_of(request, ticket, video_id)
    await queries.require(fresh, video_id, caller)
    live = queries.live
    address = subscriber(client_address(request.scope))
    watch = live.watch(video_id, viewer_of(caller), address, position=position)
    return EventStream(live.stream(watch), partial(live.leave, watch))
