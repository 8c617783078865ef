"""Lets a language model order the candidates, within a budget, and checks all that it answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple
from uuid import UUID

import structlog
from redis.asyncio import Redis

from infra.cancellation import cancel
from infra.llm.client import LanguageModel, make_language_model
from infra.llm.errors import BadAnswer, LanguageModelError, TimedOut
from infra.llm.limits import Budget
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

RECOMMENDATION_PICKS = counter(
    "backlot_recommendation_picks",
    "Videos that language models named (kept, unknown, duplicate, surplus), and reason_dropped.",
    ("outcome",),
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
        budget = nullcontext() if self._budget is None else self._budget.call(user_id, PURPOSE)
        async with budget:
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
    llm_settings = llm_settings.model_copy(update={"timeout_seconds": seconds})
    llm = make_language_model(llm_settings, redis)
    if llm is None:
        return None
    per_user, for_all = settings.user_calls_per_day, settings.calls_per_day
    budget = Budget(redis, "recommendations", per_user=per_user, for_all=for_all)
    return Ranker(llm, settings.model, budget)
