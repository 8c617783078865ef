"""The client for event loops: the same carried, and the same repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
from backlot_client import AsyncBacklot, CommentShown, LikesCounted
from backlot_client.generated.api.comments import list_comments, post_comment
from backlot_client.generated.api.likes import like_video
from backlot_client.generated.models import Comment, CommentPage, LikeState, NewComment


class LosesAnswers(httpx.AsyncBaseTransport):
    """A real connection that loses the answer of the first POST, and breaks the first stream."""

    def __init__(self) -> None:
        self._real = httpx.AsyncHTTPTransport()
        self.posts: list[str] = []
        self.streams: list[str | None] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "Backlot-Timeout-Ms" in request.headers:
            # However busy the machine is.
            request.headers["Backlot-Timeout-Ms"] = "30000"
        response = await self._real.handle_async_request(request)
        if request.method == "POST":
            self.posts.append(request.headers["Idempotency-Key"])
            if len(self.posts) == 1:
                await response.aread()
                await response.aclose()
                raise httpx.ReadError("connection reset", request=request)
        if request.headers["Accept"] == "text/event-stream":
            self.streams.append(request.headers.get("Last-Event-ID"))
            if len(self.streams) == 1:
                assert isinstance(response.stream, httpx.AsyncByteStream)
                response.stream = Breaking(response.stream)
        return response

    async def aclose(self) -> None:
        await self._real.aclose()


class Breaking(httpx.AsyncByteStream):
    """A stream that breaks off behind its first event, in the middle of the next line."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk
            if b"data: " in chunk:
                yield b"event: comm"
                raise httpx.ReadError("connection reset")

    async def aclose(self) -> None:
        await self._stream.aclose()


def test_calls_are_repeated_with_a_new_token_and_read_back(
    url: str, tokens: dict[str, str], video_id: UUID
) -> None:
    given = iter([tokens["expired"], tokens["bob"]])
    slept: list[float] = []

    async def token() -> str:
        return next(given)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario() -> None:
        lossy = LosesAnswers()
        async with AsyncBacklot(url, token, transport=lossy, sleep=sleep) as bob:
            liked = await like_video.asyncio(video_id, client=bob.api)
            assert isinstance(liked, LikeState)
            assert liked.likes_count == 1
            assert bob.position is not None
            body = NewComment("Once")
            posted = await post_comment.asyncio(video_id, client=bob.api, body=body)
            assert isinstance(posted, Comment)
            assert len(slept) == 1
            assert len(lossy.posts) == 2
            assert len(set(lossy.posts)) == 1
            page = await list_comments.asyncio(video_id, client=bob.api)
            assert isinstance(page, CommentPage)
            assert [each.comment_id for each in page.items] == [posted.comment_id]

    asyncio.run(scenario())


def test_a_video_is_followed_beyond_a_broken_connection(
    url: str, tokens: dict[str, str], video_id: UUID
) -> None:
    async def at_once(_: float) -> None:
        """Do not wait."""

    async def scenario() -> None:
        lossy = LosesAnswers()
        async with AsyncBacklot(url, tokens["bob"], transport=lossy, sleep=at_once) as bob:
            events = bob.follow(video_id)
            first = await anext(events)
            assert isinstance(first, LikesCounted)
            body = NewComment("Missed")
            await post_comment.asyncio(video_id, client=bob.api, body=body)
            told = [await anext(events)]
            body = NewComment("Later")
            await post_comment.asyncio(video_id, client=bob.api, body=body)
            while not isinstance(told[-1], CommentShown):
                told.append(await anext(events))
            assert told[-1].comment.content == "Missed"
            assert lossy.streams == [None, first.id]
            await events.aclose()

    asyncio.run(scenario())
