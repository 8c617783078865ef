"""The client for event loops: the generated calls and live events, carried as by the other one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Self
from uuid import UUID

import httpx

from backlot_client.client import CONNECT_SECONDS, READ_SECONDS
from backlot_client.event_stream import EventDecoder, ServerSentEvent
from backlot_client.generated import AuthenticatedClient
from backlot_client.live import LiveEvent, VideoRemoved, live_event, stream_request
from backlot_client.retries import EVENT_STREAM, UNANSWERED, Attempts, RetryPolicy
from backlot_client.session import Positions, accept, authorize, complete

AsyncToken = str | Callable[[], Awaitable[str]] | None
Sleep = Callable[[float], Awaitable[None]]


class AsyncBacklot:
    """Calls Backlot for one caller from one event loop.

    Calls are those of the generated functions (`asyncio`, `asyncio_detailed`), with `api` as their
    client. Tokens, repeats, keys and positions are those of Backlot; a function that returns a
    token is awaited.
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
        sender = AsyncRetries(transport or httpx.AsyncHTTPTransport(), self._policy, sleep)
        session = AsyncSession(sender, AsyncTokens(token), self._positions)
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx.AsyncClient(base_url=url, transport=session, timeout=timeout)
        self.api = AuthenticatedClient(url, token="").set_async_httpx_client(self._http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @property
    def position(self) -> str | None:
        """The position that includes all commands of this client; queries wait for it."""
        return self._positions.position

    @position.setter
    def position(self, position: str | None) -> None:
        self._positions.set(position)

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


class AsyncTokens:
    """The token of a caller, and a new one when it is refused."""

    def __init__(self, source: AsyncToken) -> None:
        self._source = source
        self._token = source if isinstance(source, str) else None
        self._lock = asyncio.Lock()

    async def after(self, refused: str | None) -> str | None:
        """Return a token instead of a refused one; it is asked for once, however many ask."""
        async with self._lock:
            if callable(self._source) and self._token == refused:
                self._token = await self._source()
            return self._token


class AsyncSession(httpx.AsyncBaseTransport):
    """What Session is, for event loops."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport, tokens: AsyncTokens, positions: Positions
    ) -> None:
        self._transport = transport
        self._tokens = tokens
        self._positions = positions

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer; raise Problem for one that is none."""
        complete(request, self._positions.position)
        token = await self._tokens.after(None)
        response = await self._send(request, token)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            renewed = await self._tokens.after(token)
            if renewed != token:
                response = await self._send(request, renewed)
        return accept(request, response, self._positions)

    async def _send(self, request: httpx.Request, token: str | None) -> httpx.Response:
        authorize(request, token)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


class AsyncRetries(httpx.AsyncBaseTransport):
    """What Retries is, for event loops."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport, policy: RetryPolicy, sleep: Sleep
    ) -> None:
        self._transport = transport
        self._policy = policy
        self._sleep = sleep

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer; raise what the last attempt failed with."""
        await request.aread()
        attempts = Attempts(self._policy)
        while True:
            try:
                response = await self._attempt(request)
            except UNANSWERED:
                pause = attempts.pause()
                if pause is None:
                    raise
            else:
                pause = attempts.pause_after(response)
                if pause is None:
                    return response
            await self._sleep(pause)

    async def _attempt(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        response.request = request
        if response.is_error or request.headers.get("Accept") != EVENT_STREAM:
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
