"""What one user may do per minute, whatever the rate of requests."""

from __future__ import annotations

from uuid import UUID

from infra.rate_limits import DECISIONS, Buckets, Limit, LimitReached
from infra.settings.features import QuotaSettings

MINUTE_SECONDS = 60.0
MOST_REMEMBERED = 50_000


class Recent:
    """What was seen within the last minute or two; bounded, and for one event loop."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._most = most
        # Numbers: the hash of a UUID is computed in Python.
        self._now: set[int] = set()
        self._before: set[int] = set()
        self._until = 0.0

    def has(self, number: int, now: float) -> bool:
        """Return whether the id was seen; `now` in seconds."""
        if now >= self._until or len(self._now) >= self._most:
            self._before, self._now = self._now, set()
            self._until = now + MINUTE_SECONDS
        return number in self._now or number in self._before

    def add(self, number: int) -> None:
        self._now.add(number)


class Quotas:
    """The quotas per minute; a video that was liked and liked again counts once in a minute."""

    def __init__(self, buckets: Buckets, settings: QuotaSettings) -> None:
        comments, liked = settings.comments_per_minute, settings.liked_videos_per_minute
        self._buckets = buckets
        self._comments = Limit("comments", comments, comments)
        self._liked = Limit("liked-videos", liked, liked)
        self._recent = Recent()

    async def comment(self, user_id: str) -> None:
        """Count a comment; raise LimitReached for one too many."""
        await self._take(f"comments:u:{user_id}", self._comments)

    async def like(self, user_id: str, likes_id: UUID) -> None:
        """Count the like of a viewer and a video, by its stream; raise LimitReached."""
        now = self._buckets.clock()
        if self._recent.has(likes_id.int, now):
            return
        key = f"liked:u:{user_id}"
        if self._buckets.spend(key, self._liked, now) is None:
            await self._take(key, self._liked)
        self._recent.add(likes_id.int)

    async def _take(self, key: str, limit: Limit) -> None:
        answer = await self._buckets.take(key, limit)
        if answer.wait:
            DECISIONS.counts[limit.name, "limited"] += 1
            raise LimitReached(answer)
