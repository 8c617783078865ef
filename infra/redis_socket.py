"""The Redis inside one process, for the other processes of the same program.

It is reached by a Unix socket in a folder that nobody else may enter, so it asks for no password.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from redis import BlockingConnectionPool as BlockingPool
from redis import Redis as BlockingRedis
from redis import UnixDomainSocketConnection as BlockingSocketConnection
from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection

from infra.redis import blocking_options, embedded_server, options

if TYPE_CHECKING:
    from fakeredis import FakeRedisConnection, FakeServer

SCHEME = "unix://"
# All that all processes may open at once: asyncio takes one too many for connected.
BACKLOG = 4096


def url_of(path: Path) -> str:
    """Return how settings name the socket at `path`."""
    return f"{SCHEME}{path}"


def socket_of(url: str) -> Path | None:
    """Return the socket that a URL names; None for a server's."""
    return Path(url.removeprefix(SCHEME)) if url.startswith(SCHEME) else None


def connect_socket(path: Path) -> Redis:
    """Return a client for one event loop, as `open_redis` does."""
    pool = BlockingConnectionPool(
        connection_class=UnixDomainSocketConnection, path=str(path), **options()
    )
    return Redis.from_pool(pool)


def connect_blocking_socket(path: Path) -> BlockingRedis:
    """Return the same client for threads."""
    pool = BlockingPool(  # type: ignore[no-untyped-call]
        connection_class=BlockingSocketConnection, path=str(path), **blocking_options()
    )
    return BlockingRedis.from_pool(pool)


@asynccontextmanager
async def embedded_redis_at(path: Path, served: FakeServer | None = None) -> AsyncIterator[None]:
    """Answer at `path` for the length of the block, out of the Redis inside this process.

    That is `served`, or the one that all clients of the process share.
    """
    served = served or embedded_server()
    sessions: set[RedisSession] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(
        lambda: RedisSession(served, sessions), str(path), backlog=BACKLOG
    )
    try:
        yield
    finally:
        server.close()
        for session in sessions.copy():
            session.close()
        await server.wait_closed()


class RedisSession(asyncio.Protocol):
    """One connection: what it sends is carried out at once, in the event loop.

    fakeredis has a server of its own, with a thread for each connection that wakes up a hundred
    times a second. Commands that block have no answer here; nothing sends any.
    """

    def __init__(self, server: FakeServer, sessions: set[RedisSession]) -> None:
        from fakeredis import FakeRedisConnection

        self._sessions = sessions
        # As a real server: of version 2 until the client asks for another one.
        self._connection: FakeRedisConnection = FakeRedisConnection(server=server, protocol=2)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._sessions.add(self)

    def data_received(self, data: bytes) -> None:
        from fakeredis._clients._tcp_server import encode_reply

        socket = self._connection.get_socket()
        socket.sendall(data)
        answers = []
        # Without one it is closed.
        while socket.responses is not None and not socket.responses.empty():
            version = socket._client_info.protocol_version  # noqa: SLF001 - as its own server does
            answers.append(encode_reply(socket.responses.get_nowait(), version))
        self._transport.write(b"".join(answers))

    def connection_lost(self, error: Exception | None) -> None:
        self._sessions.discard(self)
        self._connection.disconnect()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Hang up."""
        self._transport.close()
