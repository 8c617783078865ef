"""Locks across processes on N independent Redis nodes: the Redlock algorithm as redis.io has it.

They save wasted work and nothing more. A holder that was paused may go on after its lock has
passed to another one, so what must happen once is decided by the version of an event stream.
https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import structlog
from pydantic import SecretStr
from redis import RedisError
from redis.asyncio import Redis

from infra.cancellation import cancel, to_the_end
from infra.metrics import SECONDS, counter, histogram
from infra.redis import ANSWER_SECONDS, address, connect_redis

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

# Redis expires keys with a precision of a millisecond; the rest is for small lifetimes.
EXPIRY_PRECISION = 0.002
LONGEST_HOLD_SECONDS = 3600.0

LOCK_NODE_FAILURES = counter(
    "backlot_lock_node_failures",
    "Questions that a lock node did not answer in time, by node (host:port, or embedded).",
    ("node",),
)
LOCK_ACQUISITIONS = counter(
    "backlot_lock_acquisitions",
    "Attempts to get a lock, by what it is for and outcome (acquired, taken, unavailable).",
    ("lock", "outcome"),
)
LOCK_HOLD_SECONDS = histogram(
    "backlot_lock_hold_seconds",
    "Time that a lock was held, by what it is for.",
    ("lock",),
    buckets=(*SECONDS, 30.0, 60.0, 300.0),
)
LOCK_LEASES_LOST = counter(
    "backlot_lock_leases_lost",
    "Locks that were lost while they were held, by what they are for.",
    ("lock",),
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
        self.release = client.register_script(RELEASE)
        self.extend = client.register_script(EXTEND)
        self._turns = asyncio.Semaphore(TURNS)
        self._silent = False

    async def answer(self, question: Question, seconds: float) -> bool | None:
        """Return whether the node did it; None when it failed or took longer than that."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
            try:
                async with asyncio.timeout(seconds):
                    done = bool(await question(self))
            finally:
                self._turns.release()
        except (RedisError, OSError) as error:
            LOCK_NODE_FAILURES.labels(self.name).inc()
            if not self._silent:
                self._silent = True
                log.warning("lock_node_silent", node=self.name, error=repr(error))
            return None
        if self._silent:
            self._silent = False
            log.info("lock_node_back", node=self.name)
        return done


Question = Callable[[LockNode], Awaitable[object]]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class LockError(Exception):
    """The lock was not acquired; nothing of the attempt is left on any node that answers."""

    outcome = "failed"


class LockTaken(LockError):
    """Somebody else holds the lock, or is about to: try again later."""

    outcome = "taken"


class LocksUnavailable(LockError):
    """So few nodes answered in time that nobody can hold the lock."""

    outcome = "unavailable"


class Lease:
    """A lock that is held until `valid_until` on the clock of its Redlock, unless extended."""

    def __init__(self, redlock: Redlock, key: str, token: str, valid_until: float) -> None:
        self.key = key
        self.token = token
        self.valid_until = valid_until
        self._redlock = redlock
        self._given_up = False
        self._extending = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether another one may hold the lock by now, as far as this process can tell."""
        return self._given_up or self._redlock.clock() >= self.valid_until

    async def extend(self, ttl: float) -> bool:
        """Hold the lock for `ttl` seconds from now; False when no quorum agreed.

        The lease is lost when so many nodes refused that no quorum is left; while they only
        don't answer it stays valid until `valid_until`, and may be extended again.
        """
        async with self._extending:
            if self.lost:
                self.give_up("expired")
                return False
            started = self._redlock.clock()
            votes = await self._redlock.ask(
                lambda node: node.extend([self.key], [self.token, _ms(ttl)]), ttl
            )
            until = self._redlock.validity(started, ttl)
            if votes.granted >= self._redlock.quorum and self._redlock.clock() < until:
                self.valid_until = until
                return True
            self._explain(votes)
            return False

    async def release(self) -> None:
        """Remove the key on every node where it is still ours; what can't be reached expires."""
        if self.lost:
            self.give_up("expired")
        self._explain(await self._redlock.release(self.key, self.token))

    def give_up(self, reason: str) -> None:
        """Count and log the loss, once."""
        if not self._given_up:
            self._given_up = True
            LOCK_LEASES_LOST.labels(kind_of(self.key)).inc()
            log.warning("lock_lost", key=self.key, reason=reason)

    def _explain(self, votes: Votes) -> None:
        if votes.refused > len(self._redlock.nodes) - self._redlock.quorum:
            self.give_up("gone from the nodes")


