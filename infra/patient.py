"""A Redis that may be away: after a failure it is left alone for a while, so that nobody waits."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from prometheus_client import Counter
from redis import RedisError
from redis.asyncio import Redis

log = structlog.get_logger(__name__)

R = TypeVar("R")

# A Redis that hangs takes a second of each question.
AWAY_SECONDS = 5.0


class PatientRedis:
    """For what may be missing; `name` begins what is logged, `failures` counts."""

    def __init__(self, redis: Redis, name: str, failures: Counter) -> None:
        self._redis = redis
        self._away, self._back = f"{name}_away", f"{name}_back"
        self._failures = failures
        self._silent = False
        self._left_alone_until = 0.0

    async def ask(self, question: Callable[[Redis], Awaitable[R]]) -> R | None:
        """The answer; None, without a look, while Redis is away. Never raises RedisError."""
        if time.monotonic() < self._left_alone_until:
            return None
        try:
            answer = await question(self._redis)
        except (RedisError, OSError) as error:
            self._failed(error)
            return None
        if self._silent:
            self._silent = False
            log.info(self._back)
        return answer

    def _failed(self, error: Exception) -> None:
        self._failures.inc()
        self._left_alone_until = time.monotonic() + AWAY_SECONDS
        if not self._silent:
            self._silent = True
            log.warning(self._away, error=f"{type(error).__name__}: {error}")
