"""Single flight: what several callers in this process want at once is done once, for all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Landed(NamedTuple, Generic[T]):
    """A result, and whether another caller had it made."""

    result: T
    shared: bool


class Flights(Generic[T]):
    """Work by key; to be used from one event loop."""

    def __init__(self) -> None:
        self._flying: dict[str, asyncio.Future[Landed[T] | None]] = {}

    async def join(self, key: str, work: Callable[[], Awaitable[T]]) -> Landed[T]:
        """The result of `work`, or of what an earlier caller with this key is waiting for.

        Its failure is shared too: callers that all tried again at once would only repeat it. When
        the earlier caller is cancelled one of the others begins anew.
        """
        while (flying := self._flying.get(key)) is not None:
            # Shielded: a caller that goes away must not take the others' result along.
            landed = await asyncio.shield(flying)
            if landed is not None:
                return landed
        return await self._lead(key, work)

    async def _lead(self, key: str, work: Callable[[], Awaitable[T]]) -> Landed[T]:
        flying: asyncio.Future[Landed[T] | None] = asyncio.get_running_loop().create_future()
        self._flying[key] = flying
        try:
            result = await work()
        except Exception as error:
            flying.set_exception(error)
            # It is raised here anyway; asyncio must not complain when nobody else waits for it.
            flying.exception()
            raise
        else:
            flying.set_result(Landed(result, shared=True))
            return Landed(result, shared=False)
        finally:
            del self._flying[key]
            if not flying.done():
                flying.set_result(None)
