"""Why: what a ranking's scores are made of and other weights would change, and a user's list."""

from __future__ import annotations

from itertools import chain

from starlette.responses import Response

from infra.cancellation import together
from web.api import known, path
from web.console.outcomes import found_or_none
from web.visits import ADMIN, AUDITORS, Visit, page

LIMIT = 20
RANGES = ("7d", "30d", "all")
WEIGHTS = {
    "views": ("Views", 10.0),
    "likes": ("Likes", 20.0),
    "comments": ("Comments", 20.0),
    "watchMinutes": ("Watch minutes", 2.0),
    "recency": ("Recency", 10.0),
}
"""What each weight is called, and as far as its slider goes."""


async def show_ranking(visit: Visit) -> Response:
    time_range = visit.query("timeRange") or "7d"
    weights = {name: visit.query(name) for name in WEIGHTS}
    found = known(
        await visit.api.get("/analytics/trending/why", timeRange=time_range, limit=LIMIT, **weights)
    )
    shown = {"found": found, "names": WEIGHTS, "ranges": RANGES, "range": time_range}
    template = "console/why_ranking.html" if visit.is_fragment else "console/why.html"
    return visit.page(template, **shown)


async def show_user(visit: Visit) -> Response:
    user = visit.query("user")
    if user is None:
        return visit.page("console/why_user.html", user=None, found=None)
    found = known(await visit.api.get("/recommendations/why", userId=user))
    lists = {name: found[name][:LIMIT] for name in ("candidates", "filtered")}
    videos = list(dict.fromkeys(each["videoId"] for each in chain(*lists.values())))
    titles = await together(*(_title(visit, video) for video in videos))
    shown = {**lists, "titles": dict(zip(videos, titles, strict=True))}
    return visit.page("console/why_user.html", user=user, found=found, **shown)


async def _title(visit: Visit, video: str) -> str:
    """Return what a video is called, or its id where it is not there any more."""
    found = await found_or_none(visit, path("/videos/{}", video))
    return video if found is None else str(found["title"])


ROUTES = [
    page("/console/why", show_ranking, AUDITORS),
    page("/console/why/user", show_user, ADMIN),
]
