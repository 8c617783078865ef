"""Answers: JSON made once, with user ids in place of pseudonyms, and what caches may do with it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from infra.http.auth import ask
from infra.http.problems import (
    PROBLEM_JSON,
    TITLES,
    Problem,
    ProblemDetails,
)
from infra.http.requests import (
    header,
    request_id_of,
)
from infra.http.shapes import Wire
from infra.pseudonyms import Pseudonyms

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# Asked for again each time: the answer is as new as the log.
PUBLIC, PRIVATE = "public, no-cache", "private, no-cache"
TAG = re.compile(r'(?:W/)?("[^"]*")')
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "As the client knows it"}}


class JsonResponse(Response):
    """An answer whose body is JSON already; made without what other answers may need."""

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()),
        ]


class NamedResponse(JsonResponse):
    """An answer that names persons: clients get user ids in place of pseudonyms."""

    def __init__(self, wire: Wire, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(b"", status, headers)
        self.wire = wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = await named(scope["app"].state.authenticator.persons, self.wire)
        self.raw_headers[1] = (b"content-length", str(len(self.body)).encode())
        await super().__call__(scope, receive, send)


async def names_of(persons: Pseudonyms, pseudonyms: Collection[str]) -> Mapping[str, str]:
    """Return the user ids of so many, asked for where they are not at hand; raise Problem 503."""
    names = persons.recall(pseudonyms)
    return await ask(persons.names, pseudonyms) if names is None else names


async def named(persons: Pseudonyms, wire: Wire) -> bytes:
    """Return a shape as JSON, with user ids in place of pseudonyms.

    Raise Problem 503 where these can't be found out.
    """
    pseudonyms = {getattr(shape, name) for shape, name in wire.persons()}
    return wire.to_json(await names_of(persons, pseudonyms))


def problem_response(scope: Scope, problem: Problem) -> Response:
    """Return the response of a problem, with the request id that the edge gave the request."""
    body = ProblemDetails(
        type=problem.slug,
        title=TITLES.get(problem.status, TITLES[500])[1],
        status=problem.status,
        detail=problem.detail,
        request_id=request_id_of(scope),
        **problem.extra,
    )
    content = body.model_dump_json(by_alias=True, exclude_none=True)
    return Response(content, problem.status, problem.headers, PROBLEM_JSON)


def conditional(
    scope: Scope,
    body: bytes,
    *,
    private: bool,
    headers: Mapping[str, str] = NO_HEADERS,
    tagged: bytes | None = None,
    media_type: str | None = None,
) -> Response:
    """Return a JSON answer, or 304 without a body where the client has one of the same tag.

    Nobody may use it again without asking; if it is not `private`, caches that many share may keep
    it. `tagged` is what of the answer makes another one of it, where that is not all. `media_type`
    is what the body is instead of JSON.
    """
    tag = f'"{blake2b(body if tagged is None else tagged, digest_size=16).hexdigest()}"'
    added = {
        "ETag": f"W/{tag}",
        "Cache-Control": PRIVATE if private else PUBLIC,
        **headers,
        "Vary": ", ".join(filter(None, ("Authorization", headers.get("Vary")))),
    }
    known = header(scope, b"if-none-match")
    # The weak comparison.
    if known is not None and (known.strip() == "*" or tag in TAG.findall(known)):
        return Response(status_code=304, headers=added)
    answer = JsonResponse(body, 200, added)
    if media_type is not None:
        answer.raw_headers[0] = (b"content-type", media_type.encode())
    return answer


async def conditional_wire(
    request: Request, body: Wire, *, private: bool = True, headers: Mapping[str, str] = NO_HEADERS
) -> Response:
    """Return the same of a contract shape, with user ids in place of pseudonyms.

    Raise Problem 503 where these can't be found out.
    """
    persons = request.app.state.authenticator.persons
    content = await named(persons, body) if body.may_name() else body.to_json()
    return conditional(request.scope, content, private=private, headers=headers)


def wire(body: Wire, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response made straight from a contract shape."""
    if body.may_name():
        return NamedResponse(body, status, headers or {})
    return JsonResponse(body.to_json(), status, headers or {})
