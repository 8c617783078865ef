"""Comments on a creator's videos: what waits, what stands, what was removed, who is blocked."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from infra.cancellation import together
from web.api import path
from web.studio.videos import LIMIT, api_path, number, own_video
from web.visits import ANYBODY, MODERATORS, Form, Visit, action, page

LISTS = {"posted": "Posted", "held": "Held", "removed": "Removed"}
ORDERS = {"newest": "Newest", "oldest": "Oldest", "top": "Most liked"}
QUEUE = "/studio/comments"
BLOCKED = "/studio/blocked"


async def _translated(visit: Visit, where: str, **params: Any) -> dict[str, Any]:
    """Return comments with translations into the language that the visitor's browser likes."""
    wanted = visit.request.headers.get("accept-language")
    headers = {} if wanted is None else {"Accept-Language": wanted}
    answer = await visit.api.answer("GET", where, params=params, headers=headers)
    found: dict[str, Any] = answer.json()
    return found


async def show_queue(visit: Visit) -> Response:
    """Show what waits for approval on all videos, with the titles of these."""
    found = await visit.api.get("/moderation/held", limit=LIMIT, cursor=visit.query("cursor"))
    ids = list(dict.fromkeys(each["videoId"] for each in found["items"]))
    videos = await together(*(visit.api.get(path("/videos/{}", each)) for each in ids))
    titles = {video["videoId"]: video["title"] for video in videos}
    return visit.page(
        "studio/queue.html", comments=found, titles=titles, moderates=visit.may(MODERATORS)
    )


async def show_comments(visit: Visit) -> Response:
    """Show the comments on one video: one of the lists, in one of the orders."""
    wanted, sort = visit.query("list"), visit.query("sort")
    name = wanted if wanted in LISTS else "posted"
    order = sort if sort in ORDERS else "newest"
    which = {"sort": order} if name == "posted" else {"status": name}
    video, found = await together(
        own_video(visit),
        _translated(
            visit,
            api_path(visit, "/comments"),
            limit=LIMIT,
            cursor=visit.query("cursor"),
            **which,
        ),
    )
    return visit.page(
        "studio/comments.html",
        video=video,
        comments=found,
        name=name,
        order=order,
        lists=LISTS,
        orders=ORDERS,
    )


async def show_thread(visit: Visit) -> Response:
    """Show a comment with the replies to it, the oldest first."""
    comment = path("/comments/{}", visit.asked("comment_id"))
    found, replies = await together(
        _translated(visit, comment),
        _translated(visit, f"{comment}/replies", limit=LIMIT, cursor=visit.query("cursor")),
    )
    video = await visit.api.get(path("/videos/{}", found["videoId"]))
    return visit.page("studio/thread.html", comment=found, replies=replies, video=video)


def _comment(visit: Visit, more: str = "") -> str:
    return path("/comments/{}", visit.asked("comment_id")) + more


async def approve_comment(visit: Visit, form: Form) -> Response:
    """Approve the text that was looked at: one that came since is refused."""
    await visit.api.post(
        _comment(visit, "/approve"), {"revision": number(form.get("revision", ""))}
    )
    return visit.leave(visit.back(QUEUE), "The comment is approved.")


async def remove_comment(visit: Visit, form: Form) -> Response:
    reason = form.get("reason", "").strip() or None
    told = await visit.api.delete(_comment(visit), reason=reason)
    return visit.leave(visit.back(QUEUE), f"The comment is {told['status']}.")


async def restore_comment(visit: Visit, form: Form) -> Response:
    await visit.api.post(_comment(visit, "/restore"))
    return visit.leave(visit.back(QUEUE), "The comment is shown again.")


async def show_blocked(visit: Visit) -> Response:
    found = await visit.api.get("/users/me/blocked", limit=LIMIT, cursor=visit.query("cursor"))
    return visit.page("studio/blocked.html", blocked=found)


async def block_user(visit: Visit, form: Form) -> Response:
    user = form.get("user", "").strip()
    await visit.api.put(path("/users/me/blocked/{}", user))
    return visit.leave(visit.back(BLOCKED), f"{user} can't comment on your videos any more.")


async def unblock_user(visit: Visit, form: Form) -> Response:
    user = form.get("user", "")
    await visit.api.delete(path("/users/me/blocked/{}", user))
    return visit.leave(BLOCKED, f"{user} may comment again.")


ROUTES = [
    page(QUEUE, show_queue, ANYBODY),
    page("/studio/videos/{video_id:uuid}/comments", show_comments, ANYBODY),
    page("/studio/comments/{comment_id:uuid}", show_thread, ANYBODY),
    action("/studio/comments/{comment_id:uuid}/approve", approve_comment),
    action("/studio/comments/{comment_id:uuid}/remove", remove_comment),
    action("/studio/comments/{comment_id:uuid}/restore", restore_comment),
    page(BLOCKED, show_blocked, ANYBODY),
    action(BLOCKED, block_user),
    action(f"{BLOCKED}/remove", unblock_user),
]
