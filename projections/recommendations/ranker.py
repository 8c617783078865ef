"""Lets a language model order the candidates, and checks all that it answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import structlog
from redis.asyncio import Redis

from infra.cancellation import cancel
from infra.llm.client import LanguageModel, make_language_model
from infra.llm.errors import BadAnswer, LanguageModelError, TimedOut
from infra.metrics import counter
from infra.settings.adapters import LanguageModelSettings
from infra.settings.features import RecommendationSettings
from projections.recommendations.budget import Budget
from projections.recommendations.model import Material, Recommended
from projections.recommendations.prompt import (
    PROMPT_VERSION,
    SYSTEM,
    Pick,
    Question,
    answer_form,
    question,
    shown,
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


@dataclass(frozen=True, slots=True)
class RankedByModel:
    """A candidate in its place in a model's order, and the model's reason if that can be shown."""

    video_id: UUID
    reason: str | None = None


def fuse(blended: Sequence[Recommended], ranked: Sequence[RankedByModel]) -> list[Recommended]:
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
    reasons = _named(blended, ranked)
    in_order = dict.fromkeys([*reasons, *(each.video_id for each in blended)])
    ranks = {video: rank for rank, video in enumerate(in_order, 1)}
    scored = [
        _worded(each, _score(rank, ranks[each.video_id]), reasons.get(each.video_id))
        for rank, each in enumerate(blended, 1)
    ]
    # The sort is stable.
    return sorted(scored, key=lambda each: -each.score)


def _worded(each: Recommended, score: float, reason: str | None) -> Recommended:
    """Return the recommendation with its new score, and with the model's reason if there is one."""
    if reason is None:
        return replace(each, score=score)
    return Recommended(each.video_id, score, reason, by_model=True)


def _named(
    blended: Sequence[Recommended], ranked: Sequence[RankedByModel]
) -> dict[UUID, str | None]:
    """Return the model's reason for each video of the blend, in its order; the first counts."""
    known = {each.video_id for each in blended}
    named: dict[UUID, str | None] = {}
    for each in ranked:
        if each.video_id in known:
            named.setdefault(each.video_id, each.reason)
    return named


def _score(in_blend: int, by_model: int) -> float:
    return BLEND_WEIGHT / (K + in_blend) + (1 - BLEND_WEIGHT) / (K + by_model)


Asked = asyncio.Task[list[RankedByModel]]


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
        self._running: set[Asked] = set()

    async def rank(
        self, material: Material, limit: int, seconds: float | None = None
    ) -> list[RankedByModel]:
        """Up to `limit` (and MOST_PICKS) of the candidates, the best for the user first.

        Takes up to `seconds`; then TimedOut. Each is a candidate of `material` and named once. No
        call is made for candidates that nothing is known of: empty. Raise LanguageModelError,
        BudgetSpent and NothingUsable among them.
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
        if self._budget is None:
            return await self._call(asked)
        async with self._budget.call(user_id):
            return await self._call(asked)

    async def _call(self, asked: Question) -> list[RankedByModel]:
        parsed = await self._llm.parse(
            SYSTEM,
            asked.text,
            answer_form(len(asked.candidates)),
            model=self._model,
            purpose=PURPOSE,
            max_output_tokens=TOKENS_OF_FORM + TOKENS_PER_PICK * asked.limit,
        )
        found = checked(parsed.answer.picks, asked)
        if not found:
            raise NothingUsable("The language model named none of the candidates.")
        return found

    def _ended(self, call: Asked) -> None:
        self._running.discard(call)
        error = None if call.cancelled() else call.exception()
        # Failures of the provider were told where they were seen.
        if error is not None and not isinstance(error, LanguageModelError):
            log.error("recommendation_call_broke", exc_info=error)


def checked(picks: Iterable[Pick], asked: Question) -> list[RankedByModel]:
    """Return the candidates that a model named, each once, `limit` at most, with their reasons."""
    found: dict[str, RankedByModel] = {}
    outcomes: Counter[str] = Counter()
    for pick in picks:
        outcome = _outcome(pick, asked, found)
        if outcome == "kept":
            reason = shown(pick.reason)
            found[pick.id] = RankedByModel(asked.candidates[pick.id], reason)
            if reason is None:
                outcomes["reason_dropped"] += 1
        outcomes[outcome] += 1
    for outcome, count in outcomes.items():
        RECOMMENDATION_PICKS.labels(outcome).inc(count)
    if outcomes.keys() - {"kept"}:
        log.info("recommendation_picks_dropped", prompt=PROMPT_VERSION, **outcomes)
    return list(found.values())


def _outcome(pick: Pick, asked: Question, found: dict[str, RankedByModel]) -> str:
    if pick.id not in asked.candidates:
        return "unknown"
    if pick.id in found:
        return "duplicate"
    return "kept" if len(found) < asked.limit else "surplus"


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
    return Ranker(llm, settings.model, Budget.from_settings(settings, redis))
