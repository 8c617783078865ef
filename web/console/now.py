"""Now: what runs, how fast, how far behind, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from web.visits import AUDITORS, Visit, page

# A lag of more than this is told in another colour; `backlot doctor` calls a minute late.
LATE_SECONDS = 60.0
SLOW_SECONDS = 5.0
# Which page does what a remedy's command does.
OF_PROJECTION = re.compile(r"`backlot projections (?:resume|show) ([a-z0-9_]+)")
PAGES = {
    "backlot projections parked": "/console/queues",
    "backlot topics dead": "/console/queues/letters",
    "backlot tasks dead": "/console/queues/tasks",
    "backlot projections": "/console/projections",
    "backlot events": "/console/integrity",
}


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
        "page_for": page_for,
    }


def _urgency(finding: Mapping[str, str]) -> tuple[bool, str]:
    return finding["severity"] != "error", finding["title"]


def page_for(finding: Mapping[str, str]) -> str | None:
    """Return the page on which a finding can be dealt with; None where there is none."""
    if (of := OF_PROJECTION.search(finding["remedy"])) is not None:
        return f"/console/projections/{of[1]}"
    for command, where in PAGES.items():
        if command in finding["remedy"]:
            return where
    return None


def lag_kind(seconds: float) -> str:
    """Return how bad it is to be so many seconds behind."""
    if seconds > LATE_SECONDS:
        return "bad"
    return "warn" if seconds > SLOW_SECONDS else "good"


ROUTES = [
    page("/console", now, AUDITORS),
    page("/console/now/live", now_live, AUDITORS),
]
