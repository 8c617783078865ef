"""The lock on real Redis servers that are stopped, killed, paused and started again."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from infra.redlock import LocksUnavailable, LockTaken, Redlock
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.support import DEADLINE_SECONDS, PROJECT, until

pytestmark = pytest.mark.anyio

KEY = "test:thing:1"
# A node that answers late because the machine is busy is none that hangs.
PATIENCE = 10.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[RedisServer]]:
    with redis_servers(3, tmp_path) as started:
        yield started


class Rivals:
    """Makes locks that share nothing but the servers, as those of several processes do."""

    def __init__(self, servers: list[RedisServer], stack: AsyncExitStack) -> None:
        self._servers = servers
        self._stack = stack

    def redlock(self, **changes: Any) -> Redlock:
        clients = [server.client(socket_connect_timeout=PATIENCE) for server in self._servers]
        locks = Redlock(clients, **{"node_timeout": PATIENCE, **changes})
        self._stack.push_async_callback(locks.aclose)
        return locks


@pytest.fixture
async def rivals(servers: list[RedisServer]) -> AsyncIterator[Rivals]:
    async with AsyncExitStack() as stack:
        yield Rivals(servers, stack)


async def tokens(servers: list[RedisServer]) -> list[Any]:
    found = []
    for server in servers:
        client = server.client()
        found.append(await client.get(KEY))
        await client.aclose()
    return found


async def time_left(servers: list[RedisServer]) -> float:
    """For how many seconds the node that keeps the lock longest will keep it."""
    found = []
    for server in servers:
        client = server.client()
        found.append(await client.pttl(KEY))
        await client.aclose()
    return float(max(found)) / 1000


class Room:
    """Notices when two are in it at once."""

    def __init__(self) -> None:
        self.visits = 0
        self._inside = 0

    async def visit(self) -> None:
        self._inside += 1
        assert self._inside == 1, "two holders at once"
        await asyncio.sleep(0.002)
        assert self._inside == 1, "two holders at once"
        self._inside -= 1
        self.visits += 1


async def test_two_of_three_nodes_are_enough(servers: list[RedisServer], rivals: Rivals) -> None:
    servers[0].stop()
    async with rivals.redlock().hold(KEY, 30.0) as lease:
        with pytest.raises(LockTaken):
            async with rivals.redlock().hold(KEY, 30.0):
                pytest.fail("two holders")
        assert await lease.extend(30.0)
        assert await tokens(servers[1:]) == 2 * [lease.token.encode()]
    assert await tokens(servers[1:]) == [None, None]


async def test_one_of_three_nodes_is_not(servers: list[RedisServer], rivals: Rivals) -> None:
    locks = rivals.redlock()
    servers[0].kill()
    servers[2].kill()
    with pytest.raises(LocksUnavailable):
        async with locks.hold(KEY, 30.0):
            pytest.fail("held without a quorum")
    assert await tokens(servers[1:2]) == [None]
    servers[0].start()
    async with locks.hold(KEY, 30.0):
        await locks.check()


@pytest.mark.redis_hangs
async def test_a_node_that_hangs_costs_no_more_than_its_timeout(
    servers: list[RedisServer], rivals: Rivals
) -> None:
    timeout = 1.0
    locks = rivals.redlock(node_timeout=timeout)
    async with locks.hold(KEY, 30.0):
        pass
    servers[1].pause()
    for _ in range(3):
        started = time.monotonic()
        async with locks.hold(KEY, 30.0) as lease:
            taken = time.monotonic() - started
            assert await lease.extend(30.0)
        assert timeout <= taken < DEADLINE_SECONDS
    servers[1].resume()
    # What it was asked while it hung may still be done now: a key that expires, on one node only.
    async with locks.hold(KEY, 30.0):
        pass


HOLDER = """
import asyncio, sys
import structlog
from infra.redlock import Redlock
from infra.redis import connect_redis

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    locks = Redlock([connect_redis(url) for url in sys.argv[2:]], node_timeout=10.0)
    async with locks.hold(sys.argv[1], 1.5, wait=180.0):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_lock_of_a_killed_holder_expires(
    servers: list[RedisServer], rivals: Rivals
) -> None:
    command = [sys.executable, "-c", HOLDER, KEY, *(server.url for server in servers)]
    holder = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=PROJECT)
    try:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        # It is extended while its holder lives.
        await asyncio.sleep(2.0)
        with pytest.raises(LockTaken):
            async with rivals.redlock().hold(KEY, 30.0):
                pytest.fail("two holders")
    finally:
        holder.kill()
        await holder.wait()
    killed = time.monotonic()
    assert await time_left(servers) <= 1.5
    async with rivals.redlock().hold(KEY, 30.0, wait=DEADLINE_SECONDS):
        assert time.monotonic() - killed > 0.5


async def test_fifty_rivals_on_three_clients_take_turns(rivals: Rivals) -> None:
    locks = [rivals.redlock(retry_delay=0.02) for _ in range(3)]
    room = Room()

    async def enter(number: int) -> None:
        async with locks[number % 3].hold(KEY, 60.0, wait=DEADLINE_SECONDS) as lease:
            await room.visit()
            assert not lease.lost

    await asyncio.gather(*(enter(number) for number in range(50)))
    assert room.visits == 50


@pytest.mark.chaos
async def test_nodes_that_restart_under_load(servers: list[RedisServer], rivals: Rivals) -> None:
    """Each in turn; away for longer than a lock lasts, as redis.io asks of nodes that forget."""
    ttl, stopped = 0.8, False
    locks = [rivals.redlock(retry_delay=0.02, node_timeout=0.1) for _ in range(3)]
    room = Room()

    async def come_and_go(number: int) -> None:
        while not stopped:
            async with locks[number % 3].hold(KEY, ttl, wait=30.0) as lease:
                if not lease.lost:
                    await room.visit()

    crowd = [asyncio.create_task(come_and_go(number)) for number in range(12)]
    for server in servers:
        before = room.visits
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(2 * ttl)
        assert room.visits > before
        await asyncio.to_thread(server.start)
        await asyncio.sleep(0.2)
    stopped = True
    await asyncio.gather(*crowd)
    assert await tokens(servers) == [None, None, None]


async def test_a_lock_that_its_only_node_forgot_is_lost(
    tmp_path: Path, servers: list[RedisServer]
) -> None:
    async with AsyncExitStack() as stack:
        locks = Rivals(servers[:1], stack).redlock()
        async with locks.hold(KEY, 0.9) as lease:
            servers[0].kill()
            servers[0].start()
            await until(lambda: lease.lost)


async def test_a_holder_that_was_paused_leaves_its_successor_alone(
    servers: list[RedisServer], rivals: Rivals
) -> None:
    paused, next_one = rivals.redlock(), rivals.redlock()
    async with AsyncExitStack() as stack:
        async with paused.hold(KEY, 2.0) as lease:
            # The whole process stands still, so nothing extends the lock.
            time.sleep(2.2)  # noqa: ASYNC251
            assert lease.lost
            successor = await stack.enter_async_context(next_one.hold(KEY, 30.0))
            assert not await lease.extend(30.0)
        assert await tokens(servers) == 3 * [successor.token.encode()]
        assert await successor.extend(30.0)
    assert await tokens(servers) == [None, None, None]
