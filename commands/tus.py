"""Uploads by tus 1.0 (https://tus.io/protocols/resumable-upload), for clients that speak it.

Another way to send the bytes, to the same parts, events and quotas as `/uploads`: an upload may be
begun here and looked at there. With the last byte it is completed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from commands.endpoint import Execute, executor
from commands.upload_queries import FindUploadDetails, UploadDetails
from commands.upload_shapes import StartUpload, UploadBegun
from commands.uploads import UploadFinalizing, begin_upload, complete, give_up
from domain.upload import Status
from infra.http.openapi import may_send, sends
from infra.http.problems import Problem, problems
from infra.http.requests import add_header, header
from infra.objects.appender import Appender, UploadPlace
from infra.objects.disk import ChecksumMismatch, PartTooLarge
from infra.objects.port import (
    ALGORITHMS,
    CONTENT_MD5,
    S3_PREFIX,
    Checksum,
    NoSuchUpload,
)
from infra.objects.routes import CLOSE, as_problems, body_chunks

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,checksum,termination"
BYTES = "application/offset+octet-stream"
MISMATCH = 460
# At a time, in this process.
MOST_BODIES, MOST_BODIES_OF_ONE = 64, 16
# The names that tus has for the checksums that parts have, too.
CHECKSUMS: Mapping[str, str] = {"md5": CONTENT_MD5} | {
    name.removeprefix(S3_PREFIX): name for name in ALGORITHMS if name.startswith(S3_PREFIX)
}
# What tus clients call what an upload has; the first that is there counts.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "title": ("title", "filename", "name"),
    "filename": ("filename", "name"),
    "contentType": ("filetype", "contentType", "type"),
    "description": ("description",),
    "category": ("category",),
    "visibility": ("visibility",),
    "commentPolicy": ("commentPolicy",),
}
LONGEST_TITLE = 200
NO_NAME = "video"


def _documented(*names: str) -> dict[str, Any]:
    return {"parameters": [PARAMETERS[name] for name in ("Tus-Resumable", *names)]}


def _parameter(name: str, about: str, required: bool, **schema: Any) -> dict[str, Any]:
    schema = {"type": "string", **schema}
    return {
        "name": name, "in": "header", "required": required, "description": about, "schema": schema,
    }  # fmt: skip


PARAMETERS: dict[str, dict[str, Any]] = {
    each["name"]: each
    for each in (
        _parameter("Tus-Resumable", "The protocol's version.", True, enum=[VERSION]),
        _parameter(
            "Upload-Length",
            "The exact size of the file in bytes.",
            True,
            pattern="^[0-9]{1,15}$",
            examples=["10"],
        ),
        _parameter(
            "Upload-Metadata",
            "Pairs of a name and its value in base64, with commas: `filename`, `filetype`, "
            "`title`, `description`, `category`, `visibility`, `commentPolicy`. "
            "Others are ignored.",
            True,
            examples=["filename cmFpbi5tcDQ=,filetype dmlkZW8vbXA0"],
        ),
        _parameter(
            "Upload-Offset",
            "Where within the file the bytes belong.",
            True,
            pattern="^[0-9]{1,15}$",
        ),
        _parameter(
            "Upload-Checksum",
            f"One of {', '.join(CHECKSUMS)}, a space, the digest in base64.",
            False,
        ),
    )
}
BODY: dict[str, Any] = {
    "requestBody": {
        "description": "Bytes of the file.",
        "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what `problems` does, with what tus says beside."""
    told = may_send("Tus-Resumable", "Tus-Version", "Upload-Offset", "Retry-After")
    # What the edge refuses is of no protocol.
    return {status: {**each, "headers": told} for status, each in problems(*statuses).items()}


def _answers(status: int, about: str, *names: str) -> dict[int | str, dict[str, Any]]:
    headers = sends("Tus-Resumable", *names) | may_send("Backlot-Position")
    return {status: {"description": about, "headers": headers}}


router = APIRouter(prefix="/tus/uploads", tags=["tus"])


@router.options(
    "",
    status_code=204,
    response_class=Response,
    responses=_answers(
        204,
        "What this server can.",
        "Tus-Version",
        "Tus-Extension",
        "Tus-Max-Size",
        "Tus-Checksum-Algorithm",
    ),
    summary="What of tus this server can",
)
async def tell_protocol(request: Request) -> Response:
    most = request.app.state.commands.max_upload_bytes
    told = {
        "Tus-Resumable": VERSION,
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(most),
        "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
    }
    return Response(status_code=204, headers=told)


