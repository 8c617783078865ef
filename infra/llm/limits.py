"""How often language models may be called, a minute and a day, and what their calls have taken.

Both limits hold for the installation: what was called is counted in Redis, for all processes. Each
process counts for itself beside it: while Redis is away, or has lost its data, none makes more
calls than all of them together may.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import NamedTuple, cast

import orjson
import structlog
from redis.asyncio import Redis

from infra.cache import OptionalRedis
from infra.llm.errors import BudgetSpent, NotCalled, TooManyCalls, UserBudgetSpent
from infra.llm.spending import Spent
from infra.metrics import counter

log = structlog.get_logger(__name__)

# Sums of fractions of a second are not exact; nobody is turned away for that.
ROUNDING = 0.000_001
PACE_KEY = "backlot:llm:pace"
# The generic cell rate algorithm (ITU-T I.371), by the clock of Redis. KEYS: when the next call is
# due, in microseconds. ARGV: those between two calls, those of a burst, and the longest pause.
# Answers the pause before the call; below zero, that there is no turn for so much longer.
TURN = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local pause = math.max(due + ARGV[1] - ARGV[2] - now, 0)
if pause > tonumber(ARGV[3]) then return ARGV[3] - pause end
due = due + ARGV[1]
redis.call('SET', KEYS[1], string.format('%d', due), 'PX', math.ceil((due - now) / 1000) + 1000)
return pause
"""
MICRO = 1_000_000

# KEYS: the day's calls, and the user's of them. ARGV: the most of each, seconds to live.
# Answers which of the two is spent, as its place in KEYS; 0 when the call was counted.
TAKE = """
for place, key in ipairs(KEYS) do
    if tonumber(redis.call('GET', key) or '0') >= tonumber(ARGV[place + 1]) then
        return place
    end
end
for _, key in ipairs(KEYS) do
    redis.call('INCR', key)
    redis.call('EXPIRE', key, ARGV[1])
end
return 0
"""
# A count that is gone stays so: below zero it would be a gift, and never expire.
GIVE_BACK = """
for _, key in ipairs(KEYS) do
    if tonumber(redis.call('GET', key) or '0') > 0 then redis.call('DECR', key) end
end
"""
# Longer than the day, for processes whose clocks differ.
KEY_SECONDS = 2 * 86_400

MILLION = 1_000_000

LLM_CALLS = counter(
    "backlot_llm_calls",
    "Calls of language models, by purpose and outcome (answered, or what went wrong).",
    ("purpose", "outcome"),
)
LLM_TOKENS = counter(
    "backlot_llm_tokens",
    "Tokens that providers counted, by model and direction (input, output).",
    ("model", "direction"),
)
LLM_COST_USD = counter(
    "backlot_llm_cost_usd",
    "What those tokens cost in US dollars, for models with a price in LLM_PRICES.",
    ("model",),
)
LLM_LIMIT_FAILURES = counter(
    "backlot_llm_limit_failures",
    "Times that Redis did not answer for the pace or the budgets of calls of language models.",
)


