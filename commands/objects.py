"""Receives the parts of uploads when Backlot itself is the object store.

The URL's signature is the permission, as on S3: no token is needed to send a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from infra.http.problems import problems
from infra.objects.disk import PartCutOff, PartStalled, PartTooLarge, PartTooShort
from infra.objects.folder import FolderStore
from infra.objects.port import ALGORITHMS, read_checksums
from infra.objects.problems import as_problems

IDLE_SECONDS = 60.0
# A refused part is not read to its end; only closing tells the client to stop sending.
CLOSE = {"Connection": "close"}

BINARY_BODY: dict[str, Any] = {
    "requestBody": {
        "description": "The part's bytes, exactly as many as the URL was signed for.",
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
CHECKSUMS: dict[str, Any] = {
    "parameters": [
        {
            "name": header,
            "in": "header",
            "required": False,
            "description": "The checksum of the part's bytes, in base64; a part that has another "
            "is refused (422 `checksum-mismatch`).",
            "schema": {"type": "string", "contentEncoding": "base64"},
        }
        for header in ALGORITHMS
    ]
}
STORED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The part is stored; its ETag is the MD5 of its bytes.",
        "headers": {"ETag": {"schema": {"type": "string"}}},
    }
}


Key = Annotated[str, Path(examples=["videos/0b0e5b3e-59a5-4c0b-8f0e-0d6f0f1b2c3d"])]


class PartQuery(BaseModel):
    """What a part's URL carries; anything left out makes the signature wrong."""

    upload_id: str = Field("", alias="uploadId")
    part_number: int = Field(0, alias="partNumber")
    size: int = Field(0, description="Size of the part in bytes.")
    expires: int = Field(0, description="End of the permission, in seconds of Unix time.")
    signature: str = ""


def router(store: FolderStore, idle_seconds: float = IDLE_SECONDS) -> APIRouter:
    """`PUT /objects/{key}`; a body that pauses for `idle_seconds` is given up."""
    api = APIRouter(tags=["objects"])

    @api.put(
        "/objects/{key:path}",
        summary="Send one part of an upload",
        response_class=Response,
        responses=STORED | problems(400, 403, 404, 413, 422, 503),
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
            part = await store.put_part(*signed, _body(request, idle_seconds), checksums)
        return Response(headers={"ETag": f'"{part.etag}"'})

    return api


def _check_length(request: Request, size: int) -> None:
    announced = request.headers.get("content-length")
    if announced is None or not announced.isdecimal() or int(announced) == size:
        return
    detail = f"Content-Length is {announced}, but the URL was signed for {size} bytes."
    raise PartTooLarge(detail) if int(announced) > size else PartTooShort(detail)


async def _body(request: Request, idle_seconds: float) -> AsyncIterator[bytes]:
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
