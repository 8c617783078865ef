"""What one user may do per minute, whatever the rate of requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from infra.rate_limits import Buckets, Limit
from infra.settings.features import QuotaSettings

MINUTE_SECONDS = 60.0
MOST_REMEMBERED = 50_000


class Recent:
    """What was seen within the last minute or two; bounded, and for one event loop."""

    def __init__(self, clock: Callable[[], float], most: int = MOST_REMEMBERED) -> None:
        self._clock = clock
        self._most = most
        self._now: set[UUID] = set()
        self._before: set[UUID] = set()
        self._until = 0.0

    def __contains__(self, item: UUID) -> bool:
        if self._clock() >= self._until or len(self._now) >= self._most:
            self._before, self._now = self._now, set()
            self._until = self._clock() + MINUTE_SECONDS
        return item in self._now or item in self._before

    def add(self, item: UUID) -> None:
        self._now.add(item)


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
        await self._take(f"comments:u:{user_id}", self._comments)

    async def like(self, user_id: str, likes_id: UUID) -> None:
        """Count the like of a viewer and a video, by its stream; raise LimitReached."""
        if likes_id in self._recent:
            return
        await self._take(f"liked:u:{user_id}", self._liked)
        self._recent.add(likes_id)

    async def _take(self, key: str, limit: Limit) -> None:
        verdict = await self._buckets.take(key, limit)
        verdict.record()
        verdict.require()
