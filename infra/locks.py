"""Locks across processes on N independent Redis nodes: the Redlock algorithm as redis.io has it.

They save wasted work and nothing more. A holder that was paused may go on after its lock has
passed to another one, so what must happen once is decided by the version of an event stream.
https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from pydantic import SecretStr
from redis.asyncio import Redis

from infra.cancellation import cancel, to_the_end
from infra.lock_nodes import LockNodes, Votes
from infra.metrics import SECONDS, counter, histogram
from infra.redis import ANSWER_SECONDS, connect_redis

log = structlog.get_logger(__name__)

# Redis expires keys with a precision of a millisecond; the rest is for small lifetimes.
EXPIRY_PRECISION = 0.002
LONGEST_HOLD_SECONDS = 3600.0

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

    def __init__(
        self,
        nodes: LockNodes,
        key: str,
        token: str,
        valid_until: float,
        *,
        validity: Callable[[float, float], float],
        clock: Callable[[], float],
    ) -> None:
        self.key = key
        self.token = token
        self.valid_until = valid_until
        self._nodes = nodes
        self._validity = validity
        self._clock = clock
        self._given_up = False
        self._extending = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether another one may hold the lock by now, as far as this process can tell."""
        return self._given_up or self._clock() >= self.valid_until

    async def extend(self, ttl: float) -> bool:
        """Hold the lock for `ttl` seconds from now; False when no quorum agreed.

        The lease is lost when so many nodes refused that no quorum is left; while they only
        don't answer it stays valid until `valid_until`, and may be extended again.
        """
        async with self._extending:
            if self.lost:
                self.give_up("expired")
                return False
            started = self._clock()
            votes = await self._nodes.extend(self.key, self.token, ttl)
            until = self._validity(started, ttl)
            if votes.granted >= self._nodes.quorum and self._clock() < until:
                self.valid_until = until
                return True
            self._explain(votes)
            return False

    async def release(self) -> None:
        """Remove the key on every node where it is still ours; what can't be reached expires."""
        if self.lost:
            self.give_up("expired")
        self._explain(await self._nodes.release(self.key, self.token))

    def give_up(self, reason: str) -> None:
        """Count and log the loss, once."""
        if not self._given_up:
            self._given_up = True
            LOCK_LEASES_LOST.labels(kind_of(self.key)).inc()
            log.warning("lock_lost", key=self.key, reason=reason)

    def _explain(self, votes: Votes) -> None:
        if votes.refused > len(self._nodes) - self._nodes.quorum:
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
        self._nodes = LockNodes(nodes, node_timeout)
        self._drift_factor = drift_factor
        self._retry_delay = retry_delay
        self._longest = longest
        self._clock = clock
        self._chance = chance

    @asynccontextmanager
    async def hold(self, key: str, ttl: float, *, wait: float = 0.0) -> AsyncIterator[Lease]:
        """Hold the lock `key` for the block; raises LockTaken or LocksUnavailable.

        Tried again for `wait` seconds (0: one try). The keys expire after `ttl` seconds when this
        process dies; until the block ends they are extended every third of it. They are always
        released, also when the block is cancelled. Look at `lost` before work that costs much.
        """
        lease = await self._acquire(key, ttl, wait)
        acquired = self._clock()
        keeping = asyncio.create_task(self._keep(lease, ttl))
        try:
            yield lease
        finally:
            await to_the_end(_end(lease, keeping))
            LOCK_HOLD_SECONDS.labels(kind_of(key)).observe(self._clock() - acquired)

    async def check(self) -> None:
        """Raise LocksUnavailable unless a quorum of nodes answers."""
        votes = await self._nodes.ping()
        if votes.granted < self._nodes.quorum:
            raise self._unavailable(votes)

    async def aclose(self) -> None:
        """Close the connections to the nodes."""
        await self._nodes.aclose()

    async def _acquire(self, key: str, ttl: float, wait: float) -> Lease:
        deadline = self._clock() + wait
        while True:
            try:
                lease = await self._try(key, ttl)
            except LockError as error:
                left = deadline - self._clock()
                if left <= 0:
                    LOCK_ACQUISITIONS.labels(kind_of(key), error.outcome).inc()
                    raise
                await asyncio.sleep(min(left, self._pause()))
            else:
                LOCK_ACQUISITIONS.labels(kind_of(key), "acquired").inc()
                return lease

    async def _try(self, key: str, ttl: float) -> Lease:
        token = secrets.token_hex(20)
        started = self._clock()
        until = self._validity(started, ttl)
        held = False
        try:
            votes = await self._nodes.take(key, token, ttl)
            held = votes.granted >= self._nodes.quorum and self._clock() < until
        finally:
            if not held:
                await to_the_end(self._nodes.release(key, token))
        if held:
            return Lease(self._nodes, key, token, until, validity=self._validity, clock=self._clock)
        if votes.refused and votes.granted + votes.refused >= self._nodes.quorum:
            raise LockTaken(f"Somebody else holds the lock {key}.")
        raise self._unavailable(votes)

    def _unavailable(self, votes: Votes) -> LocksUnavailable:
        log.warning("locks_unavailable", nodes=len(self._nodes), silent=votes.silent)
        return LocksUnavailable(f"Too few of {len(self._nodes)} lock nodes answered in time.")

    async def _keep(self, lease: Lease, ttl: float) -> None:
        until = self._clock() + self._longest
        pause = ttl / 3
        while not lease.lost:
            await asyncio.sleep(pause)
            if self._clock() >= until:
                log.warning("lock_held_too_long", key=lease.key, seconds=self._longest)
                return
            pause = ttl / 3 if await lease.extend(ttl) else self._pause()

    def _validity(self, started: float, ttl: float) -> float:
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
    """What a lock is for, as metrics have it: the key without what follows its last colon."""
    return key.rpartition(":")[0] or key


async def _end(lease: Lease, keeping: asyncio.Task[None]) -> None:
    await cancel(keeping)
    await lease.release()
