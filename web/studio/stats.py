"""How one video does: its figures over time, which seconds are watched, how it is shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from infra.cancellation import together
from web.api import ApiProblem
from web.studio.periods import CSV, StatsPeriod, keep_zone, read_series, saved, shown
from web.studio.videos import api_path
from web.visits import ANYBODY, Visit, page

STATS = "/stats"
CHANNELS = "/stats/channels"
RETENTION = "/stats/retention"


async def show_stats(visit: Visit) -> Response:
    period = StatsPeriod.asked(visit)
    video, answer, channels, retention = await together(
        visit.api.get(api_path(visit)),
        read_series(visit, api_path(visit, STATS), period),
        _told(visit, CHANNELS, period),
        _told(visit, RETENTION, period),
    )
    stats = answer.json()
    response = visit.page(
        "studio/stats.html",
        video=video,
        period=period,
        stats=stats,
        shown=shown(stats),
        channels=channels,
        most=max((each["shares"] for each in channels.get("channels", ())), default=0),
        retention=retention,
        curve=curve(retention),
    )
    return keep_zone(visit, response, period)


async def _told(visit: Visit, what: str, period: StatsPeriod) -> dict[str, Any]:
    """Return a part of the page; where it is not kept for so long, `problem` says so alone."""
    try:
        found: dict[str, Any] = await visit.api.get(api_path(visit, what), **period.params)
    except ApiProblem as problem:
        if problem.status != 422:
            raise
        return {"problem": problem}
    return found


def curve(retention: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return which part of the sessions watched each second, for a chart; None without any."""
    points = [point for point in retention.get("points", ()) if "share" in point]
    if not points:
        return None
    return {
        "at": [point["second"] for point in points],
        "series": {"share": [100 * point["share"] for point in points]},
        "labels": {"share": "Watching, %"},
        "seconds": True,
    }


async def show_now(visit: Visit) -> Response:
    """Return the counts of this moment, which a page asks for again and again."""
    return visit.page("studio/now.html", video=await visit.api.get(api_path(visit)))


async def save_stats(visit: Visit) -> Response:
    period = StatsPeriod.asked(visit)
    return saved(await read_series(visit, api_path(visit, STATS), period, CSV), "stats")


async def save_channels(visit: Visit) -> Response:
    return await _saved(visit, CHANNELS, "channels")


async def save_retention(visit: Visit) -> Response:
    return await _saved(visit, RETENTION, "retention")


async def _saved(visit: Visit, what: str, name: str) -> Response:
    params = StatsPeriod.asked(visit).params
    return saved(await visit.api.text(api_path(visit, what), CSV, **params), name)


ROUTES = [
    page("/studio/videos/{video_id:uuid}", show_stats, ANYBODY),
    page("/studio/videos/{video_id:uuid}/now", show_now, ANYBODY),
    page("/studio/videos/{video_id:uuid}/stats.csv", save_stats, ANYBODY),
    page("/studio/videos/{video_id:uuid}/channels.csv", save_channels, ANYBODY),
    page("/studio/videos/{video_id:uuid}/retention.csv", save_retention, ANYBODY),
]
