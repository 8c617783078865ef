"""What to watch next: recommendations with their reasons, or what trends."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from web.api import path
from web.site.acts import OF_VIDEO, in_api, is_on, told, whole
from web.site.trending import why
from web.visits import Form, Visit, action, page

PLACES = 8


async def up_next(visit: Visit) -> Response:
    """Show recommendations to who is known, and to others what trends."""
    # One more than is shown: the video of the page may be among them.
    if visit.session is not None:
        found = await visit.api.get("/videos/recommendations", limit=PLACES + 1)
        items = [(each["video"], each["reason"]) for each in found["items"]]
    else:
        found = await visit.api.get("/analytics/trending", timeRange="30d", limit=PLACES + 1)
        items = [(each["video"], why(each["components"]).words) for each in found["items"]]
    here = visit.asked("video_id")
    others = [(whole(video), reason) for video, reason in items if video["videoId"] != here]
    return visit.page("site/up_next.html", items=others[:PLACES], listed=found.get("listId"))


async def seen(visit: Visit, form: Form) -> Response:
    """Report which of a list the visitor could see, or went for."""
    listed, videos = form.get("list", "") or "none", form.get("videos", "").split(",")
    what, body = "shown", dict[str, Any](videoIds=videos)
    if form.get("chosen"):
        what, body = "chosen", {"videoId": videos[0]}
    return JSONResponse(await visit.api.post(path(f"/recommendations/{{}}/{what}", listed), body))


async def dismiss(visit: Visit, form: Form) -> Response:
    """Have a video recommended no more, or take that back."""
    where, out = in_api(visit, "/not-interested"), is_on(form)
    answer = await (visit.api.put(where) if out else visit.api.delete(where))
    text = "It is recommended to you no more." if out else "It may be recommended to you again."
    return told(visit, text, answer)


ROUTES = [
    page(f"{OF_VIDEO}/next", up_next),
    action(f"{OF_VIDEO}/not-interested", dismiss),
    action("/watch/recommended", seen),
]
