"""What one user may do per minute, whatever the rate of requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from engine.personal_data import PersonalKeys, Unsearched
from infra.rate_limits import PREFIX, BucketAnswer, Buckets, Limit, LimitReached
from infra.settings.features import QuotaSettings

MINUTE_SECONDS = 60.0
MOST_REMEMBERED = 50_000


class Recent:
    """What was seen within the last minute or two; bounded, and for one event loop."""

    def __init__(self, clock: Callable[[], float], most: int = MOST_REMEMBERED) -> None:
        self._clock = clock
        self._most = most
        self._now: set[int] = set()
        self._before: set[int] = set()
        self._until = 0.0

    def __contains__(self, item: UUID) -> bool:
        now = self._clock()
        if now >= self._until or len(self._now) >= self._most:
            self._before, self._now = self._now, set()
            self._until = now + MINUTE_SECONDS
        # Numbers: the hash of a UUID is computed in Python.
        return item.int in self._now or item.int in self._before

    def add(self, item: UUID) -> None:
        self._now.add(item.int)


PERSONAL = (
    PersonalKeys(
        name="redis.rate_limits",
        holds="how much somebody has asked for lately, by class of request",
        kept="until the bucket is full again: minutes",
        pattern=f"{PREFIX}*:u:{{subject}}",
    ),
    Unsearched(
        name="redis.rate_limits_by_address",
        holds="how much was asked for lately from an address",
        kept="until the bucket is full again: minutes",
        where="Redis",
        keys=(f"{PREFIX}*:a:*", f"{PREFIX}*:n:*"),
    ),
)


class Quotas:
    """The quotas per minute; a video that was liked and liked again counts once in a minute."""

    def __init__(
        self,
        buckets: Buckets,
        settings: QuotaSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        comments, liked = settings.comments_per_minute, settings.liked_videos_per_minute
        self._buckets = buckets
        self._comments = Limit("comments", comments, comments)
        self._liked = Limit("liked-videos", liked, liked)
        self._recent = Recent(clock)

    async def comment(self, user_id: str) -> None:
        """Count a comment; raise LimitReached for one too many."""
        self._admit(await self._buckets.take(f"comments:u:{user_id}", self._comments))

    async def like(self, user_id: str, likes_id: UUID) -> None:
        """Count the like of a viewer and a video, by its stream; raise LimitReached."""
        if likes_id in self._recent:
            return
        key, limit = f"liked:u:{user_id}", self._liked
        verdict = self._buckets.take_at_once(key, limit) or await self._buckets.take(key, limit)
        self._admit(verdict)
        self._recent.add(likes_id)

    def _admit(self, verdict: BucketAnswer) -> None:
        if verdict.wait:
            verdict.record()
            raise LimitReached(verdict)
