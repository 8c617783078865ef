"""Which Redis the program uses, and how it takes its absence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakeredis import FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection
from pydantic import SecretStr
from redis import RedisError
from redis.asyncio import Connection

from infra.redis import (
    BadRedisUrl,
    address,
    check_redis_url,
    connect_redis,
    embedded_redis,
    embedded_server,
    open_redis,
    server_of,
)
from tests.support import unused_port

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_without_a_url_all_clients_share_the_redis_in_the_process() -> None:
    one, another = open_redis(None), open_redis(None)
    assert embedded_server() is embedded_server()
    assert await one.set("shared", b"\xff\x00", px=1000)
    assert await another.get("shared") == b"\xff\x00"
    assert address(one) == "embedded"
    await one.delete("shared")
    await one.aclose()
    await another.aclose()


async def test_the_embedded_redis_runs_scripts() -> None:
    client = embedded_redis(FakeServer())
    script = client.register_script("return {redis.call('incrby', KEYS[1], ARGV[1]), 'told'}")
    assert await script(["counter"], [3]) == [3, b"told"]
    assert await script(["counter"], [4]) == [7, b"told"]
    await client.aclose()


async def test_many_at_once_take_turns_on_the_connections() -> None:
    client = embedded_redis(FakeServer())
    await asyncio.gather(*(client.incr("many") for _ in range(1000)))
    assert await client.get("many") == b"1000"
    await client.aclose()


@pytest.mark.redis_hangs
async def test_a_redis_that_hangs_costs_a_second() -> None:
    for client in (connect_redis("redis://127.0.0.1"), embedded_redis(FakeServer())):
        options = client.connection_pool.connection_kwargs
        assert options["socket_connect_timeout"] == 0.5
        assert options["socket_timeout"] == 1.0
        await client.aclose()


async def test_an_absent_redis_is_told_at_once_and_nothing_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    for connection in (Connection, FakeAsyncRedisConnection):
        monkeypatch.setattr(connection, "_connect", counting(connection, tried))
    server = FakeServer()
    server.connected = False
    for client in (connect_redis(f"redis://127.0.0.1:{unused_port()}"), embedded_redis(server)):
        with pytest.raises(RedisError):
            await client.ping()
        await client.aclose()
    assert tried == ["Connection", "FakeAsyncRedisConnection"]


def counting(connection: type[Any], tried: list[str]) -> Callable[[Any], Awaitable[None]]:
    """How `connection` connects, noted each time."""
    connect = connection._connect

    async def counted(self: Any) -> None:
        tried.append(connection.__name__)
        await connect(self)

    return counted


async def test_the_embedded_redis_comes_back() -> None:
    server = FakeServer()
    client = embedded_redis(server)
    assert await client.set("kept", 1)
    server.connected = False
    with pytest.raises(RedisError):
        await client.get("kept")
    server.connected = True
    assert await client.get("kept") == b"1"
    await client.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:6379",
        "http://127.0.0.1",
        "unix:///run/redis.sock",
        "redis://u:hunter2@host:port",
        "redis://u:hunter2/@host",
        "redis://host/hunter2",
        "redis://host/0?hunter2=1",
        "redis://host?db=hunter2",
        "rediss://host?ssl_cert_reqs=hunter2",
    ],
)
def test_what_is_no_redis_url(url: str) -> None:
    with pytest.raises(BadRedisUrl) as caught:
        check_redis_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("redis://cache.internal:7000/3", "cache.internal:7000"),
        ("rediss://u:p%2Fw@Cache.internal", "cache.internal:6379"),
        ("redis://", "localhost:6379"),
    ],
)
def test_where_a_url_leads(url: str, server: str) -> None:
    assert server_of(url) == server
    assert address(open_redis(SecretStr(url))).lower() == server
