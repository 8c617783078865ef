"""The watch page: the film, its likes, shares and reports, and how long it was watched."""

from __future__ import annotations

from typing import Any

from starlette.responses import RedirectResponse, Response

from web.site import comments
from web.site.acts import OF_VIDEO, complaint, in_api, is_on, number, told
from web.visits import Form, Visit, action, page


async def watch(visit: Visit) -> Response:
    shown = await comments.read(visit)
    return visit.page("site/watch.html", **shown)


async def play(visit: Visit, form: Form) -> Response:
    """Begin to watch: a view is counted when somebody plays the film, not when they look at it."""
    begun = await visit.api.post(in_api(visit, "/watch"))
    return told(visit, "", begun) if visit.is_fragment else RedirectResponse(begun["url"], 303)


async def watched(visit: Visit, form: Form) -> Response:
    """Report seconds that were watched, and from where in the film."""
    report: dict[str, Any] = {
        "sessionId": form.get("session", ""),
        "seconds": number(form, "seconds"),
    }
    if "position" in form:
        report["position"] = number(form, "position")
    return told(visit, "Noted.", await visit.api.post(in_api(visit, "/watch-time"), report))


async def like(visit: Visit, form: Form) -> Response:
    where, likes = in_api(visit, "/like"), is_on(form)
    answer = await (visit.api.put(where) if likes else visit.api.delete(where))
    return told(visit, "You like it." if likes else "You took your like back.", answer)


async def share(visit: Visit, form: Form) -> Response:
    channel = {"channel": form.get("channel", "link")}
    answer = await visit.api.post(in_api(visit, "/share"), channel)
    return told(visit, "Thank you for sharing.", answer)


async def report(visit: Visit, form: Form) -> Response:
    answer = await visit.api.post(in_api(visit, "/report"), complaint(form))
    return told(visit, "Thank you: moderators will look at it.", answer)


async def ticket(visit: Visit, form: Form) -> Response:
    """Get a script what opens the live stream of a video that not everybody may see."""
    return told(visit, "", await visit.api.post(in_api(visit, "/events/ticket")))


ROUTES = [
    page(OF_VIDEO, watch),
    action(f"{OF_VIDEO}/play", play, None),
    action(f"{OF_VIDEO}/watched", watched, None),
    action(f"{OF_VIDEO}/like", like),
    action(f"{OF_VIDEO}/share", share, None),
    action(f"{OF_VIDEO}/report", report),
    action(f"{OF_VIDEO}/ticket", ticket),
]
