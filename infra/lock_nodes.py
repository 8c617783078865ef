"""The Redis nodes of the locks: asked all at once, each for a short time only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog
from redis import RedisError
from redis.asyncio import Redis

from infra.metrics import counter
from infra.redis import address

log = structlog.get_logger(__name__)

# A node that hangs must not use up what the lock lasts.
MOST_OF_TTL = 0.25

# A crowd in this process is not a node's fault: so many ask one at a time, the others wait their
# turn, for so long, before its timeout begins.
TURNS = 16
TURN_SECONDS = 2.0

# Only whoever set the key may touch it: it may have expired, and be another holder's by now.
RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""
EXTEND = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end
return 0
"""

LOCK_NODE_FAILURES = counter(
    "backlot_lock_node_failures",
    "Questions that a lock node did not answer in time, by node (host:port, or embedded).",
    ("node",),
)


class Votes(NamedTuple):
    """How many nodes did what they were asked, how many refused, and how many did not answer."""

    granted: int
    refused: int
    silent: int


class LockNode:
    """One Redis; its silence is logged when it begins and when it ends, and counted each time."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.name = address(client)
        self._release = client.register_script(RELEASE)
        self._extend = client.register_script(EXTEND)
        self._turns = asyncio.Semaphore(TURNS)
        self._silent = False

    def take(self, key: str, token: str, ttl: int) -> Awaitable[object]:
        return self.client.set(key, token, nx=True, px=ttl)

    def extend(self, key: str, token: str, ttl: int) -> Awaitable[object]:
        return self._extend([key], [token, ttl])

    def release(self, key: str, token: str) -> Awaitable[object]:
        return self._release([key], [token])

    def ping(self) -> Awaitable[object]:
        return self.client.ping()

    async def answer(self, question: Question, seconds: float) -> bool | None:
        """Whether the node did it; None when it failed or took longer than that."""
        try:
            async with self._turn(), asyncio.timeout(seconds):
                done = bool(await question(self))
        except (RedisError, OSError) as error:
            self._fell_silent(error)
            return None
        if self._silent:
            self._silent = False
            log.info("lock_node_back", node=self.name)
        return done

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with asyncio.timeout(TURN_SECONDS):
            await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    def _fell_silent(self, error: Exception) -> None:
        LOCK_NODE_FAILURES.labels(self.name).inc()
        if not self._silent:
            self._silent = True
            log.warning("lock_node_silent", node=self.name, error=repr(error))


Question = Callable[[LockNode], Awaitable[object]]


class LockNodes:
    """All nodes; each question goes to every one of them, whatever it answered before."""

    def __init__(self, clients: Sequence[Redis], timeout: float) -> None:
        """`timeout` in seconds is what one node may take."""
        if not clients:
            raise ValueError("a lock needs at least one node")
        self._nodes = [LockNode(client) for client in clients]
        self._timeout = timeout
        self.quorum = len(clients) // 2 + 1

    def __len__(self) -> int:
        return len(self._nodes)

    async def take(self, key: str, token: str, ttl: float) -> Votes:
        """Set the key to `token` for `ttl` seconds where it is not set."""
        return await self._ask(lambda node: node.take(key, token, _ms(ttl)), self._within(ttl))

    async def extend(self, key: str, token: str, ttl: float) -> Votes:
        """Let the key last `ttl` seconds from now where it is `token`."""
        return await self._ask(lambda node: node.extend(key, token, _ms(ttl)), self._within(ttl))

    async def release(self, key: str, token: str) -> Votes:
        """Remove the key where it is `token`."""
        return await self._ask(lambda node: node.release(key, token), self._timeout)

    async def ping(self) -> Votes:
        return await self._ask(LockNode.ping, self._timeout)

    async def aclose(self) -> None:
        for node in self._nodes:
            await node.client.aclose()

    def _within(self, ttl: float) -> float:
        return min(self._timeout, ttl * MOST_OF_TTL)

    async def _ask(self, question: Question, seconds: float) -> Votes:
        answers = await asyncio.gather(*(node.answer(question, seconds) for node in self._nodes))
        return Votes(answers.count(True), answers.count(False), answers.count(None))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
