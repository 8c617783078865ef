"""The budgets of a day: calls of the language model for recommendations, of a user and of all.

Counted in Redis for all processes, and in each process for itself: while Redis is away, or has
lost its data, a process makes no more calls than all together may.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import cast

import structlog
from redis.asyncio import Redis

from infra.llm.client import LLM_CALLS
from infra.llm.errors import NotCalled
from infra.metrics import counter
from infra.redis import OptionalRedis
from infra.settings.features import RecommendationSettings

log = structlog.get_logger(__name__)

# KEYS: the day's calls, and the user's of them. ARGV: the most of each, seconds to live.
# Answers which of the two is spent, as its place in KEYS; 0 when the call was counted.
TAKE = """
for place = 1, 2 do
    if tonumber(redis.call('GET', KEYS[place]) or '0') >= tonumber(ARGV[place]) then
        return place
    end
end
for place = 1, 2 do
    redis.call('INCR', KEYS[place])
    redis.call('EXPIRE', KEYS[place], ARGV[3])
end
return 0
"""
# A count that is gone stays so: below zero it would be a gift, and never expire.
GIVE_BACK = """
for place = 1, 2 do
    if tonumber(redis.call('GET', KEYS[place]) or '0') > 0 then redis.call('DECR', KEYS[place]) end
end
"""
# Longer than the day, for processes whose clocks differ.
KEY_SECONDS = 2 * 86_400

RECOMMENDATION_BUDGET_FAILURES = counter(
    "backlot_recommendation_budget_failures",
    "Times that Redis did not answer for the budgets of the language model's calls.",
)


class BudgetSpent(NotCalled):
    """The calls of all users for today have been made; `retry_after` is the rest of the day."""

    outcome = "budget_spent"


class UserBudgetSpent(BudgetSpent):
    """The user's calls for today have been made."""

    outcome = "user_budget_spent"


SPENT: tuple[type[BudgetSpent], ...] = (BudgetSpent, UserBudgetSpent)


def keys_of(day: date, user_id: str) -> list[str]:
    """Return where a day's calls are counted, and a user's of them: one slot of a cluster.

    `backlot:recommendations:{2026-03-14}:calls` and the same with the user's digest behind it.
    """
    digest = hashlib.sha256(user_id.encode()).hexdigest()[:32]
    whole = f"backlot:recommendations:{{{day.isoformat()}}}:calls"
    return [whole, f"{whole}:{digest}"]


@dataclass
class Calls:
    """What this process has counted of one day: no more keys than calls that all may make."""

    day: date
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, keys: list[str], most: tuple[int, int]) -> int:
        """Count a call, and return which budget is spent, as TAKE does."""
        for place, (key, limit) in enumerate(zip(keys, most, strict=True), 1):
            if self.counts[key] >= limit:
                return place
        self.counts.update(keys)
        return 0

    def give_back(self, keys: list[str]) -> None:
        """Undo a `take`."""
        for key in keys:
            self.counts[key] -= 1
            if not self.counts[key]:
                del self.counts[key]


class Budget:
    """Counts calls before they are made; to be used from one event loop."""

    def __init__(
        self,
        redis: Redis,
        *,
        per_user: int,
        for_all: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """The most calls of a day (UTC), for each user and for all of them."""
        self._redis = OptionalRedis(redis, "recommendation_budget", RECOMMENDATION_BUDGET_FAILURES)
        self._most = (for_all, per_user)
        self._clock = clock
        self._take = redis.register_script(TAKE)
        self._give_back = redis.register_script(GIVE_BACK)
        self._own = Calls(clock().date())
        self._told: date | None = None

    @classmethod
    def from_settings(cls, settings: RecommendationSettings, redis: Redis) -> Budget:
        return cls(redis, per_user=settings.user_calls_per_day, for_all=settings.calls_per_day)

    @asynccontextmanager
    async def call(self, user_id: str) -> AsyncIterator[None]:
        """One call for a user, made in this block; it does not count if NotCalled leaves it.

        Raise BudgetSpent, or UserBudgetSpent, instead of entering it. Never raises RedisError.
        """
        own = self._of_today()
        keys = keys_of(own.day, user_id)
        # Before anything is awaited: those who ask at once must not all find the last call free.
        self._refuse(own.take(keys, self._most))
        spent = await self._redis.ask(
            lambda _: self._take(keys=keys, args=[*self._most, KEY_SECONDS])
        )
        if spent:
            own.give_back(keys)
            self._refuse(cast("int", spent))
        try:
            yield
        except NotCalled:
            own.give_back(keys)
            if spent is not None:
                # Only what was counted there: Redis may have come back meanwhile.
                await self._redis.ask(lambda _: self._give_back(keys=keys))
            raise

    def _of_today(self) -> Calls:
        today = self._clock().astimezone(UTC).date()
        if self._own.day != today:
            self._own = Calls(today)
        return self._own

    def _refuse(self, spent: int) -> None:
        """Raise what says which budget is spent: its place, 0 for none."""
        if not spent:
            return
        error = SPENT[spent - 1]
        LLM_CALLS.labels("recommend", error.outcome).inc()
        now = self._clock().astimezone(UTC)
        if error is BudgetSpent and self._told != now.date():
            self._told = now.date()
            log.warning("recommendation_budget_spent", calls_per_day=self._most[0])
        tomorrow = datetime.combine(now.date() + timedelta(1), time.min, UTC)
        raise error(
            "The calls of the language model for today have been made.",
            retry_after=(tomorrow - now).total_seconds(),
        )
