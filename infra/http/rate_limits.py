"""Rate limits at the edge: who pays for a request, and what they are told.

The fields are those of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` has the quota
and its window in seconds, `RateLimit` what remains of it and in how many seconds it is whole again.
"""

from __future__ import annotations

from functools import lru_cache

from infra.http.problems import Problem
from infra.http.requests import OBJECTS, REMEMBERED, subscriber
from infra.rate_limits import (
    DECISIONS,
    BucketAnswer,
    Buckets,
    Limit,
    LimitReached,
    whole_seconds,
)
from infra.settings.features import RateLimitSettings

POLICY, LEFT = b"ratelimit-policy", b"ratelimit"


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
