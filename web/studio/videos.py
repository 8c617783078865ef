"""A creator's videos, and what is said of each: title, visibility, who comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from web.api import ApiProblem, path
from web.visits import ANYBODY, Form, Visit, action, page

LIMIT = 20
VISIBILITIES = {
    "public": "Public: everybody finds it",
    "unlisted": "Unlisted: who has the link sees it",
    "private": "Private: only you see it",
}
POLICIES = {
    "open": "Everybody comments",
    "approval": "Hold comments until you approve them",
    "closed": "Nobody comments",
}
REFUSED = (409, 422)
"""What an API answers to texts and choices that can't be."""


def api_path(visit: Visit, more: str = "") -> str:
    """Return the path of the page's video in the API, or of something of it."""
    return path("/videos/{}", visit.asked("video_id")) + more


def user_of(visit: Visit) -> str:
    """Return the user id of a visitor with a token."""
    return "" if visit.session is None else visit.session.user_id


def number(text: str) -> int | str:
    """Return the number in a form; what is none goes to the API as it is, which says so."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else text


async def own_video(visit: Visit) -> dict[str, Any]:
    """Return the page's video to its owner or an admin; raise ApiProblem to anybody else."""
    video: dict[str, Any] = await visit.api.get(api_path(visit))
    if video["ownerId"] != user_of(visit) and "admin" not in visit.roles:
        detail = "This is somebody else's video. The studio shows your own."
        raise ApiProblem(403, {"type": "forbidden", "title": "Not yours", "detail": detail})
    return video


async def list_videos(visit: Visit) -> Response:
    found = await visit.api.get("/videos", owner="me", limit=LIMIT, cursor=visit.query("cursor"))
    return visit.page("studio/videos.html", videos=found)


async def show_details(visit: Visit) -> Response:
    video = await own_video(visit)
    return _details(visit, video, {**video, "commentPolicy": video.get("commentPolicy", "open")})


def _details(
    visit: Visit,
    video: Mapping[str, Any],
    values: Mapping[str, Any],
    problem: ApiProblem | None = None,
) -> Response:
    return visit.page(
        "studio/details.html",
        200 if problem is None else problem.status,
        video=video,
        values=values,
        problem=problem,
        visibilities=VISIBILITIES,
        policies=POLICIES,
    )


def details_of(form: Form) -> dict[str, Any]:
    """Return what a form says of a video, as the API takes it."""
    return {
        "title": form.get("title", ""),
        # Browsers send the lines of a text with two characters between them.
        "description": form.get("description", "").replace("\r\n", "\n") or None,
        "category": form.get("category", "").strip() or None,
        "visibility": form.get("visibility", "public"),
        "commentPolicy": form.get("commentPolicy", "open"),
    }


async def change_video(visit: Visit, form: Form) -> Response:
    """Save the form; where that can't be, show it again with the reason."""
    changes = details_of(form)
    try:
        await visit.api.patch(api_path(visit), changes)
    except ApiProblem as problem:
        if problem.status not in REFUSED:
            raise
        return _details(visit, await own_video(visit), changes, problem)
    return visit.leave(
        f"/studio/videos/{visit.asked('video_id')}/details", "The changes are saved."
    )


async def remove_video(visit: Visit, form: Form) -> Response:
    if form.get("sure") != "yes":
        where = f"/studio/videos/{visit.asked('video_id')}/details"
        return visit.leave(where, "Nothing was deleted: the box was not ticked.", bad=True)
    await visit.api.delete(api_path(visit))
    return visit.leave("/studio/videos", "The video is deleted.")


ROUTES = [
    page("/studio/videos", list_videos, ANYBODY),
    page("/studio/videos/{video_id:uuid}/details", show_details, ANYBODY),
    action("/studio/videos/{video_id:uuid}/details", change_video),
    action("/studio/videos/{video_id:uuid}/remove", remove_video),
]
