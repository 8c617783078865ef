"""Translations in Redis, which may be away at any moment: then there are none."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError
from redis import RedisError
from redis.asyncio import Redis

from infra.metrics import counter
from workers.translation.prompt import PROMPT_VERSION
from workers.translation.translator import Translation

log = structlog.get_logger(__name__)

R = TypeVar("R")

FORM = TypeAdapter(Translation)
# A Redis that hangs takes a second of each comment: it is left alone for so long.
AWAY_SECONDS = 5.0

TRANSLATION_CACHE_FAILURES = counter(
    "backlot_translation_cache_failures",
    "Times that the translation cache could not be asked, or held something unreadable.",
)


class TranslationStore:
    """Values of `ttl` seconds; nothing here raises RedisError. To be used from one event loop."""

    def __init__(
        self, redis: Redis, ttl: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = redis
        self._ttl_ms = max(round(ttl * 1000), 1)
        self._clock = clock
        self._silent = False
        self._left_alone_until = clock()

    @property
    def away(self) -> bool:
        """Whether Redis failed a moment ago, and is not asked."""
        return self._clock() < self._left_alone_until

    async def load(self, key: str) -> Translation | None:
        """What lies there, if it was made with the present prompt."""
        value = await self._asked(lambda: self._redis.get(key))
        if value is None:
            return None
        try:
            found = FORM.validate_json(value)
        except ValidationError:
            TRANSLATION_CACHE_FAILURES.inc()
            log.warning("translation_cache_unreadable", key=key)
            return None
        return found if found.prompt_version == PROMPT_VERSION else None

    async def save(self, key: str, translation: Translation) -> None:
        """Put it there, or not."""
        value = FORM.dump_json(translation)
        await self._asked(lambda: self._redis.set(key, value, px=self._ttl_ms))

    def failed(self, error: Exception) -> None:
        """Leave Redis alone for a while; logged when it begins, not for each comment."""
        TRANSLATION_CACHE_FAILURES.inc()
        self._left_alone_until = self._clock() + AWAY_SECONDS
        if not self._silent:
            self._silent = True
            log.warning("translation_cache_away", error=f"{type(error).__name__}: {error}")

    async def _asked(self, question: Callable[[], Awaitable[R]]) -> R | None:
        if self.away:
            return None
        try:
            answer = await question()
        except (RedisError, OSError) as error:
            self.failed(error)
            return None
        if self._silent:
            self._silent = False
            log.info("translation_cache_back")
        return answer
