"""What every request from an event loop carries, and how it is repeated: as from a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx

from backlot_client.retries import EVENT_STREAM, UNANSWERED, Attempts, RetryPolicy, is_busy
from backlot_client.session import Positions, accept, authorize, complete

AsyncToken = str | Callable[[], Awaitable[str]] | None
Sleep = Callable[[float], Awaitable[None]]


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
                pause = attempts.pause_after(response) if is_busy(response) else None
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
