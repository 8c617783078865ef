"""Now: what runs, how fast, how far behind, and what is wrong with it."""

from __future__ import annotations

from starlette.responses import Response

from web.visits import AUDITORS, Visit, page


async def now(visit: Visit) -> Response:
    return visit.page("console/now.html", overview=await visit.api.get("/admin/overview"))


async def now_live(visit: Visit) -> Response:
    return visit.page("console/now_live.html", overview=await visit.api.get("/admin/overview"))


ROUTES = [
    page("/console", now, AUDITORS),
    page("/console/now/live", now_live, AUDITORS),
]
