"""The client for event loops: what the other one has, under the same names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Self, Unpack
from uuid import UUID

import httpx

from backlot_client.async_session import AsyncRetries, AsyncSession, AsyncToken, AsyncTokens, Sleep
from backlot_client.async_uploads import AsyncUpload
from backlot_client.client import CONNECT_SECONDS, ITEMS_AT_ONCE, READ_SECONDS
from backlot_client.event_stream import EventDecoder, ServerSentEvent
from backlot_client.generated import AuthenticatedClient
from backlot_client.generated.api.analytics import get_video_stats
from backlot_client.generated.api.comments import (
    delete_comment,
    edit_comment,
    list_comments,
    post_comment,
)
from backlot_client.generated.api.likes import like_video, unlike_video
from backlot_client.generated.api.uploads import start_upload
from backlot_client.generated.api.videos import get_video, list_liked_videos, list_videos
from backlot_client.generated.models import (
    Comment,
    CommentPage,
    LikeState,
    NewComment,
    UploadCompleted,
    Video,
    VideoPage,
    VideoStats,
    WriteComment,
)
from backlot_client.generated.types import UNSET, Unset
from backlot_client.live import LiveEvent, VideoRemoved, live_event, stream_request
from backlot_client.pages import all_items_async
from backlot_client.problem import answered
from backlot_client.published import (
    LONGEST_WAIT_SECONDS,
    PublishedPage,
    published_pages_async,
)
from backlot_client.retries import UNANSWERED, RetryPolicy
from backlot_client.session import Positions
from backlot_client.uploads import Details, OnProgress, new_upload


class AsyncBacklot:
    """Calls Backlot for one caller from one event loop.

    Methods, tokens, repeats, keys and positions are those of Backlot; a function that returns a
    token is awaited. Calls that have no method here are made by the generated functions
    (`asyncio`, `asyncio_detailed`), with `api` as their client.
    """

    def __init__(
        self,
        url: str,
        token: AsyncToken = None,
        *,
        position: str | None = None,
        retries: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._policy = retries or RetryPolicy()
        self._positions = Positions(position)
        self._sleep = sleep
        sender = transport or httpx.AsyncHTTPTransport()
        carrying = AsyncRetries(sender, self._policy, sleep)
        session = AsyncSession(carrying, AsyncTokens(token), self._positions)
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx.AsyncClient(base_url=url, transport=session, timeout=timeout)
        # URLs of parts carry their own permission, and may be those of somebody else's server.
        self._parts = httpx.AsyncClient(transport=sender, timeout=timeout)
        self.api = AuthenticatedClient(url, token="").set_async_httpx_client(self._http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()
        await self._parts.aclose()

    @property
    def position(self) -> str | None:
        """The position that includes all commands of this client; queries wait for it."""
        return self._positions.position

    @position.setter
    def position(self, position: str | None) -> None:
        self._positions.set(position)

    async def like(self, video_id: UUID) -> LikeState:
        """Like a video; again changes nothing."""
        return answered(await like_video.asyncio_detailed(video_id, client=self.api))

    async def unlike(self, video_id: UUID) -> LikeState:
        """Take a like back; again changes nothing."""
        return answered(await unlike_video.asyncio_detailed(video_id, client=self.api))

    async def comment(
        self,
        video_id: UUID,
        content: str,
        *,
        parent_id: UUID | None = None,
        idempotency_key: str | None = None,
    ) -> Comment:
        """Post a comment, or a reply to the one with `parent_id`, as Backlot.comment does."""
        key = UNSET if idempotency_key is None else idempotency_key
        body = NewComment(content, UNSET if parent_id is None else parent_id)
        return answered(
            await post_comment.asyncio_detailed(
                video_id, client=self.api, body=body, idempotency_key=key
            )
        )

    async def edit_comment(self, comment_id: UUID, content: str) -> Comment:
        """Replace the text of a comment."""
        body = WriteComment(content)
        return answered(await edit_comment.asyncio_detailed(comment_id, client=self.api, body=body))

    async def delete_comment(self, comment_id: UUID, *, reason: str | None = None) -> None:
        """Delete or remove a comment, as Backlot.delete_comment does."""
        why = UNSET if reason is None else reason
        answered(await delete_comment.asyncio_detailed(comment_id, client=self.api, reason=why))

    async def video(self, video_id: UUID) -> Video:
        """Return a video with its counts."""
        video: Video = answered(await get_video.asyncio_detailed(video_id, client=self.api))
        return video

    async def stats(self, video_id: UUID) -> VideoStats:
        """Return what happened on a video, with all that this client did."""
        stats: VideoStats = answered(
            await get_video_stats.asyncio_detailed(video_id, client=self.api)
        )
        return stats

    def videos(
        self,
        *,
        owner: str | None = None,
        category: str | None = None,
        page_size: int = ITEMS_AT_ONCE,
    ) -> AsyncGenerator[Video, None]:
        """Return videos, newest first."""

        async def page(cursor: str | Unset) -> VideoPage:
            found: VideoPage = answered(
                await list_videos.asyncio_detailed(
                    client=self.api,
                    cursor=cursor,
                    limit=page_size,
                    owner=owner or UNSET,
                    category=category or UNSET,
                )
            )
            return found

        return all_items_async(page)

    def liked_videos(self, *, page_size: int = ITEMS_AT_ONCE) -> AsyncGenerator[Video, None]:
        """Return what the caller likes, the newest like first."""

        async def page(cursor: str | Unset) -> VideoPage:
            found: VideoPage = answered(
                await list_liked_videos.asyncio_detailed(
                    client=self.api, cursor=cursor, limit=page_size
                )
            )
            return found

        return all_items_async(page)

    def comments(
        self, video_id: UUID, *, lang: str | None = None, page_size: int = ITEMS_AT_ONCE
    ) -> AsyncGenerator[Comment, None]:
        """Return comments, newest first, with translations into a language."""

        async def page(cursor: str | Unset) -> CommentPage:
            found: CommentPage = answered(
                await list_comments.asyncio_detailed(
                    video_id, client=self.api, cursor=cursor, limit=page_size, lang=lang or UNSET
                )
            )
            return found

        return all_items_async(page)

    def published(
        self,
        *,
        after: str | None = None,
        topics: Sequence[str] = (),
        limit: int = 1000,
        wait: int = LONGEST_WAIT_SECONDS,
    ) -> AsyncGenerator[PublishedPage, None]:
        """Return what is published behind a position, as Backlot.published does."""
        return published_pages_async(self.api, after, topics, limit, wait)

    async def start_upload(
        self,
        path: Path,
        title: str,
        *,
        content_type: str | None = None,
        idempotency_key: str | None = None,
        **details: Unpack[Details],
    ) -> AsyncUpload:
        """Begin an upload; without a content type, it is guessed by the name of the file."""
        body = await asyncio.to_thread(new_upload, path, title, content_type, details)
        key = UNSET if idempotency_key is None else idempotency_key
        begun = answered(
            await start_upload.asyncio_detailed(client=self.api, body=body, idempotency_key=key)
        )
        return self.resume_upload(path, begun.upload_id)

    def resume_upload(self, path: Path, upload_id: UUID) -> AsyncUpload:
        """Return an upload that was begun before, to run it again."""
        return AsyncUpload(self.api, self._parts, self._policy, self._sleep, path, upload_id)

    async def upload(
        self,
        path: Path,
        title: str,
        *,
        content_type: str | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
        **details: Unpack[Details],
    ) -> UploadCompleted:
        """Upload a file; see `start_upload` for one that may be interrupted."""
        begun = await self.start_upload(path, title, content_type=content_type, **details)
        return await begun.run(parallel=parallel, on_progress=on_progress)

    async def follow(
        self, video_id: UUID, *, after: str | None = None
    ) -> AsyncGenerator[LiveEvent, None]:
        """Return what happens around a video, until it is removed, as Backlot.follow does."""
        in_vain = 0
        while True:
            async with aclosing(self._stream(video_id, after)) as stream:
                async for each in stream:
                    after, in_vain = each.id or after, 0
                    event = live_event(each)
                    if event is not None:
                        yield event
                    if isinstance(event, VideoRemoved):
                        return
            await self._sleep(self._policy.pause(in_vain))
            in_vain += 1

    async def _stream(
        self, video_id: UUID, after: str | None
    ) -> AsyncGenerator[ServerSentEvent, None]:
        """Return the events of one connection, however it ends; raise where there is none."""
        request = stream_request(self._http, video_id, after)
        response = await self._http.send(request, stream=True)
        decoder = EventDecoder()
        try:
            async for chunk in response.aiter_bytes():
                for event in decoder.decode(chunk):
                    yield event
        except UNANSWERED:
            return
        finally:
            await response.aclose()
