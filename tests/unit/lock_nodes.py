"""Redis nodes inside the process that are down, slow, silent or hold what a test put there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fakeredis import FakeServer
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from infra.redis import embedded_redis
from infra.redlock import Redlock
from tests.support import DEADLINE_SECONDS

KEY = "test:thing:1"

R = TypeVar("R", bound=Redis)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Nodes:
    """Redis servers inside the process, some of them down."""

    def __init__(self, count: int) -> None:
        self.servers = [FakeServer() for _ in range(count)]
        self._open: list[Redis] = []

    def clients(self) -> list[Redis]:
        clients = [embedded_redis(server) for server in self.servers]
        self._open += clients
        return clients

    def clients_of(self, kind: type[R]) -> list[R]:
        return [kind(connection_pool=client.connection_pool) for client in self.clients()]

    def redlock(self, **changes: Any) -> Redlock:
        return Redlock(
            self.clients(), **{"node_timeout": DEADLINE_SECONDS, "retry_delay": 0.01, **changes}
        )

    def down(self, *numbers: int) -> None:
        for number, server in enumerate(self.servers):
            server.connected = number not in numbers

    async def tokens(self) -> list[Any]:
        """What each node holds, as bytes, or None."""
        return [await client.get(KEY) for client in self.clients()]

    async def remaining(self) -> list[int]:
        return [await client.pttl(KEY) for client in self.clients()]

    async def put(self, *tokens: str | None) -> None:
        """What the nodes hold, in their order."""
        for client, token in zip(self.clients(), tokens, strict=True):
            await (client.set(KEY, token) if token else client.delete(KEY))

    async def aclose(self) -> None:
        for client in self._open:
            await client.aclose()


@asynccontextmanager
async def nodes_of(count: int) -> AsyncIterator[Nodes]:
    nodes = Nodes(count)
    try:
        yield nodes
    finally:
        await nodes.aclose()


class Slow(Redis):
    """Moves a clock while it is asked."""

    clock: Clock
    seconds = 0.0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self.clock.now += self.seconds
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


class Hanging(Redis):
    """Does not answer until its `end`; `asked` counts the attempts to set a key."""

    asked = 0
    end: asyncio.Event

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self.asked += args[0] == "SET"
        await self.end.wait()
        raise RedisConnectionError("It hung.")


class Gate(Redis):
    """Carries commands out, and keeps their answers back until it is opened."""

    opened: asyncio.Event
    asked: asyncio.Event

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        self.asked.set()
        await self.opened.wait()
        return answer