class Redlock:
    """Locks of one process on independent nodes; to be used from one event loop.

    Times are seconds. `node_timeout` is what one node may take, `drift_factor` how much faster a
    node's clock may run than ours, `retry_delay` the mean pause before another try, `longest`
    how long a lock is extended: a holder that hangs must not keep it forever.
    """

    def __init__(
        self,
        nodes: Sequence[Redis],
        *,
        node_timeout: float = 0.25,
        drift_factor: float = 0.01,
        retry_delay: float = 0.05,
        longest: float = LONGEST_HOLD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if not nodes:
            raise ValueError("a lock needs at least one node")
        self.nodes = [LockNode(client) for client in nodes]
        self.quorum = len(nodes) // 2 + 1
        self.clock = clock
        self._node_timeout = node_timeout
        self._drift_factor = drift_factor
        self._retry_delay = retry_delay
        self._longest = longest
        self._chance = chance

    @asynccontextmanager
    async def hold(self, key: str, ttl: float, *, wait: float = 0.0) -> AsyncIterator[Lease]:
        """Hold the lock `key` for the block; raise LockTaken or LocksUnavailable.

        Tried again for `wait` seconds (0: one try). The keys expire after `ttl` seconds when this
        process dies; until the block ends they are extended every third of it. They are always
        released, also when the block is cancelled. Look at `lost` before work that costs much.
        """
        lease = await self._acquire(key, ttl, wait)
        acquired = self.clock()
        keeping = asyncio.create_task(self._keep(lease, ttl))
        try:
            yield lease
        finally:
            await to_the_end(_end(lease, keeping))
            LOCK_HOLD_SECONDS.labels(kind_of(key)).observe(self.clock() - acquired)

    async def check(self) -> None:
        """Raise LocksUnavailable unless a quorum of nodes answers."""
        votes = await self.ask(lambda node: node.client.ping())
        if votes.granted < self.quorum:
            raise self._unavailable(votes)

    async def aclose(self) -> None:
        """Close the connections to the nodes."""
        for node in self.nodes:
            await node.client.aclose()

    async def ask(self, question: Question, ttl: float = math.inf) -> Votes:
        """Ask every node, whatever the others answer; `ttl` is what the key would last."""
        seconds = min(self._node_timeout, ttl * MOST_OF_TTL)
        answers = await asyncio.gather(*(node.answer(question, seconds) for node in self.nodes))
        return Votes(answers.count(True), answers.count(False), answers.count(None))

    async def release(self, key: str, token: str) -> Votes:
        """Remove the key where it is `token`."""
        return await self.ask(lambda node: node.release([key], [token]))

    async def _acquire(self, key: str, ttl: float, wait: float) -> Lease:
        deadline = self.clock() + wait
        while True:
            try:
                lease = await self._try(key, ttl)
            except LockError as error:
                left = deadline - self.clock()
                if left <= 0:
                    LOCK_ACQUISITIONS.labels(kind_of(key), error.outcome).inc()
                    raise
                await asyncio.sleep(min(left, self._pause()))
            else:
                LOCK_ACQUISITIONS.labels(kind_of(key), "acquired").inc()
                return lease

    async def _try(self, key: str, ttl: float) -> Lease:
        token = secrets.token_hex(20)
        started = self.clock()
        until = self.validity(started, ttl)
        held = False
        try:
            votes = await self.ask(
                lambda node: node.client.set(key, token, nx=True, px=_ms(ttl)), ttl
            )
            held = votes.granted >= self.quorum and self.clock() < until
        finally:
            if not held:
                await to_the_end(self.release(key, token))
        if held:
            return Lease(self, key, token, until)
        if votes.refused and votes.granted + votes.refused >= self.quorum:
            raise LockTaken(f"Somebody else holds the lock {key}.")
        raise self._unavailable(votes)

    def _unavailable(self, votes: Votes) -> LocksUnavailable:
        log.warning("locks_unavailable", nodes=len(self.nodes), silent=votes.silent)
        return LocksUnavailable(f"Too few of {len(self.nodes)} lock nodes answered in time.")

    async def _keep(self, lease: Lease, ttl: float) -> None:
        until = self.clock() + self._longest
        pause = ttl / 3
        while not lease.lost:
            await asyncio.sleep(pause)
            if self.clock() >= until:
                log.warning("lock_held_too_long", key=lease.key, seconds=self._longest)
                return
            pause = ttl / 3 if await lease.extend(ttl) else self._pause()

    def validity(self, started: float, ttl: float) -> float:
        """Until when keys that were set for `ttl` seconds, not before `started`, surely last."""
        return started + ttl - (ttl * self._drift_factor + EXPIRY_PRECISION)

    def _pause(self) -> float:
        # Random, or rivals that have split the nodes among themselves would do so again.
        return self._retry_delay * (0.5 + self._chance())


def make_redlock(redis: Redis, urls: Sequence[SecretStr]) -> Redlock:
    """Locks on the nodes at `urls`, each a Redis server of its own; on `redis` without any."""
    if not urls:
        # There is no other node to go on with: wait for it as for any answer of Redis.
        return Redlock([redis], node_timeout=ANSWER_SECONDS)
    return Redlock([connect_redis(url.get_secret_value()) for url in urls])


def kind_of(key: str) -> str:
    """Return the label of a lock in metrics: the key without what follows its last colon."""
    return key.rpartition(":")[0] or key


async def _end(lease: Lease, keeping: asyncio.Task[None]) -> None:
    await cancel(keeping)
    await lease.release()
