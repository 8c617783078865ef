"""Like counters in Redis: each is a count, and the position in the log that the count includes.

A counter is only ever replaced by a newer one, so that telling one twice, late or out of order
changes nothing, and whatever is missing can be filled in by whoever notices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

import redis.asyncio
from redis import Redis
from redis.commands.core import Script

PREFIX = "video:likes:"
PUBLISHED = "backlot:likes:published"
"""The position up to which every change of a count has been put into its counter."""

# KEYS: the counter. ARGV: count, position, seconds to live. One key, so any slot of a cluster.
PUT = """
local held = tonumber(redis.call('HGET', KEYS[1], 'position') or '-1')
if held >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'count', ARGV[1], 'position', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
# The same at an equal position too: for a read model that was built again.
CORRECT = PUT.replace("held >= ", "held > ")
ADVANCE = """
if tonumber(redis.call('GET', KEYS[1]) or '-1') < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], ARGV[1])
end
"""
GONE = -1
"""The count of a removed video: nothing older can bring its counter back."""

SCAN_KEYS = 1_000


class Counter(NamedTuple):
    """How many like a video, and the position in the log up to which that counts."""

    likes: int
    position: int


def key_of(video_id: UUID) -> str:
    """Where a video's counter lies."""
    return f"{PREFIX}{video_id}"


class Counters:
    """The counters as their writer sees them; blocks, and raises redis.RedisError."""

    def __init__(self, client: Redis, ttl_seconds: int) -> None:
        """A counter that is not put for `ttl_seconds` expires."""
        self._client = client
        self._ttl = ttl_seconds
        self._put = client.register_script(PUT)
        self._correct = client.register_script(CORRECT)
        self._advance = client.register_script(ADVANCE)

    def published(self) -> int | None:
        """How far counters are known to be right; None where nothing is known."""
        value = cast("bytes | None", self._client.get(PUBLISHED))
        return None if value is None else int(value)

    def publish(self, counters: Iterable[tuple[UUID, Counter]], until: int) -> None:
        """Put these counters, which hold every change up to a position, and say so."""
        self.put(counters)
        self._advance(keys=[PUBLISHED], args=[until])

    def put(self, counters: Iterable[tuple[UUID, Counter]]) -> None:
        """Put what is newer than what is there, in one pipeline."""
        self._send(self._put, counters)

    def correct(self, counters: Iterable[tuple[UUID, Counter]]) -> None:
        """Put what is at least as new as what is there, which may have been counted wrongly."""
        self._send(self._correct, counters)

    def _send(self, script: Script, counters: Iterable[tuple[UUID, Counter]]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for video_id, counter in counters:
                script(keys=[key_of(video_id)], args=[*counter, self._ttl], client=pipe)
            pipe.execute()

    def get(self, videos: Sequence[UUID]) -> list[Counter | None]:
        """The counters of these videos, None for those that are not there."""
        with self._client.pipeline(transaction=False) as pipe:
            for video_id in videos:
                pipe.hmget(key_of(video_id), "count", "position")
            return [_counter(row) for row in pipe.execute()]

    def all_videos(self) -> Iterable[list[UUID]]:
        """The videos that have a counter, some at a time; foreign keys are passed over."""
        cursor = 0
        while True:
            cursor, keys = cast(
                "tuple[int, list[bytes]]",
                self._client.scan(cursor, match=f"{PREFIX}*", count=SCAN_KEYS),
            )
            yield [video for key in keys if (video := _video(key)) is not None]
            if cursor == 0:
                return

    def drop(self, videos: Sequence[UUID]) -> None:
        """Forget these counters; they are filled in again when somebody asks."""
        if videos:
            self._client.delete(*map(key_of, videos))

    def forget(self) -> None:
        """Forget every counter: they belong to another log."""
        self._client.delete(PUBLISHED)
        for videos in self.all_videos():
            self.drop(videos)


class AsyncCounters:
    """The counters as queries see them; raises redis.RedisError."""

    def __init__(self, client: redis.asyncio.Redis, ttl_seconds: int) -> None:
        self._client = client
        self._ttl = ttl_seconds
        self._put = client.register_script(PUT)

    async def get(self, videos: Sequence[UUID]) -> tuple[list[Counter | None], int]:
        """The counters of these videos, and how far all counters are known to be right."""
        async with self._client.pipeline(transaction=False) as pipe:
            # First: what is published while the counters are read only makes them newer.
            _ = pipe.get(PUBLISHED)
            for video_id in videos:
                _ = pipe.hmget(key_of(video_id), "count", "position")
            published, *rows = await pipe.execute()
        return [_counter(row) for row in rows], int(published or 0)

    async def fill(self, video_id: UUID, counter: Counter) -> bool:
        """Put a counter that was missing; False if it may be stale by now, and is not there.

        Between looking and putting, a newer counter may have come and gone. Then the position
        published is newer than ours.
        """
        key = key_of(video_id)
        if not await self._put(keys=[key], args=[*counter, self._ttl]):
            return True
        published = cast("bytes | None", await self._client.get(PUBLISHED))
        if int(published or 0) <= counter.position:
            return True
        await self._client.delete(key)
        return False


def _counter(row: Any) -> Counter | None:
    count, position = row
    return None if count is None or position is None else Counter(int(count), int(position))


def _video(key: bytes) -> UUID | None:
    try:
        return UUID(key.decode().removeprefix(PREFIX))
    except ValueError:
        return None