@router.post(
    "",
    status_code=201,
    response_model=UploadBegun,
    responses=_answers(201, "Begun at `Location`.", "Location", "Upload-Expires", "Upload-Offset")
    | _refusals(400, 401, 403, 404, 409, 412, 413, 415, 422, 423, MISMATCH, 503),
    openapi_extra=_documented("Upload-Length", "Upload-Metadata", "Upload-Checksum") | BODY,
    summary="Start an upload by tus",
)
async def create_upload(request: Request) -> Response:
    """With a body, that is the first of its bytes."""
    async with _speaking(request):
        told = _text(request, "Upload-Metadata")
        asks = f"{_text(request, 'Upload-Length')}\n{told}".encode()
        execute = await executor(request, asks)
        length = _number(request, "Upload-Length")
        if length > (most := execute.services.max_upload_bytes):
            raise Problem(413, "too-large", f"A file has at most {most} bytes.")
        has_bytes = _has_bytes(request)
        begun = await execute.kept(UploadBegun) or await begin_upload(
            _read_details(length, told), execute
        )
        upload_id = begun.facts.upload_id
        where = f"{execute.base_url}{request.url.path}/{upload_id}"
        headers = {**begun.headers, "Location": where}
        if has_bytes and "Idempotency-Replayed" not in headers:
            headers |= await _take(request, execute.further(), upload_id, 0)
        else:
            details, appender = await _find(upload_id, execute)
            headers |= _told(details, appender, execute)
        return replace(begun, headers=headers).again()


@router.get(
    "/{upload_id}",
    response_class=Response,
    responses=_answers(
        200, "How far it is.", "Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Expires"
    )
    | _refusals(400, 401, 403, 404, 409, 412, 422, 423, 503),
    openapi_extra=_documented(),
    summary="How far an upload by tus is (HEAD)",
)
async def tell_offset(upload_id: UUID, request: Request) -> Response:
    """Where every byte has come, and the video is not made yet, it is made now."""
    async with _speaking(request):
        execute = await executor(request)
        details, appender = await _find(upload_id, execute)
        headers = _told(details, appender, execute)
        if appender is not None and appender.is_full:
            headers |= await _complete(upload_id, execute)
        headers |= {
            "Upload-Length": str(details.facts.size_bytes),
            "Upload-Metadata": _metadata(details),
        }
        return Response(headers=headers)


@router.patch(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    responses=_answers(204, "The bytes are kept.", "Upload-Offset", "Upload-Expires")
    | _refusals(400, 401, 403, 404, 409, 412, 413, 415, 422, 423, MISMATCH, 503),
    openapi_extra=_documented("Upload-Offset", "Upload-Checksum") | BODY,
    summary="Send bytes by tus",
)
async def send_bytes(upload_id: UUID, request: Request) -> Response:
    async with _speaking(request):
        execute, offset = await executor(request), _number(request, "Upload-Offset")
        if not _has_bytes(request):
            raise Problem(415, "unsupported-media-type", f"Send bytes, as `{BYTES}`.")
        headers = await _take(request, execute, upload_id, offset)
        return Response(status_code=204, headers=headers)


@router.delete(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    responses=_answers(204, "It was given up.")
    | _refusals(400, 401, 403, 404, 409, 412, 422, 423, 503),
    openapi_extra=_documented(),
    summary="Give an upload up by tus",
)
async def terminate_upload(upload_id: UUID, request: Request) -> Response:
    async with _speaking(request):
        answer = await give_up(upload_id, await executor(request))
        return Response(status_code=204, headers=_position(answer))


@asynccontextmanager
async def _speaking(request: Request) -> AsyncIterator[None]:
    """Answer in tus: with its version on refusals too, after which nothing more is read.

    That somebody is at it is 423 here. Clients that resume take other refusals for the upload's
    end, and begin anew.
    """
    add_header(request.scope, b"tus-resumable", VERSION)
    try:
        if header(request.scope, b"tus-resumable") != VERSION:
            detail = f"Send `Tus-Resumable: {VERSION}`: this is the protocol tus."
            raise Problem(412, "precondition-failed", detail, headers={"Tus-Version": VERSION})
        yield
    except UploadFinalizing as error:
        add_header(request.scope, b"connection", "close")
        headers = {"Retry-After": "2"}
        raise Problem(423, "upload-finalizing", str(error), headers=headers) from error
    except Exception:
        add_header(request.scope, b"connection", "close")
        raise


async def _find(upload_id: UUID, execute: Execute) -> tuple[UploadDetails, Appender | None]:
    """Return an upload, and how far it is in the store: None of one that is complete.

    Raise Problem 404 for one that has ended otherwise.
    """
    details = await execute.value(FindUploadDetails(upload_id))
    facts = details.facts
    if facts.status is Status.COMPLETED:
        return details, None
    try:
        if facts.status is not Status.STARTED:
            raise NoSuchUpload
        place = UploadPlace(facts.object_key, facts.store_upload_id, facts.part_sizes)
        return details, await Appender.find(execute.services.objects, place)
    except NoSuchUpload as error:
        raise Problem(404, "upload-gone", str(error)) from error


async def _take(request: Request, execute: Execute, upload_id: UUID, offset: int) -> dict[str, str]:
    """Keep the body as the bytes at an offset; return the headers that tell of that."""
    details, appender = await _find(upload_id, execute)
    if (reached := _offset(details, appender)) != offset:
        detail = f"The next byte of this upload is that at {reached}."
        headers = {"Upload-Offset": str(reached)}
        raise Problem(409, "conflict", detail, headers=headers, uploadStatus=details.facts.status)
    if appender is not None:
        with _place(execute):
            await _append(request, appender)
    told = _told(details, appender, execute)
    if appender is None or appender.is_full:
        told |= await _complete(upload_id, execute)
    return told


