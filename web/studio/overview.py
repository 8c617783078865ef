"""A channel at a glance: all its videos together over some time, the latest ones, what waits."""

from __future__ import annotations

from starlette.responses import Response

from infra.cancellation import together
from web.api import path
from web.studio.periods import CSV, StatsPeriod, keep_zone, read_series, saved, shown
from web.studio.videos import user_of
from web.visits import ANYBODY, Visit, page

LATEST, WAITING = 5, 5


def _stats_of(visit: Visit) -> str:
    return path("/users/{}/stats", user_of(visit))


async def show_overview(visit: Visit) -> Response:
    period = StatsPeriod.asked(visit)
    answer, videos, held = await together(
        read_series(visit, _stats_of(visit), period),
        visit.api.get("/videos", owner="me", limit=LATEST),
        visit.api.get("/moderation/held", limit=WAITING),
    )
    stats = answer.json()
    response = visit.page(
        "studio/overview.html",
        period=period,
        stats=stats,
        shown=shown(stats),
        videos=videos["items"],
        held=held,
    )
    return keep_zone(visit, response, period)


async def save_overview(visit: Visit) -> Response:
    return saved(
        await read_series(visit, _stats_of(visit), StatsPeriod.asked(visit), CSV), "channel"
    )


ROUTES = [
    page("/studio", show_overview, ANYBODY),
    page("/studio/stats.csv", save_overview, ANYBODY),
]
