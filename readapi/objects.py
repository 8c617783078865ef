"""Gives out media objects when Backlot itself is the object store; range requests make them play.

What uploaders call a video need not be one, so a browser is told neither to guess nor to run it.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from infra.http.problems import Problem, problems
from infra.objects.folder import FolderStore, ObjectFile
from infra.objects.port import disposition, safe_content_type
from infra.objects.problems import as_problems

SINGLE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
SAFE_HEADERS = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "private",
    # Nothing runs. But a film opened by its own address keeps its origin: without one a browser
    # refuses the film its own ranges, and plays nothing.
    "Content-Security-Policy": "default-src 'none'; media-src 'self'; sandbox allow-same-origin",
    "X-Content-Type-Options": "nosniff",
}

BINARY = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole object.", "content": BINARY},
    206: {"description": "The range that was asked for.", "content": BINARY},
    304: {"description": "The object still has the ETag of If-None-Match."},
    **problems(403, 404, 416, 422, 503),
}


Key = Annotated[str, Path(examples=["videos/0b0e5b3e-59a5-4c0b-8f0e-0d6f0f1b2c3d"])]


class ObjectQuery(BaseModel):
    """What an object's URL carries; anything left out makes the signature wrong."""

    content_type: str = Field("", alias="contentType")
    filename: str = ""
    expires: int = Field(0, description="End of the permission, in seconds of Unix time.")
    signature: str = ""


def router(store: FolderStore) -> APIRouter:
    """`GET /objects/{key}`."""
    api = APIRouter(tags=["objects"])

    @api.get(
        "/objects/{key:path}",
        summary="Play or download an object",
        response_class=Response,
        responses=ANSWERS,
    )
    async def get_object(
        request: Request, key: Key, query: Annotated[ObjectQuery, Query()]
    ) -> Response:
        with as_problems():
            signed = (key, query.content_type, query.filename)
            store.signer.verify_get(*signed, query.expires, query.signature)
            found = await store.find(key)
        if found is None:
            raise Problem(404, "object-unknown", "There is no such object.")
        return _answer(request, found, query)

    return api


def _answer(request: Request, found: ObjectFile, query: ObjectQuery) -> Response:
    etag = f'"{found.stored.etag}"'
    headers = {**SAFE_HEADERS, "ETag": etag}
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return ObjectResponse(
        found.path,
        headers=headers,
        # Also of a URL that was signed before types were looked at.
        media_type=safe_content_type(query.content_type),
        filename=query.filename,
        stat_result=found.stat,
        content_disposition_type=disposition(query.content_type),
        byte_range=_wanted_range(request, etag, found),
    )


class ObjectResponse(FileResponse):
    """A FileResponse for the one range that was found sound, whatever the request says.

    Starlette's own reading of `Range` answers a malformed one with 400, where RFC 9110 (14.2)
    wants it ignored, and sends several ranges as multipart.
    """

    chunk_size = 256 * 1024

    def __init__(self, *args: Any, byte_range: tuple[int, int] | None, **options: Any) -> None:
        """`byte_range` gives the first and the last byte, both included; None sends all."""
        super().__init__(*args, **options)
        self._byte_range = byte_range

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope["headers"] if pair[0] not in (b"range", b"if-range")]
        if self._byte_range is not None:
            first, last = self._byte_range
            headers.append((b"range", f"bytes={first}-{last}".encode()))
        await super().__call__({**scope, "headers": headers}, receive, send)


def _names(header: str, etag: str) -> bool:
    """Whether If-None-Match holds this ETag (weak comparison, RFC 9110, 13.1.2)."""
    named = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in named or named == ["*"]


def _wanted_range(request: Request, etag: str, found: ObjectFile) -> tuple[int, int] | None:
    """First and last byte asked for, or None for the whole object. Raises Problem 416."""
    asked = SINGLE_RANGE.fullmatch(request.headers.get("range", ""))
    fresh = (etag, formatdate(found.stat.st_mtime, usegmt=True))
    if asked is None or asked.groups() == ("", ""):
        return None
    if request.headers.get("if-range", etag) not in fresh:
        return None
    return _resolve(asked[1], asked[2], found.stored.size)


def _resolve(first: str, last: str, size: int) -> tuple[int, int] | None:
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if first and last and int(first) > int(last):
        return None
    if start >= size:
        detail = f"The object has {size} bytes, none of them in that range."
        headers = {"Content-Range": f"bytes */{size}", **SAFE_HEADERS}
        raise Problem(416, "range-not-satisfiable", detail, headers=headers)
    return start, end