@contextmanager
def _place(execute: Execute) -> Iterator[None]:
    """Count a body that is being taken in; raise Problem 503 where there are too many.

    Each takes as much of the temporary folder as a part has.
    """
    receiving, person = execute.services.receiving, execute.actor
    if receiving.total() >= MOST_BODIES or receiving[person] >= MOST_BODIES_OF_ONE:
        detail = "Too many uploads are being taken in here; try again soon."
        raise Problem(503, "overloaded", detail, headers={"Retry-After": "2"})
    receiving[person] += 1
    try:
        yield
    finally:
        receiving[person] -= 1
        if not receiving[person]:
            del receiving[person]


async def _append(request: Request, appender: Appender) -> None:
    checksum, length = _checksum(request), header(request.scope, b"content-length")
    most = appender.rest
    if checksum is not None:
        most = min(most, max(appender.place.part_sizes))
    if length is not None and length.isdecimal() and int(length) > most:
        raise Problem(413, "too-large", f"This request may send {most} bytes.")
    with as_problems(CLOSE):
        try:
            broken = await appender.append(body_chunks(request), checksum)
        except ChecksumMismatch as error:
            raise Problem(MISMATCH, "checksum-mismatch", str(error)) from error
        except PartTooLarge as error:
            raise Problem(413, "too-large", str(error)) from error
        if broken is not None:
            raise broken


async def _complete(upload_id: UUID, execute: Execute) -> dict[str, str]:
    return _position(await complete(upload_id, (), execute))


def _position(answer: Response) -> dict[str, str]:
    return {"Backlot-Position": answer.headers["Backlot-Position"]}


def _offset(details: UploadDetails, appender: Appender | None) -> int:
    return details.facts.size_bytes if appender is None else appender.offset


def _told(details: UploadDetails, appender: Appender | None, execute: Execute) -> dict[str, str]:
    """Return how far an upload is, and when it expires if nothing more comes; a video does not."""
    reached = {"Upload-Offset": str(_offset(details, appender))}
    if appender is None or details.started_at is None:
        return reached
    services = execute.services
    ends = min(
        datetime.now(UTC) + services.upload_idle, details.started_at + services.upload_longest
    )
    return {**reached, "Upload-Expires": format_datetime(ends.astimezone(UTC), usegmt=True)}


def _text(request: Request, name: str) -> str:
    return header(request.scope, name.lower().encode()) or ""


def _number(request: Request, name: str) -> int:
    """Return a header's number; raise Problem 400 without one."""
    text = _text(request, name)
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        detail = f"Send `{name}`, a number of bytes."
        raise Problem(400, "unreadable", detail)
    return int(text)


def _has_bytes(request: Request) -> bool:
    return _text(request, "Content-Type").partition(";")[0].strip().lower() == BYTES


def _checksum(request: Request) -> Checksum | None:
    """Return the checksum of the body, if there is one; raise Problem 400."""
    text = _text(request, "Upload-Checksum")
    if not text:
        return None
    algorithm, _, digest = text.partition(" ")
    if algorithm not in CHECKSUMS:
        detail = f"Upload-Checksum: one of {', '.join(CHECKSUMS)}."
        raise Problem(400, "checksum-unsupported", detail)
    name = CHECKSUMS[algorithm]
    found = _decoded(digest)
    if found is None or len(found) != len(ALGORITHMS[name]().digest()):
        raise Problem(400, "checksum-unreadable", f"Upload-Checksum: not a digest of {algorithm}.")
    return Checksum(name, found)


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _read_details(length: int, text: str) -> StartUpload:
    """Return what to upload; raise Problem 400 for unreadable metadata, else what it breaks."""
    given = _read_metadata(text)
    found: dict[str, Any] = {"sizeBytes": length}
    for field, names in FIELDS.items():
        for name in names:
            if field not in found and given.get(name):
                found[field] = given[name]
    found["filename"] = found.get("filename", NO_NAME)
    found["title"] = found.get("title", NO_NAME)[:LONGEST_TITLE]
    try:
        return StartUpload.model_validate(found)
    except ValidationError as error:
        told = [{**each, "loc": ("header", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(told) from error


def _read_metadata(text: str) -> dict[str, str]:
    found = {}
    for pair in filter(None, (pair.strip() for pair in text.split(","))):
        name, _, value = pair.partition(" ")
        decoded = _decoded(value.strip())
        try:
            if decoded is None:
                raise ValueError(value)
            found[name] = decoded.decode()
        except ValueError as error:
            detail = f"Upload-Metadata: the value of `{name}` has to be text in base64."
            raise Problem(400, "unreadable", detail) from error
    return found


def _metadata(details: UploadDetails) -> str:
    """Return what of the metadata the upload has; not all, which a proxy may find too long."""
    told = {
        "filename": details.filename, "filetype": details.content_type, "title": details.title,
    }  # fmt: skip
    return ",".join(
        f"{name} {base64.b64encode(text.encode()).decode()}" for name, text in told.items()
    )
