"""How recommendations do: what was shown, what was chosen of that, by what brought it there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from domain.feedback import Signal, Variant
from infra.http.auth import Admin
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, Wire
from projections.analytics.calendar import start_of_hour
from projections.analytics.queries import LENGTHS, Range
from projections.feedback.reports import (
    CONSUMER,
    Sums,
    TeamScore,
    comparisons,
    sign_test,
    sums,
    wilson,
)
from readapi.pages import IfNoneMatch
from readapi.queries import Fresh, Read
from readapi.stats import InRange

EARLIEST = datetime.fromtimestamp(0, UTC)


class ClickThrough(Wire):
    """How often recommended videos were shown, and how often chosen then.

    `low` and `high` bound the true rate 95 times in 100 (Wilson's score interval). Without a
    `source` it is all of them, and so for `variant`.
    """

    source: Signal | None = None
    variant: Variant | None = None
    shown: int
    chosen: int
    rate: float | None = None
    low: float | None = None
    high: float | None = None


class Experiment(Wire):
    """Which of two settings users chose more from, list by list.

    A list is won when more of B's videos were chosen than of A's. `p_value` is how likely so
    uneven a result is if both are equally good (two-sided sign test).
    """

    experiment: int
    current: Annotated[bool, Field(description="Whether lists are made for it now.")]
    wins: int
    losses: int
    ties: int
    p_value: float | None = None
    latest: Time


class RecommendationFigures(Wire):
    """Of lists that were given since `since`; an hour's lists count in that hour."""

    time_range: Range
    since: Time
    total: ClickThrough
    by_source: list[ClickThrough]
    by_variant: list[ClickThrough]
    items: list[ClickThrough]
    experiments: list[Experiment]


router = APIRouter(tags=["analytics"])


@router.get(
    "/analytics/recommendations",
    response_model=RecommendationFigures,
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="How often recommendations are chosen, by source and variant",
)
async def get_recommendation_figures(
    request: Request,
    queries: Read,
    _: Admin,
    fresh: Fresh,
    range_: InRange = Range.WEEK,
    if_none_match: IfNoneMatch = None,
) -> Response:
    now = start_of_hour(datetime.now(UTC))
    since = now - LENGTHS[range_] if range_ in LENGTHS else EARLIEST
    async with queries.analytics.reading(fresh, CONSUMER) as conn:
        counted, compared = await sums(conn, since), await comparisons(conn, since)
    body = RecommendationFigures(
        time_range=range_,
        since=since,
        total=_click_through(counted),
        by_source=[
            _click_through([each for each in counted if each.source == source], source=source)
            for source in Signal
        ],
        by_variant=[
            _click_through([each for each in counted if each.variant == variant], variant=variant)
            for variant in Variant
        ],
        items=[
            _click_through([each], source=Signal(each.source), variant=Variant(each.variant))
            for each in counted
        ],
        experiments=[_experiment(each, queries.recommendations.experiment) for each in compared],
    )
    return await conditional_wire(request, body)


def _click_through(
    counted: Sequence[Sums], *, source: Signal | None = None, variant: Variant | None = None
) -> ClickThrough:
    shown, chosen = (
        sum(column) for column in zip((0, 0), *(each[2:] for each in counted), strict=True)
    )
    # With Kafka a choice may come in before its being shown does.
    shown = max(shown, chosen)
    found = ClickThrough(source=source, variant=variant, shown=shown, chosen=chosen)
    if (interval := wilson(chosen, shown)) is not None:
        found.rate, found.low, found.high = chosen / shown, *interval
    return found


def _experiment(found: TeamScore, current: int | None) -> Experiment:
    return Experiment(
        **found._asdict(),
        current=found.experiment == current,
        p_value=sign_test(found.wins, found.losses),
    )
