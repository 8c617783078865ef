"""Rate limits: token buckets, who pays for a request at the edge, and what they are told.

The algorithm is GCRA, the generic cell rate algorithm (ITU-T I.371, annex A): all that is kept of a
bucket is when it will be full again. What is taken moves that time on by what one token takes to
come back; nothing is given once it lies further ahead than the whole bucket takes.

The fields are those of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` has the quota
and its window in seconds, `RateLimit` what remains of it and in how many seconds it is whole again.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.http.problems import Problem
from infra.http.requests import OBJECTS, REMEMBERED, subscriber
from infra.metrics import REGISTRY
from infra.settings.features import RateLimitSettings

POLICY, LEFT = b"ratelimit-policy", b"ratelimit"
# Rounding must not cost a token.
CLOSE_ENOUGH = 1e-6
MOST_BUCKETS = 50_000
# What one process gives before it asks others, as a share of the bucket; nothing of small ones.
CREDIT_SHARE = 0.05
LEAST_BURST_ON_CREDIT = 100


class Decisions(Collector):
    """Decisions by class and outcome; an ordinary counter would cost more than the decision."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = defaultdict(int)
        """By class, and `allowed`, `limited`, or `fallback` where a process decided alone."""

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "backlot_rate_limit_decisions",
            "Requests by what the rate limits made of them (allowed, limited, fallback).",
            labels=("class", "outcome"),
        )
        for labels, count in list(self.counts.items()):
            family.add_metric(labels, count)
        return (family,)


DECISIONS = Decisions()
REGISTRY.register(DECISIONS)


@dataclass(frozen=True, slots=True)
class Limit:
    """A kind of bucket: `burst` tokens when it is full, of which `per_minute` come back."""

    name: str
    per_minute: float
    burst: int
    interval: float = field(init=False)
    """Seconds until one token is back."""
    window: float = field(init=False)
    """Seconds until all of them are."""
    farthest: float = field(init=False)
    """Seconds ahead at which a bucket may still lie, so that rounding costs no token."""
    credit: int = field(init=False)
    policy: bytes = field(init=False)
    """The field `RateLimit-Policy`."""

    def __post_init__(self) -> None:
        on_credit = self.burst >= LEAST_BURST_ON_CREDIT
        object.__setattr__(self, "interval", 60 / self.per_minute)
        object.__setattr__(self, "window", self.burst * 60 / self.per_minute)
        object.__setattr__(self, "farthest", self.window + CLOSE_ENOUGH)
        object.__setattr__(self, "credit", int(self.burst * CREDIT_SHARE) if on_credit else 0)
        policy = f'"{self.name}";q={self.burst};w={whole_seconds(self.window)}'
        object.__setattr__(self, "policy", policy.encode())

    def times(self, factor: float) -> Limit:
        """Return the same so many times as large."""
        return Limit(self.name, self.per_minute * factor, max(1, round(self.burst * factor)))


class BucketAnswer(NamedTuple):
    """What a bucket says: whether a token was given, and how it stands now.

    `ahead` are seconds until it is full, `wait` seconds until it has a token, 0 where it gave one.
    `alone` says that Redis was not asked, though others share the bucket there.
    """

    limit: Limit
    ahead: float
    wait: float = 0.0
    alone: bool = False

    @property
    def remaining(self) -> int:
        """Return how many tokens are left."""
        limit = self.limit
        return max(0, int((limit.window - self.ahead) / limit.interval + CLOSE_ENOUGH))


class LimitReached(Exception):
    """There is no token; `verdict` says when there is one."""

    def __init__(self, verdict: BucketAnswer) -> None:
        super().__init__(f"too many requests: {verdict.limit.name}")
        self.verdict = verdict


