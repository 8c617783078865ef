"""Lets a language model order the candidates, within a budget, and checks all that it answers.

The budgets of a day are calls of a user, and of all users. They are counted in Redis for all
processes, and in each process for itself: while Redis is away, or has lost its data, a process
makes no more calls than all processes together may.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple, cast
from uuid import UUID

import structlog
from redis.asyncio import Redis

from infra.cache import OptionalRedis
from infra.cancellation import cancel
from infra.llm.client import LLM_CALLS, LanguageModel, make_language_model
from infra.llm.errors import BadAnswer, LanguageModelError, NotCalled, TimedOut
from infra.metrics import counter
from infra.settings.adapters import LanguageModelSettings
from infra.settings.features import RecommendationSettings
from projections.recommendations.model import Material, RankedVideo
from projections.recommendations.prompt import (
    PROMPT_VERSION,
    SYSTEM,
    Pick,
    Question,
    answer_form,
    clean_reason,
    question,
)

log = structlog.get_logger(__name__)

K = 10
"""Added to each rank: the greater, the less the first places differ (the paper has 60)."""
BLEND_WEIGHT = 0.75
"""The blend's share of a score; the model has the rest."""

PURPOSE = "recommend"
# A sentence of twelve words takes about twenty, an id and the form as many; the rest is room.
TOKENS_PER_PICK = 60
TOKENS_OF_FORM = 50

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

RECOMMENDATION_PICKS = counter(
    "backlot_recommendation_picks",
    "Videos that language models named (kept, unknown, duplicate, surplus), and reason_dropped.",
    ("outcome",),
)
RECOMMENDATION_BUDGET_FAILURES = counter(
    "backlot_recommendation_budget_failures",
    "Times that Redis did not answer for the budgets of the language model's calls.",
)


class RankedByModel(NamedTuple):
    """A candidate in its place in a model's order, and the model's reason if that can be shown."""

    video_id: UUID
    reason: str | None = None


def fuse(blended: Sequence[RankedVideo], ranked: Sequence[RankedByModel]) -> list[RankedVideo]:
    """Return all of `blended`, in the order of BLEND_WEIGHT / (K + rank) of both orders added up.

    A video that the model left out follows the ones that it named, in the blend's order; one that
    the blend does not have, or that was named before, does not count. A reason of the model takes
    the place of the blend's. Equal scores keep the blend's order.

    Why these numbers: let a video's expected gain not rise with its rank in the blend. Then an
    answer in random order, of any length, keeps at least 0.9 of the blend's expected NDCG@10
    whatever those gains are: 0.91 when only the blend's first video is of any use, 0.97 for gains
    of 0.8^rank. The blend in reverse keeps at least 0.86, and 0.98 for such gains. A model that
    knows what the viewer likes adds 0.39 to the NDCG of a mediocre blend, one that half knows
    0.28. A video that has itself put first comes from the 18th place to the 10th, from the 5th to
    the 4th, and never to the first. The tests of this module measure all that.
    """
    known = {each.video_id for each in blended}
    reasons: dict[UUID, str | None] = {}
    for named in ranked:
        if named.video_id in known:
            reasons.setdefault(named.video_id, named.reason)
    in_order = dict.fromkeys([*reasons, *(each.video_id for each in blended)])
    ranks = {video: rank for rank, video in enumerate(in_order, 1)}
    fused = []
    for rank, each in enumerate(blended, 1):
        score = BLEND_WEIGHT / (K + rank) + (1 - BLEND_WEIGHT) / (K + ranks[each.video_id])
        if (reason := reasons.get(each.video_id)) is not None:
            told = replace(each, score=score, reason=reason, because=None, by_model=True)
            fused.append(told)
        else:
            fused.append(replace(each, score=score))
    # The sort is stable.
    return sorted(fused, key=lambda each: -each.score)


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
        # What this process has counted of one day: no more keys than calls that all may make.
        self._day, self._own = clock().date(), Counter[str]()
        self._told: date | None = None

    @asynccontextmanager
    async def call(self, user_id: str) -> AsyncIterator[None]:
        """Count the call that this block makes for a user, unless NotCalled leaves the block.

        Raise BudgetSpent, or UserBudgetSpent, instead of entering it. Never raises RedisError.
        """
        today = self._clock().astimezone(UTC).date()
        if self._day != today:
            self._day, self._own = today, Counter()
        own, keys = self._own, keys_of(today, user_id)
        # Before anything is awaited: those who ask at once must not all find the last call free.
        limits = enumerate(zip(keys, self._most, strict=True), 1)
        self._refuse(next((place for place, (key, most) in limits if own[key] >= most), 0))
        own.update(keys)
        spent = await self._redis.ask(
            lambda _: self._take(keys=keys, args=[*self._most, KEY_SECONDS])
        )
        if spent:
            _give_back(own, keys)
            self._refuse(cast("int", spent))
        try:
            yield
        except NotCalled:
            _give_back(own, keys)
            if spent is not None:
                # Only what was counted there: Redis may have come back meanwhile.
                await self._redis.ask(lambda _: self._give_back(keys=keys))
            raise

    def _refuse(self, spent: int) -> None:
        """Raise the error of the budget that is spent, given by its place; 0: none is."""
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


