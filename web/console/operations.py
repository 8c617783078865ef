"""Who did what: the actions of operators, the newest first."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.responses import Response

from web.visits import AUDITORS, Visit, page

LIMIT = 50


async def operations(visit: Visit) -> Response:
    actor = visit.query("actor")
    found = await visit.api.get(
        "/admin/operations", limit=LIMIT, actor=actor, cursor=visit.query("cursor")
    )
    here = "/console/operations" + (f"?{urlencode({'actor': actor})}" if actor else "")
    return visit.page("console/operations.html", found=found, actor=actor, here=here)


ROUTES = [page("/console/operations", operations, AUDITORS)]
