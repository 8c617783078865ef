"""The routes of the folder store, which make Backlot itself the object store: `/objects/{key}`.

A URL's signature is the permission, as on S3: no token is needed. What uploaders call a video need
not be one, so a browser is told neither to guess nor to run it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from infra.http.openapi import reads, sends
from infra.http.problems import Problem, ProblemType, problems
from infra.objects.disk import ChecksumMismatch, PartCutOff, PartStalled, PartTooLarge, PartTooShort
from infra.objects.folder import BadSignature, FolderStore, ObjectFile, UrlExpired
from infra.objects.port import (
    ALGORITHMS,
    ChecksumUnreadable,
    ChecksumUnsupported,
    NoSuchUpload,
    ObjectStoreError,
    ObjectStoreUnavailable,
    disposition,
    read_checksums,
    safe_content_type,
)

IDLE_SECONDS = 60.0
RETRY_SOON = {"Retry-After": "5"}
# A refused part is not read to its end; only closing tells the client to stop sending.
CLOSE = {"Connection": "close"}

PROBLEMS: Mapping[type[ObjectStoreError], tuple[int, ProblemType]] = MappingProxyType(
    {
        PartCutOff: (400, "part-cut-off"),
        PartStalled: (400, "part-stalled"),
        ChecksumUnreadable: (400, "checksum-unreadable"),
        ChecksumUnsupported: (400, "checksum-unsupported"),
        BadSignature: (403, "url-signature-wrong"),
        UrlExpired: (403, "url-expired"),
        NoSuchUpload: (404, "upload-gone"),
        PartTooLarge: (413, "part-too-large"),
        PartTooShort: (422, "part-too-short"),
        ChecksumMismatch: (422, "checksum-mismatch"),
        ObjectStoreUnavailable: (503, "object-store-unavailable"),
    }
)

BINARY_BODY: dict[str, Any] = {
    "requestBody": {
        "description": "The part's bytes, exactly as many as the URL was signed for.",
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
CHECKSUMS: dict[str, Any] = {
    "parameters": [
        reads(
            header,
            "The checksum of the part's bytes, in base64; a part that has another is refused (422 "
            "`checksum-mismatch`).",
            contentEncoding="base64",
        )
        for header in ALGORITHMS
    ]
}
STORED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The part is stored; its ETag is the MD5 of its bytes.",
        "headers": sends("ETag"),
    }
}

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
OF_OBJECTS = sends("Accept-Ranges", "Content-Security-Policy", "ETag", "X-Content-Type-Options")
OF_FILMS = OF_OBJECTS | sends("Content-Disposition", "Last-Modified")
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole object.", "content": BINARY, "headers": OF_FILMS},
    206: {
        "description": "The range that was asked for.",
        "content": BINARY,
        "headers": OF_FILMS | sends("Content-Range"),
    },
    304: {"description": "The object still has the ETag of If-None-Match.", "headers": OF_OBJECTS},
    **problems(
        403,
        404,
        416,
        422,
        503,
        types={403: "url-expired", 404: "object-unknown", 503: "object-store-unavailable"},
    ),
}
RANGES: dict[str, Any] = {
    "parameters": [
        reads("If-None-Match", "An `ETag` received before: 304 while it is the same."),
        reads("If-Range", "An `ETag` received before: of another object all is sent."),
        reads("Range", "One range of bytes; the answer is 206. Whatever else it says is ignored."),
    ]
}
REFUSED_PARTS = problems(
    400,
    403,
    404,
    413,
    422,
    503,
    types={
        400: "part-cut-off",
        403: "url-expired",
        404: "upload-gone",
        413: "part-too-large",
        422: "part-too-short",
        503: "object-store-unavailable",
    },
)

Key = Annotated[str, Path(examples=["videos/0b0e5b3e-59a5-4c0b-8f0e-0d6f0f1b2c3d"])]


class PartQuery(BaseModel):
    """What a part's URL carries; anything left out makes the signature wrong."""

    upload_id: str = Field("", alias="uploadId")
    part_number: int = Field(0, alias="partNumber")
    size: int = Field(0, description="Size of the part in bytes.")
    expires: int = Field(0, description="End of the permission, in seconds of Unix time.")
    signature: str = ""


