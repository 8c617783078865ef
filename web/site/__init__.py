"""The site: what visitors see, at `/`."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import BaseRoute

from web.site import comments, trending, up_next, videos, watch
from web.visits import Visit, page

ROUTES: list[BaseRoute] = [
    *videos.ROUTES,
    *trending.ROUTES,
    *up_next.ROUTES,
    *comments.ROUTES,
    *watch.ROUTES,
]


async def front(visit: Visit) -> Response:
    """Send whoever comes to `/` to what they may use, where the site is off."""
    return visit.leave("/console" if visit.roles else "/studio")


OFF: list[BaseRoute] = [page("/", front)]