class Buckets:
    """The buckets of one process; to be used from one event loop."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, most: int = MOST_BUCKETS
    ) -> None:
        """`clock` gives seconds. Of more than `most` buckets those longest untouched are lost."""
        self.clock = clock
        self._most = most
        self._full_at: dict[str, float] = {}

    def spend(self, key: str, limit: Limit, now: float) -> float | None:
        """Take one token, `now` by the clock; return the seconds until the bucket is full again.

        None, and nothing is taken, where there is no token, or none without waiting: ask `take`.
        """
        full_at = self._full_at.get(key)
        if full_at is None:
            self._keep(key, now + limit.interval, now)
            return limit.interval
        ahead = limit.interval + full_at - now if full_at > now else limit.interval
        if ahead > limit.farthest:
            return None
        self._full_at[key] = now + ahead
        return ahead

    async def take(self, key: str, limit: Limit, *, fails_open: bool = False) -> BucketAnswer:
        """Take one token, if there is one. `fails_open` gives it where Redis can't be asked."""
        return self._take(key, limit, self.clock())

    async def aclose(self) -> None:
        """Say what was taken, so far as others have to know it."""

    def _take(self, key: str, limit: Limit, now: float) -> BucketAnswer:
        ahead = Buckets.spend(self, key, limit, now)
        return self._refusal(key, limit, now) if ahead is None else BucketAnswer(limit, ahead)

    def _refusal(self, key: str, limit: Limit, now: float) -> BucketAnswer:
        """Return what the bucket says without a token; its `wait` is 0 where it has one."""
        ahead = max(0.0, self._full_at.get(key, 0.0) - now)
        beyond = ahead + limit.interval - limit.window
        return BucketAnswer(limit, ahead, beyond if beyond > CLOSE_ENOUGH else 0.0)

    def _keep(self, key: str, full_at: float, now: float) -> None:
        if len(self._full_at) >= self._most and key not in self._full_at:
            self._make_room(now)
        self._full_at[key] = full_at

    def _make_room(self, now: float) -> None:
        """Forget those that are full, which is what an unknown one is; if need be, the oldest."""
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        surplus = len(self._full_at) - self._most * 3 // 4
        for key in list(islice(self._full_at, max(0, surplus))):
            del self._full_at[key]


@lru_cache(REMEMBERED)
def _of_address(kind: str, address: str) -> str:
    return f"{kind}:a:{subscriber(address)}"


class RateLimits:
    """What every caller may ask of this program."""

    def __init__(self, buckets: Buckets, settings: RateLimitSettings) -> None:
        self.buckets = buckets
        self._classes = {
            name: (limit, limit.times(settings.address_factor), limit.times(settings.anonymous))
            for name, limit in limits_of(settings).items()
        }

    async def admit(
        self, kind: str, user_id: str | None, address: str, path: str
    ) -> BucketAnswer | None:
        """Take a token of the caller's buckets for a request of this class, at this address.

        A user pays, and the address too, for all users there; an anonymous caller has a smaller
        bucket by its address. Return what there is to tell, once half of the caller's bucket is
        spent. Raise LimitReached.
        """
        user, whole, anonymous = self._classes[kind]
        of_address = _of_address(kind, address)
        if user_id is not None:
            key, limit = f"{kind}:u:{user_id}", user
        elif path.startswith(OBJECTS):
            key, limit = of_address, whole
        else:
            key, limit = of_address.replace(":a:", ":n:", 1), anonymous
        spend, now, answer = self.buckets.spend, self.buckets.clock(), None
        # No object is made of what most requests are answered.
        if (ahead := spend(key, limit, now)) is None:
            answer = await self._take(kind, key, limit)
            ahead = answer.ahead
        if user_id is not None and spend(of_address, whole, now) is None:
            await self._take(kind, of_address, whole)
        outcome = "fallback" if answer is not None and answer.alone else "allowed"
        DECISIONS.counts[kind, outcome] += 1
        return None if 2 * ahead < limit.window else answer or BucketAnswer(limit, ahead)

    async def _take(self, kind: str, key: str, limit: Limit) -> BucketAnswer:
        # What only reads does no harm for the seconds until Redis is back.
        answer = await self.buckets.take(key, limit, fails_open=kind == "read")
        if answer.wait:
            DECISIONS.counts[kind, "limited"] += 1
            raise LimitReached(answer)
        return answer


def limits_of(settings: RateLimitSettings) -> dict[str, Limit]:
    """Return the limit of a user in each class."""
    rates = {
        "write": settings.write,
        "upload": settings.upload,
        "watch": settings.watch,
        "read": settings.read,
        "live": settings.live,
        "admin": settings.admin,
    }
    return {name: Limit(name, *rate) for name, rate in rates.items()}


def fields(verdict: BucketAnswer) -> dict[bytes, bytes]:
    """Return the header fields that tell of a verdict."""
    limit, seconds = verdict.limit, max(0, round(verdict.ahead))
    left = f'"{limit.name}";r={verdict.remaining};t={seconds}'
    return {POLICY: limit.policy, LEFT: left.encode()}


def too_many(error: LimitReached) -> Problem:
    """Return the problem of a request beyond its limit: when to come back."""
    verdict = error.verdict
    seconds = whole_seconds(verdict.wait)
    told = {name.decode(): value.decode() for name, value in fields(verdict).items()}
    detail = f"Too many requests of the class `{verdict.limit.name}`; come back in {seconds} s."
    return Problem(429, "rate-limited", detail, headers={"Retry-After": str(seconds), **told})


def whole_seconds(seconds: float) -> int:
    """Return seconds as HTTP fields have them: whole, and 1 at least."""
    return max(1, math.ceil(seconds - CLOSE_ENOUGH))