class Pace:
    """So many calls a minute; a second's worth of them (one at least) may be made at once.

    To be used from one event loop; turns are given in the order of asking.
    """

    def __init__(
        self,
        calls_per_minute: int,
        redis: Redis | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With a Redis, all processes together; each by its own `clock` while that is away."""
        self._interval = 60.0 / calls_per_minute
        self._burst = max(1.0, calls_per_minute / 60.0) * self._interval
        self._clock = clock
        self._due = clock()
        self._redis = None
        if redis is not None:
            self._redis = OptionalRedis(redis, "llm_pace", LLM_LIMIT_FAILURES)
            self._turn = redis.register_script(TURN)

    async def turn(self, most: float) -> None:
        """Return when a call may be made; TooManyCalls at once when not within `most` seconds."""
        pause = await self._shared_pause(most)
        if pause is None:
            pause = self._own_pause(most)
        if pause < 0:
            raise TooManyCalls(
                "More calls of the language model wait than LLM_CALLS_PER_MINUTE lets through.",
                retry_after=-pause,
            )
        if pause > 0:
            await asyncio.sleep(pause)

    async def _shared_pause(self, most: float) -> float | None:
        """Return the seconds before the call; below zero, how much too many they are."""
        if self._redis is None:
            return None
        given = [round(each * MICRO) for each in (self._interval, self._burst, most)]
        pause = await self._redis.ask(lambda _: self._turn(keys=[PACE_KEY], args=given))
        return None if pause is None else cast("int", pause) / MICRO

    def _own_pause(self, most: float) -> float:
        now = self._clock()
        due = max(self._due, now)
        pause = max(due + self._interval - self._burst - now, 0.0)
        if pause > most + ROUNDING:
            return most - pause
        self._due = due + self._interval
        return pause


def keys_of(feature: str, day: date, user_id: str | None) -> list[str]:
    """Return where a day's calls are counted, and a user's of them: one slot of a cluster.

    `backlot:recommendations:{2026-03-14}:calls` and the same with the user's digest behind it.
    """
    whole = f"backlot:{feature}:{{{day.isoformat()}}}:calls"
    if user_id is None:
        return [whole]
    return [whole, f"{whole}:{hashlib.sha256(user_id.encode()).hexdigest()[:32]}"]


class Budget:
    """Counts calls before they are made; to be used from one event loop."""

    def __init__(
        self,
        redis: Redis,
        feature: str,
        *,
        per_user: int,
        for_all: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """The most calls of a day (UTC) for a feature, for each user and for all of them."""
        self._redis = OptionalRedis(redis, f"{feature}_budget", LLM_LIMIT_FAILURES)
        self._feature = feature
        self._most = (for_all, per_user)
        self._clock = clock
        self._take = redis.register_script(TAKE)
        self._give_back = redis.register_script(GIVE_BACK)
        # What this process has counted of one day: no more keys than calls that all may make.
        self._day, self._own = clock().date(), Counter[str]()
        self._told: date | None = None

    @asynccontextmanager
    async def call(self, user_id: str | None, purpose: str) -> AsyncIterator[None]:
        """Count the call that this block makes for a user, unless NotCalled leaves the block.

        Without a user it counts among those of all only. `purpose` is as in the metric of calls.

        Raise BudgetSpent, or UserBudgetSpent, instead of entering it. Never raises RedisError.
        """
        today = self._clock().astimezone(UTC).date()
        if self._day != today:
            self._day, self._own = today, Counter()
        own, keys = self._own, keys_of(self._feature, today, user_id)
        # Before anything is awaited: those who ask at once must not all find the last call free.
        limits = list(zip(keys, self._most, strict=False))
        spent = next((place for place, (key, most) in enumerate(limits, 1) if own[key] >= most), 0)
        self._refuse(spent, purpose, user_id)
        own.update(keys)
        args = [KEY_SECONDS, *self._most]
        taken = await self._redis.ask(lambda _: self._take(keys=keys, args=args))
        if taken:
            _give_back(own, keys)
            self._refuse(cast("int", taken), purpose, user_id)
        try:
            yield
        except NotCalled:
            _give_back(own, keys)
            if taken is not None:
                # Only what was counted there: Redis may have come back meanwhile.
                await self._redis.ask(lambda _: self._give_back(keys=keys))
            raise

    def _refuse(self, spent: int, purpose: str, user_id: str | None) -> None:
        """Raise the error of the budget that is spent, given by its place; 0: none is."""
        if not spent:
            return
        now = self._clock().astimezone(UTC)
        tomorrow = datetime.combine(now.date() + timedelta(1), time_of_day.min, UTC)
        text = "The calls of the language model for today have been made."
        error = (BudgetSpent, UserBudgetSpent)[spent - 1](text, (tomorrow - now).total_seconds())
        LLM_CALLS.labels(purpose, error.outcome).inc()
        if isinstance(error, UserBudgetSpent):
            error.user_id = user_id
        elif self._told != now.date():
            self._told = now.date()
            log.warning("llm_budget_spent", feature=self._feature, calls_per_day=self._most[0])
        raise error


def _give_back(counts: Counter[str], keys: Sequence[str]) -> None:
    counts.subtract(keys)
    for key in keys:
        if not counts[key]:
            del counts[key]


class Usage(NamedTuple):
    """Tokens of one call; 0 where the provider did not say."""

    input_tokens: int
    output_tokens: int


def usage_of(body: bytes) -> Usage:
    """Return what a response says that it took, whether its answer can be used or not."""
    try:
        usage = orjson.loads(body)["usage"]
        # Embeddings have no output that would be counted.
        answered = usage.get("completion_tokens", 0)
        return Usage(int(usage["prompt_tokens"]), int(answered))
    except (AttributeError, LookupError, TypeError, ValueError):
        # Servers may leave it out, and an answer in no known form is told about elsewhere.
        return Usage(0, 0)


def count_usage(usage: Usage, model: str, price: tuple[float, float] | None) -> Spent:
    """Count the tokens, and their cost where the model's price is known (per million tokens).

    Return what the call took.
    """
    spent = Spent(1, 0, max(usage.input_tokens, 0), max(usage.output_tokens, 0))
    LLM_TOKENS.labels(model, "input").inc(spent.input_tokens)
    LLM_TOKENS.labels(model, "output").inc(spent.output_tokens)
    if price is not None:
        cost = usage.input_tokens * price[0] + usage.output_tokens * price[1]
        spent.cost_usd = max(cost, 0.0) / MILLION
        LLM_COST_USD.labels(model).inc(spent.cost_usd)
    return spent
