"""Uploads from a page: its script sends the parts to the object store, and asks here for the rest.

It is answered in JSON. `web/static/studio-upload.js` is that script.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response

from web.api import ApiProblem, path
from web.studio.videos import POLICIES, VISIBILITIES, details_of, number
from web.visits import ANYBODY, Form, Visit, action, page

P = ParamSpec("P")
Answers = Callable[Concatenate[Visit, P], Awaitable[Response]]
UNKNOWN_TYPE = "application/octet-stream"


def for_script(answers: Answers[P]) -> Answers[P]:
    """Have a script told of a problem as the API tells it, in JSON."""

    @wraps(answers)
    async def told(visit: Visit, /, *args: P.args, **kwargs: P.kwargs) -> Response:
        try:
            return await answers(visit, *args, **kwargs)
        except ApiProblem as problem:
            body = {**problem.body, "title": problem.title, "detail": problem.detail}
            return JSONResponse(body, problem.status)

    return told


async def show_upload(visit: Visit) -> Response:
    return visit.page("studio/upload.html", visibilities=VISIBILITIES, policies=POLICIES)


@for_script
async def start_upload(visit: Visit, form: Form) -> Response:
    """Begin an upload, once under the script's key however often it asks."""
    filename = form.get("filename", "")
    kind = form.get("contentType") or mimetypes.guess_type(filename)[0] or UNKNOWN_TYPE
    body = {
        **details_of(form),
        "filename": filename,
        "contentType": kind,
        "sizeBytes": number(form.get("sizeBytes", "")),
    }
    key = {"Idempotency-Key": form["key"]} if form.get("key") else {}
    answer = await visit.api.answer("POST", "/uploads", body, headers=key)
    begun = answer.json()
    return JSONResponse({**begun, "parts": urls_for_page(begun["parts"], visit.parts.media)}, 201)


@for_script
async def get_upload(visit: Visit) -> Response:
    return JSONResponse(await visit.api.get(_upload(visit)))


@for_script
async def get_part_urls(visit: Visit, form: Form) -> Response:
    numbers = [number(each) for each in form.get("numbers", "").split(",")]
    found = await visit.api.post(_upload(visit, "/part-urls"), {"numbers": numbers})
    return JSONResponse({"parts": urls_for_page(found["parts"], visit.parts.media)})


@for_script
async def complete_upload(visit: Visit, form: Form) -> Response:
    return JSONResponse(await visit.api.post(_upload(visit, "/complete")))


@for_script
async def abort_upload(visit: Visit, form: Form) -> Response:
    return JSONResponse(await visit.api.delete(_upload(visit)))


def _upload(visit: Visit, more: str = "") -> str:
    return path("/uploads/{}", visit.asked("upload_id")) + more


def urls_for_page(parts: Sequence[Mapping[str, Any]], media: Sequence[str]) -> list[dict[str, Any]]:
    """Return part URLs as a page may use them.

    What does not lead to the object store leads here, by whichever name the page was opened.
    """
    return [{**part, "url": _for_page(part["url"], media)} for part in parts]


def _for_page(url: str, media: Sequence[str]) -> str:
    split = urlsplit(url)
    if f"{split.scheme}://{split.netloc}" in media:
        return url
    return f"{split.path}?{split.query}"


ROUTES = [
    page("/studio/upload", show_upload, ANYBODY),
    action("/studio/uploads", start_upload),
    page("/studio/uploads/{upload_id:uuid}", get_upload, ANYBODY),
    action("/studio/uploads/{upload_id:uuid}/part-urls", get_part_urls),
    action("/studio/uploads/{upload_id:uuid}/complete", complete_upload),
    action("/studio/uploads/{upload_id:uuid}/abort", abort_upload),
]
