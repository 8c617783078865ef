"""Which failure of a query becomes which answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from engine.freshness import ReadModelBehind
from infra.http.problems import Problem
from infra.objects.port import ObjectStoreUnavailable
from infra.position import InvalidPosition, encode_position
from projections.analytics.queries import AnalyticsUnavailable, TooManyPoints
from readapi.audit.inspector import NotRecorded
from readapi.paging import InvalidCursor
from readapi.queries import ReadModelUnavailable

RETRY_SOON = {"Retry-After": "1"}

log = structlog.get_logger(__name__)


def _behind(error: ReadModelBehind) -> Problem:
    events, telemetry = (max(numbers) for numbers in zip(*error.wanted.values(), strict=True))
    return Problem(
        503,
        "read-model-behind",
        str(error),
        headers=RETRY_SOON,
        wanted=encode_position(events, telemetry),
        positions={name: encode_position(*at) for name, at in error.positions.items()},
    )


def _unavailable(error: ReadModelUnavailable) -> Problem:
    log.warning("read_model_unavailable", error=str(error))
    detail = "The database of the read models does not answer; try again soon."
    return Problem(503, "read-model-unavailable", detail, headers=RETRY_SOON)


def _analytics_unavailable(error: AnalyticsUnavailable) -> Problem:
    log.warning("analytics_unavailable", error=str(error))
    detail = "The database of the analytics does not answer; try again soon."
    return Problem(503, "analytics-unavailable", detail, headers=RETRY_SOON)


translate: dict[type[Exception], Callable[[Any], Problem]] = {
    ReadModelBehind: _behind,
    ReadModelUnavailable: _unavailable,
    AnalyticsUnavailable: _analytics_unavailable,
    TooManyPoints: lambda error: Problem(422, "invalid", str(error), field="bucket"),
    InvalidPosition: lambda error: Problem(422, "position-invalid", str(error)),
    NotRecorded: lambda error: Problem(404, "not-found", str(error)),
    InvalidCursor: lambda error: Problem(422, "cursor-invalid", str(error)),
    ObjectStoreUnavailable: lambda error: Problem(
        503, "object-store-unavailable", str(error), headers={"Retry-After": "5"}
    ),
}
