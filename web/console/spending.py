"""Spending: what language models took, by purpose and by day, and how much of budgets is left."""

from __future__ import annotations

from starlette.responses import Response

from web.visits import AUDITORS, Visit, page

RANGES = {"24h": "24 hours", "7d": "7 days", "30d": "30 days"}


async def spending(visit: Visit) -> Response:
    chosen = visit.query("range")
    time_range = chosen if chosen in RANGES else "7d"
    found = await visit.api.get("/admin/spending", timeRange=time_range)
    most = max((day["promptTokens"] + day["completionTokens"] for day in found["byDay"]), default=0)
    return visit.page(
        "console/spending.html", found=found, time_range=time_range, ranges=RANGES, most=most
    )


ROUTES = [page("/console/spending", spending, AUDITORS)]
