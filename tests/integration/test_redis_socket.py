"""The Redis inside one process as others have it: over a socket, with all that the program asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest
from fakeredis import FakeServer
from pydantic import SecretStr
from redis import RedisError, ResponseError
from redis.asyncio import BlockingConnectionPool, Redis

from infra.http.rate_limits import Limit
from infra.redis import address, embedded_redis
from infra.redis_socket import connect_blocking_socket, connect_socket, embedded_redis_at, url_of
from infra.redlock import LockTaken, Redlock
from infra.shared_buckets import SharedBuckets
from tests.integration.task_support import Toy, quick_settings
from tests.support import DEADLINE_SECONDS, until

pytestmark = pytest.mark.anyio

KEY = "test:thing:1"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "redis.sock"


def patient(path: Path) -> Redis:
    """A client that a busy machine makes wait, and not fail."""
    client = connect_socket(path)
    pool = cast("BlockingConnectionPool", client.connection_pool)
    pool.timeout = DEADLINE_SECONDS
    pool.connection_kwargs |= dict.fromkeys(
        ("socket_timeout", "socket_connect_timeout"), DEADLINE_SECONDS
    )
    return client


@pytest.fixture
async def clients(path: Path) -> AsyncIterator[list[Redis]]:
    """Of the process that has it, and of two others."""
    served = FakeServer(version=(7, 4))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(embedded_redis_at(path, served))
        found = [embedded_redis(served), patient(path), patient(path)]
        for client in found:
            stack.push_async_callback(client.aclose)
        yield found


async def test_what_one_process_writes_every_other_reads(clients: list[Redis]) -> None:
    for number, writer in enumerate(clients):
        await writer.set("shared", b"\xff\x00\r\n" + b"%d" % number, px=60_000)
        for reader in clients:
            assert await reader.get("shared") == b"\xff\x00\r\n" + b"%d" % number
            assert 0 < await reader.pttl("shared") <= 60_000
    assert await clients[1].get("missing") is None
    assert {address(client) for client in clients} == {"embedded"}


async def test_values_of_many_packets_arrive_whole(clients: list[Redis]) -> None:
    large = bytes(range(256)) * 8_000
    await clients[1].set("large", large)
    assert await clients[2].get("large") == large
    assert await clients[0].get("large") == large


async def test_scripts_pipelines_and_refusals_are_as_on_a_server(clients: list[Redis]) -> None:
    _, client, _ = clients
    script = client.register_script("return {redis.call('incrby', KEYS[1], ARGV[1]), 'told'}")
    assert await script(["counter"], [3]) == [3, b"told"]
    assert await script(["counter"], [4]) == [7, b"told"]
    async with client.pipeline() as pipe:
        _ = pipe.hset("hash", mapping={"a": "1", "b": "2"})
        _ = pipe.hgetall("hash")
        assert await pipe.execute() == [2, {b"a": b"1", b"b": b"2"}]
    with pytest.raises(ResponseError):
        await client.incr("hash")
    assert await client.get("counter") == b"7", "the connection goes on after a refusal"


async def test_hundreds_may_ask_at_once(clients: list[Redis]) -> None:
    await asyncio.gather(*(clients[each % 3].incr("many") for each in range(900)))
    assert await clients[0].get("many") == b"900"


async def test_one_bucket_is_for_all_processes(clients: list[Redis]) -> None:
    limit = Limit("few", 0.01, 30)
    buckets = [SharedBuckets(client, patience=DEADLINE_SECONDS) for client in clients]
    answers = [await buckets[each % 3].take("few:u:one", limit) for each in range(90)]
    assert sum(not answer.wait for answer in answers) == 30
    assert not any(answer.alone for answer in answers)
    for each in buckets:
        await each.aclose()


async def test_one_lock_is_for_all_processes(clients: list[Redis]) -> None:
    locks = [Redlock([client], node_timeout=DEADLINE_SECONDS) for client in clients]
    for holder in locks:
        async with holder.hold(KEY, 10 * DEADLINE_SECONDS):
            for rival in locks:
                with pytest.raises(LockTaken):
                    async with rival.hold(KEY, 10 * DEADLINE_SECONDS):
                        pass


async def test_when_it_has_ended_it_is_a_redis_that_is_away(path: Path) -> None:
    async with embedded_redis_at(path, FakeServer()):
        client = patient(path)
        assert await client.ping()
    with pytest.raises((RedisError, OSError)):
        await client.ping()
    async with embedded_redis_at(path, FakeServer()):
        assert await client.ping(), "what was left at the path is in nobody's way"
    await client.aclose()


async def test_tasks_of_one_process_are_run_by_another(path: Path) -> None:
    told: list[str] = []

    async def tell(what: str) -> None:
        told.append(what)

    # The same queue as the worker's, which uses the Redis inside this process without the socket.
    async with embedded_redis_at(path):
        worker = Toy(quick_settings(None), alone=False)
        worker.actor(tell)
        there = {"own_broker_url": SecretStr(url_of(path))}
        sender = Toy(quick_settings(None).model_copy(update=there))
        sender.actor(tell)
        worker.worker.start()
        await asyncio.to_thread(sender.send, "tell", "from elsewhere")
        await until(lambda: told == ["from elsewhere"])
        await asyncio.to_thread(worker.worker.stop)
        await asyncio.to_thread(sender.broker.close)


async def test_threads_have_a_client_too(path: Path) -> None:
    async with embedded_redis_at(path, FakeServer()):
        client = connect_blocking_socket(path)
        assert await asyncio.to_thread(client.set, "a", "1")
        assert await asyncio.to_thread(client.get, "a") == b"1"
        client.close()
