"""The comments below a film: read, posted, liked, edited, deleted, reported; and the replies."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from web.api import path
from web.site.acts import (
    OF_VIDEO,
    REASONS,
    Told,
    complaint,
    decides,
    in_api,
    is_on,
    told,
    whole,
)
from web.templating import TEMPLATES
from web.visits import Form, Visit, action, page

PAGE = 20
SORTS = {"newest": "Newest", "top": "Top", "oldest": "Oldest"}
LONGEST = 10_000
# What the script fills in, for comments that come while somebody watches.
BLANK = Told(commentId="", userId="", content="", translationStatus="pending")
TEMPLATES.globals |= {"blank_comment": BLANK, "longest_comment": LONGEST}


async def read(visit: Visit) -> dict[str, Any]:
    """Return a video with a page of its comments for a template.

    `position` is up to where in the log the comments are told.
    """
    sort = visit.query("sort") or "newest"
    asked = {"sort": sort, "cursor": visit.query("cursor"), "limit": PAGE}
    answer = await visit.api.answer("GET", in_api(visit, "/comments"), params=asked)
    return {
        **await _around(visit),
        "comments": whole(answer.json()),
        "position": answer.headers.get("Backlot-Position", ""),
        "sorts": SORTS,
        "sort": sort,
    }


async def _around(visit: Visit) -> dict[str, Any]:
    """Return what a comment is shown with."""
    video = whole(await visit.api.get(in_api(visit)))
    return {
        "video": video,
        "video_id": video["videoId"],
        "decides": decides(visit, video),
        "reasons": REASONS,
    }


async def more(visit: Visit) -> Response:
    """Show a page of comments, for a page that is there already."""
    return visit.page("site/comments.html", **await read(visit))


async def replies(visit: Visit) -> Response:
    """Show the replies to a comment, and where to write one."""
    comment_id = visit.asked("comment_id")
    asked = {"cursor": visit.query("cursor"), "limit": PAGE}
    found = whole(await visit.api.get(path("/comments/{}/replies", comment_id), **asked))
    shown = await _around(visit)
    return visit.page("site/replies.html", comments=found, comment_id=comment_id, **shown)


async def post(visit: Visit, form: Form) -> Response:
    comment = {"content": _text(form)}
    if form.get("parent"):
        comment["parentId"] = form["parent"]
    answer = await visit.api.post(in_api(visit, "/comments"), comment)
    held = answer.get("status") == "held"
    text = "Your comment waits for approval." if held else "Your comment is there."
    return told(visit, text, answer)


async def edit(visit: Visit, form: Form) -> Response:
    answer = await visit.api.patch(_comment(form), {"content": _text(form)})
    return told(visit, "Your comment was changed.", answer)


async def delete(visit: Visit, form: Form) -> Response:
    return told(visit, "The comment is gone.", await visit.api.delete(_comment(form)))


async def like(visit: Visit, form: Form) -> Response:
    where, likes = f"{_comment(form)}/like", is_on(form)
    answer = await (visit.api.put(where) if likes else visit.api.delete(where))
    return told(visit, "You like the comment." if likes else "You took your like back.", answer)


async def report(visit: Visit, form: Form) -> Response:
    answer = await visit.api.post(f"{_comment(form)}/report", complaint(form))
    return told(visit, "Thank you: moderators will look at it.", answer)


def _comment(form: Form) -> str:
    """Return the path in the API of the comment that a form is about."""
    return path("/comments/{}", form.get("comment", "") or "none")


def _text(form: Form) -> str:
    """Return the text of a form, with the line ends that were written: forms send others."""
    return form.get("content", "").replace("\r\n", "\n")


ROUTES = [
    page(f"{OF_VIDEO}/comments", more),
    page(f"{OF_VIDEO}/replies/{{comment_id:uuid}}", replies),
    action(f"{OF_VIDEO}/comments", post),
    action(f"{OF_VIDEO}/comments/edit", edit),
    action(f"{OF_VIDEO}/comments/delete", delete),
    action(f"{OF_VIDEO}/comments/like", like),
    action(f"{OF_VIDEO}/comments/report", report),
]
