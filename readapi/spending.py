"""What language models took, and how much of their budgets is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from redis import RedisError
from redis.asyncio import Redis

from infra.http.auth import Auditor
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, Wire
from infra.llm.limits import keys_of
from infra.llm.spending import Spent, read_spending
from infra.settings import Settings
from projections.analytics.calendar import DAY, start_of_hour
from readapi.pages import IfNoneMatch
from readapi.queries import Fresh, Read


class SpendingRange(StrEnum):
    """How far back the sums go."""

    DAY = "24h"
    WEEK = "7d"
    MONTH = "30d"


LENGTHS = {SpendingRange.DAY: DAY, SpendingRange.WEEK: 7 * DAY, SpendingRange.MONTH: 30 * DAY}


class LanguageModelUsage(Wire):
    """Calls, those without a usable answer among them, the tokens that providers counted.

    `cost` is in US dollars, of the models that have a price in LLM_PRICES; left out where none has.
    """

    calls: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


class PurposeUsage(LanguageModelUsage):
    """What one purpose took: `translate`, `detect`, `recommend`, `embed`."""

    purpose: str


class DayUsage(LanguageModelUsage):
    """What one day (UTC) took; the first may be only a part of a day."""

    day: date


class CallBudget(Wire):
    """How many calls a feature may make in a period, for all users; how many it has made.

    Without `used`, Redis does not answer, which counts them.
    """

    name: str
    limit: int
    used: int | None = None
    period: Literal["day"] = "day"


class Spending(Wire):
    """What calls took since the beginning of the first hour, over all processes and restarts."""

    time_range: SpendingRange
    since: Time
    totals: LanguageModelUsage
    by_purpose: list[PurposeUsage]
    by_day: list[DayUsage]
    budgets: list[CallBudget]


@dataclass(frozen=True)
class Budgets:
    """The budgets of calls by feature, and the Redis that counts against them."""

    redis: Redis
    limits: Mapping[str, int]

    @classmethod
    def of(cls, redis: Redis, settings: Settings) -> Budgets:
        """Return the budgets of the settings."""
        limits = {
            "translation": settings.translation.calls_per_day,
            "recommendations": settings.recommendations.calls_per_day,
        }
        return cls(redis, limits)

    async def told(self) -> list[CallBudget]:
        """Return each budget as it stands today (UTC); never raise RedisError."""
        today = datetime.now(UTC).date()
        keys = {name: keys_of(name, today, None)[0] for name in self.limits}
        try:
            used = {name: int(await self.redis.get(key) or 0) for name, key in keys.items()}
        except (RedisError, OSError):
            used = {}
        return [
            CallBudget(name=name, limit=limit, used=used.get(name))
            for name, limit in self.limits.items()
        ]


def _usage(spent: Iterable[Spent]) -> dict[str, int | float | None]:
    """Return the members of `LanguageModelUsage` for all of these together."""
    whole = Spent()
    for each in spent:
        whole.add(each)
    return {
        "calls": whole.calls,
        "failed": whole.failed,
        "prompt_tokens": whole.input_tokens,
        "completion_tokens": whole.output_tokens,
        "cost": whole.cost_usd,
    }


async def spending_of(conn: AsyncConnection[TupleRow], time_range: SpendingRange) -> Spending:
    """Return what calls took; nothing of budgets, which Redis knows."""
    since = start_of_hour(datetime.now(UTC)) - LENGTHS[time_range]
    found = await read_spending(conn, since)
    return Spending.model_validate(
        {
            "time_range": time_range,
            "since": since,
            "totals": _usage(found.values()),
            "by_purpose": [
                {"purpose": name, **_usage(s for (of, _), s in found.items() if of == name)}
                for name in sorted({purpose for purpose, _ in found})
            ],
            "by_day": [
                {"day": day, **_usage(s for (_, at), s in found.items() if at == day)}
                for day in sorted({day for _, day in found})
            ],
            "budgets": [],
        }
    )


router = APIRouter(prefix="/admin/spending", tags=["operations"])


@router.get(
    "",
    response_model=Spending,
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="What language models took, and their budgets",
)
async def get_spending(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    time_range: Annotated[
        SpendingRange, Query(alias="timeRange", description="How far back, until now.")
    ] = SpendingRange.WEEK,
    if_none_match: IfNoneMatch = None,
) -> Response:
    budgets: Budgets = request.app.state.budgets
    async with queries.reading(fresh) as conn:
        body = await spending_of(conn, time_range)
    body.budgets = await budgets.told()
    return await conditional_wire(request, body)
