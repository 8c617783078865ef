"""Real Redis servers that come and go, and what the doctor says about them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import SecretStr
from redis import RedisError
from redis.asyncio import Redis

from backlot.doctor import probe
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.support import DEADLINE_SECONDS

pytestmark = pytest.mark.anyio

R = TypeVar("R")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (server,):
        yield server


async def fails(client: Redis) -> None:
    """A question is refused, and does not wait for ever."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises((RedisError, OSError)):
            await client.get("anything")


async def once_back(ask: Callable[[], Awaitable[R]]) -> R:
    """The answer of a server that begins to answer, however slow the machine is."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return await ask()
        except (RedisError, OSError):
            # As the program has it: a connection that is slow to close is a TimeoutError.
            assert time.monotonic() < deadline, "the client did not come back"


async def at_once(client: Redis) -> list[object]:
    """What more callers get than there are connections."""
    return await asyncio.gather(*(client.get("gone") for _ in range(200)))


@pytest.mark.redis_hangs
async def test_a_client_goes_on_after_each_kind_of_absence(server: RedisServer) -> None:
    client = server.client()
    assert await once_back(lambda: at_once(client)) == 200 * [None]

    server.kill()
    await fails(client)
    server.start()
    assert await once_back(lambda: at_once(client)) == 200 * [None]

    server.pause()
    await fails(client)
    server.resume()
    assert await once_back(lambda: client.set("back", 1))

    server.stop()
    server.start()
    assert await once_back(lambda: client.set("back", 2))
    await client.aclose()


def test_the_doctor_looks_at_servers(server: RedisServer) -> None:
    url = SecretStr(server.url)
    assert probe([url]).ok
    assert probe([url]).detail.startswith("Redis ")
    assert probe([url]).url == f"redis://127.0.0.1:{server.port}"


def test_the_doctor_sees_one_server_under_two_names(server: RedisServer) -> None:
    told = probe([SecretStr(f"redis://{host}:{server.port}") for host in ("127.0.0.1", "127.1")])
    assert not told.ok
    assert f"127.0.0.1:{server.port} and 127.1:{server.port} are the same server" in told.detail


@pytest.mark.redis_hangs
def test_the_doctor_names_the_servers_that_do_not_answer(tmp_path: Path) -> None:
    with redis_servers(3, tmp_path) as servers:
        urls = [SecretStr(server.url.replace("//", "//me:hunter2@")) for server in servers]
        assert not probe(urls).ok
        assert "hunter2" not in str(probe(urls))
        urls = [SecretStr(server.url) for server in servers]
        assert probe(urls) == (
            ", ".join(f"redis://127.0.0.1:{server.port}" for server in servers),
            True,
            probe(urls).detail,
        )
        assert probe(urls).detail.endswith("; 3 of 3 answer")
        servers[1].pause()
        told = probe(urls)
    assert not told.ok
    assert "2 of 3 answer" in told.detail
    assert f"127.0.0.1:{servers[1].port}: " in told.detail