def _give_back(counts: Counter[str], keys: Sequence[str]) -> None:
    counts.subtract(keys)
    for key in keys:
        if not counts[key]:
            del counts[key]


class NothingUsable(BadAnswer):
    """The model named no candidate at all."""

    outcome = "useless"
    retryable = True


class Ranker:
    """Orders candidates by `model`; to be used from one event loop."""

    def __init__(self, llm: LanguageModel, model: str, budget: Budget | None = None) -> None:
        """Without a budget any number of calls is made."""
        self._llm = llm
        self._model = model
        self._budget = budget
        self._running: set[asyncio.Task[list[RankedByModel]]] = set()

    async def rank(
        self, material: Material, limit: int, seconds: float | None = None
    ) -> list[RankedByModel]:
        """Return up to `limit` (and MOST_PICKS) of the candidates, the best for the user first.

        Each is a candidate of `material` and named once. Where nothing is known of the candidates,
        return none, and make no call. Raise TimedOut after `seconds`, and other kinds of
        LanguageModelError, BudgetSpent and NothingUsable among them.
        """
        asked = question(material, limit)
        if not asked.candidates:
            return []
        if seconds is not None and seconds <= 0:
            raise TimedOut("There is no time left to ask the language model.")
        call = asyncio.create_task(self._ask(asked, material.profile.user_id))
        self._running.add(call)
        call.add_done_callback(self._ended)
        # Not cancelled when it is late, or when nobody waits any more: it is paid for already, and
        # the circuit breaker has to learn that the provider is slow.
        await asyncio.wait({call}, timeout=seconds)
        if not call.done():
            raise TimedOut("The language model did not answer in time.")
        return call.result()

    async def aclose(self) -> None:
        """Cancel the calls under way, and close the connections."""
        await cancel(*self._running)
        await self._llm.aclose()

    async def _ask(self, asked: Question, user_id: str) -> list[RankedByModel]:
        async with nullcontext() if self._budget is None else self._budget.call(user_id):
            parsed = await self._llm.parse(
                SYSTEM,
                asked.text,
                answer_form(len(asked.candidates)),
                model=self._model,
                purpose=PURPOSE,
                max_output_tokens=TOKENS_OF_FORM + TOKENS_PER_PICK * asked.limit,
            )
            found = check_picks(parsed.answer.picks, asked)
            if not found:
                raise NothingUsable("The language model named none of the candidates.")
            return found

    def _ended(self, call: asyncio.Task[list[RankedByModel]]) -> None:
        self._running.discard(call)
        error = None if call.cancelled() else call.exception()
        # Failures of the provider were told where they were seen.
        if error is not None and not isinstance(error, LanguageModelError):
            log.error("recommendation_call_broke", exc_info=error)


def check_picks(picks: Iterable[Pick], asked: Question) -> list[RankedByModel]:
    """Return the candidates that a model named, each once, `limit` at most, with their reasons."""
    found: dict[str, RankedByModel] = {}
    outcomes: Counter[str] = Counter()
    for pick in picks:
        if pick.id not in asked.candidates:
            outcomes["unknown"] += 1
        elif pick.id in found:
            outcomes["duplicate"] += 1
        elif len(found) >= asked.limit:
            outcomes["surplus"] += 1
        else:
            reason = clean_reason(pick.reason)
            found[pick.id] = RankedByModel(asked.candidates[pick.id], reason)
            outcomes.update(["kept"] if reason else ["kept", "reason_dropped"])
    for outcome, count in outcomes.items():
        RECOMMENDATION_PICKS.labels(outcome).inc(count)
    if outcomes.keys() - {"kept"}:
        log.info("recommendation_picks_dropped", prompt=PROMPT_VERSION, **outcomes)
    return list(found.values())


def make_ranker(
    settings: RecommendationSettings, llm_settings: LanguageModelSettings, redis: Redis
) -> Ranker | None:
    """Return the configured ranker; None where no language model is, or where none is to be asked.

    Its way to the provider is its own: a provider that is too slow for somebody who waits may be
    fast enough for tasks. Raise SettingsError for a key that can't be sent.
    """
    if not settings.use_llm:
        return None
    seconds = min(settings.timeout_seconds, llm_settings.timeout_seconds)
    llm = make_language_model(llm_settings.model_copy(update={"timeout_seconds": seconds}))
    if llm is None:
        return None
    budget = Budget(redis, per_user=settings.user_calls_per_day, for_all=settings.calls_per_day)
    return Ranker(llm, settings.model, budget)
