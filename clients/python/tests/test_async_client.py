"""The client for event loops: the same carried, and the same repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from backlot_client import AsyncBacklot, CommentShown, LikesCounted, Problem, Progress, RetryPolicy
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


class CutsOff(httpx.AsyncBaseTransport):
    """A real connection that takes so many parts, and loses the answer of the last of these."""

    def __init__(self, most: int = 100) -> None:
        self._real = httpx.AsyncHTTPTransport()
        self._most = most
        self.sent: list[httpx.Request] = []

    def count(self, method: str, path: str) -> int:
        """How many requests of a method there were to paths with that in them."""
        return sum(each.method == method and path in each.url.path for each in self.sent)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        is_part = request.method == "PUT" and "/objects/" in request.url.path
        parts = self.count("PUT", "/objects/")
        if is_part and parts > self._most:
            raise httpx.ConnectError("network unreachable", request=request)
        response = await self._real.handle_async_request(request)
        if is_part and parts == self._most:
            await response.aread()
            await response.aclose()
            raise httpx.ReadError("connection reset", request=request)
        return response

    async def aclose(self) -> None:
        await self._real.aclose()


async def at_once(_: float) -> None:
    """Do not wait."""


def test_an_upload_that_was_cut_off_is_resumed(
    url: str, tokens: dict[str, str], film: Path
) -> None:
    async def scenario() -> None:
        cut, whole, told = CutsOff(3), CutsOff(), list[Progress]()
        never = RetryPolicy(repeats=0)
        async with AsyncBacklot(url, tokens["alice"], transport=cut, retries=never) as alice:
            begun = await alice.start_upload(film, "Rain", visibility="unlisted")
            with pytest.raises(httpx.TransportError):
                await begun.run(parallel=1, on_progress=told.append)
        assert [(each.parts, each.part_count) for each in told] == [(1, 5), (2, 5)]
        async with AsyncBacklot(url, tokens["alice"], transport=whole, sleep=at_once) as alice:
            resumed = alice.resume_upload(film, begun.upload_id)
            done = await resumed.run(parallel=3)
            assert whole.count("PUT", "/objects/") == 2
            assert (await resumed.run()).video_id == done.video_id
            video = await alice.video(done.video_id)
            assert (video.title, video.visibility) == ("Rain", "unlisted")
        assert not any(
            "Authorization" in each.headers for each in whole.sent if "/objects/" in each.url.path
        )

    asyncio.run(scenario())


def test_a_part_that_breaks_is_sent_again_with_a_fresh_url(
    url: str, tokens: dict[str, str], film: Path
) -> None:
    async def scenario() -> None:
        breaks = CutsOff(5)
        async with AsyncBacklot(url, tokens["alice"], transport=breaks, sleep=at_once) as alice:
            with pytest.raises(httpx.ConnectError):
                await alice.upload(film, "Rain")
            # Five attempts more, each with a URL of its own.
            assert breaks.count("PUT", "/objects/") == 5 + 5
            assert breaks.count("POST", "/part-urls") == 1 + 5

    asyncio.run(scenario())


def test_lists_are_read_page_by_page(url: str, tokens: dict[str, str], video_id: UUID) -> None:
    async def scenario() -> None:
        sent = CutsOff()
        async with AsyncBacklot(url, tokens["bob"], transport=sent) as bob:
            for number in range(5):
                await bob.comment(video_id, f"Number {number}")
            await bob.like(video_id)
            async with aclosing(bob.comments(video_id, page_size=2)) as comments:
                assert sent.count("GET", "/comments") == 0
                assert (await anext(comments)).content == "Number 4"
                assert sent.count("GET", "/comments") == 1
                rest = [each async for each in comments]
            assert [each.content for each in rest] == [f"Number {n}" for n in (3, 2, 1, 0)]
            assert sent.count("GET", "/comments") == 3
            async with aclosing(bob.liked_videos(page_size=1)) as liked:
                assert (await anext(liked)).video_id == video_id
            async with aclosing(bob.videos(owner="alice", page_size=1)) as videos:
                assert (await anext(videos)).video_id == video_id
            edited = await bob.edit_comment(rest[0].comment_id, "Edited")
            assert edited.edited
            await bob.delete_comment(rest[0].comment_id)
            assert (await bob.unlike(video_id)).likes_count == 0
            with pytest.raises(Problem) as caught:
                await bob.edit_comment(rest[0].comment_id, "Once more")
            assert (caught.value.status, caught.value.type) == (404, "not-found")

    asyncio.run(scenario())


def test_services_read_what_is_published(url: str, tokens: dict[str, str], video_id: UUID) -> None:
    async def scenario() -> None:
        async with AsyncBacklot(url, tokens["bob"]) as bob:
            await bob.like(video_id)
        async with AsyncBacklot(url, tokens["service"]) as service:
            pages = [page async for page in service.published(topics=["video.liked"], wait=0)]
        liked = [event for page in pages for event in page.events]
        assert str(video_id) in {str(event.data["videoId"]) for event in liked}

    asyncio.run(scenario())


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