class ObjectQuery(BaseModel):
    """What an object's URL carries; anything left out makes the signature wrong."""

    content_type: str = Field("", alias="contentType")
    filename: str = ""
    expires: int = Field(0, description="End of the permission, in seconds of Unix time.")
    signature: str = ""


def part_router(store: FolderStore, idle_seconds: float = IDLE_SECONDS) -> APIRouter:
    """Return the route that takes parts; a body that pauses for `idle_seconds` is given up."""
    api = APIRouter(tags=["objects"])

    @api.put(
        "/objects/{key:path}",
        summary="Send one part of an upload",
        response_class=Response,
        responses=STORED | REFUSED_PARTS,
        openapi_extra=BINARY_BODY | CHECKSUMS,
    )
    async def put_part(
        request: Request, key: Key, query: Annotated[PartQuery, Query()]
    ) -> Response:
        signed = (key, query.upload_id, query.part_number, query.size)
        with as_problems(CLOSE):
            store.signer.verify_part(*signed, query.expires, query.signature)
            _check_length(request, query.size)
            checksums = read_checksums(request.headers.items())
            part = await store.put_part(*signed, body_chunks(request, idle_seconds), checksums)
        return Response(headers={"ETag": f'"{part.etag}"'})

    return api


def object_router(store: FolderStore) -> APIRouter:
    """Return the route that gives out media objects; range requests make them play."""
    api = APIRouter(tags=["objects"])

    @api.get(
        "/objects/{key:path}",
        summary="Play or download an object",
        response_class=Response,
        responses=ANSWERS,
        openapi_extra=RANGES,
    )
    async def get_object(
        request: Request, key: Key, query: Annotated[ObjectQuery, Query()]
    ) -> Response:
        with as_problems({}):
            signed = (key, query.content_type, query.filename)
            store.signer.verify_get(*signed, query.expires, query.signature)
            found = await store.find(key)
        if found is None:
            raise Problem(404, "object-unknown", "There is no such object.")
        return _answer(request, found, query)

    return api


@contextmanager
def as_problems(headers: Mapping[str, str]) -> Iterator[None]:
    """Turn what the store refuses into Problems with these headers; other errors pass."""
    try:
        yield
    except ObjectStoreError as error:
        if type(error) not in PROBLEMS:
            raise
        status, slug = PROBLEMS[type(error)]
        retry = RETRY_SOON if isinstance(error, ObjectStoreUnavailable) else {}
        raise Problem(status, slug, str(error), headers={**retry, **headers}) from error


def _check_length(request: Request, size: int) -> None:
    announced = request.headers.get("content-length")
    if announced is None or not announced.isdecimal() or int(announced) == size:
        return
    detail = f"Content-Length is {announced}, but the URL was signed for {size} bytes."
    raise PartTooLarge(detail) if int(announced) > size else PartTooShort(detail)


async def body_chunks(request: Request, idle_seconds: float = IDLE_SECONDS) -> AsyncIterator[bytes]:
    """Yield the body as it comes.

    Raise PartCutOff when the connection ends, PartStalled when no byte comes for so many seconds.
    """
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except ClientDisconnect as error:
            raise PartCutOff("The connection ended within the part; send it again.") from error
        except TimeoutError as error:
            raise PartStalled(f"No byte came for {idle_seconds:g} seconds.") from error
        yield chunk


def _answer(request: Request, found: ObjectFile, query: ObjectQuery) -> Response:
    etag = f'"{found.stored.etag}"'
    headers = {**SAFE_HEADERS, "ETag": etag}
    # Weak comparison (RFC 9110, 13.1.2).
    held = request.headers.get("if-none-match", "").split(",")
    tags = [tag.strip().removeprefix("W/") for tag in held]
    if etag in tags or tags == ["*"]:
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


def _wanted_range(request: Request, etag: str, found: ObjectFile) -> tuple[int, int] | None:
    """Return the first and last byte asked for, None for the whole object. Raise Problem 416."""
    asked = SINGLE_RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        return None
    fresh = (etag, formatdate(found.stat.st_mtime, usegmt=True))
    if request.headers.get("if-range", etag) not in fresh:
        return None
    (first, last), size = asked.groups(), found.stored.size
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size:
        detail = f"The object has {size} bytes, none of them in that range."
        headers = {"Content-Range": f"bytes */{size}", **SAFE_HEADERS}
        raise Problem(416, "range-not-satisfiable", detail, headers=headers)
    return start, end
