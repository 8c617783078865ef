"""Now: what runs, how fast, how far behind, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from web.visits import AUDITORS, Visit, page

# A lag of more than this is told in another colour; `backlot doctor` calls a minute late.
LATE_SECONDS = 60.0
SLOW_SECONDS = 5.0


async def now(visit: Visit) -> Response:
    return visit.page("console/now.html", **await _shown(visit))


async def now_live(visit: Visit) -> Response:
    return visit.page("console/now_live.html", **await _shown(visit))


async def _shown(visit: Visit) -> dict[str, Any]:
    overview = await visit.api.get("/admin/overview")
    behind = [*overview["projections"], *overview["subscriptions"]]
    return {
        "overview": overview,
        "requests": overview.get("requests"),
        "findings": sorted(overview["findings"], key=_urgency),
        "longest": max(behind, key=lambda each: each["lagSeconds"], default=None),
        "lag_kind": lag_kind,
    }


def _urgency(finding: Mapping[str, str]) -> tuple[bool, str]:
    return finding["severity"] != "error", finding["title"]


def lag_kind(seconds: float) -> str:
    """Return how bad it is to be so many seconds behind."""
    if seconds > LATE_SECONDS:
        return "bad"
    return "warn" if seconds > SLOW_SECONDS else "good"


ROUTES = [
    page("/console", now, AUDITORS),
    page("/console/now/live", now_live, AUDITORS),
]
