"""RFC 9457 problems: what clients are told of errors, those of the framework among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match
from typing_extensions import TypeAliasType

# What pydantic puts before the words of a rule that is our own.
OWN_RULE = "Value error, "
NO_MEMBER = "no member of this body"
# However many faults a request has, so many are told, and so many unknown names stand in `detail`.
MOST_ERRORS, MOST_NAMED = 100, 10
PROBLEM_JSON = "application/problem+json"
ProblemType = TypeAliasType(
    "ProblemType",
    Literal[
        "analytics-unavailable",
        "blocked",
        "checksum-mismatch",
        "checksum-unreadable",
        "checksum-unsupported",
        "comments-closed",
        "conflict",
        "contended",
        "cursor-invalid",
        "forbidden",
        "forgotten",
        "headers-too-large",
        "host-unknown",
        "idempotency-key-reused",
        "internal",
        "invalid",
        "keys-unavailable",
        "locks-unavailable",
        "method-not-allowed",
        "not-found",
        "object-store-unavailable",
        "object-unknown",
        "overloaded",
        "part-cut-off",
        "part-stalled",
        "part-too-large",
        "part-too-short",
        "parts-mismatch",
        "position-invalid",
        "precondition-failed",
        "quota-exceeded",
        "range-not-satisfiable",
        "rate-limited",
        "read-model-behind",
        "read-model-unavailable",
        "request-timeout",
        "store-unavailable",
        "stream-unreadable",
        "too-large",
        "too-many-streams",
        "unauthenticated",
        "unavailable",
        "unreadable",
        "unsupported-media-type",
        "upload-finalizing",
        "upload-gone",
        "uri-too-long",
        "url-expired",
        "url-signature-wrong",
    ],
)
"""What a problem is, for programs; the OpenAPI document lists these, and docs/api.md says when."""
TITLES: Mapping[int, tuple[ProblemType, str]] = {
    400: ("unreadable", "The request can't be read"),
    401: ("unauthenticated", "A valid token is needed"),
    403: ("forbidden", "Not allowed"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "The path does not have this method"),
    408: ("request-timeout", "The request came too slowly"),
    409: ("conflict", "In conflict with the present state"),
    410: ("forgotten", "The user was forgotten"),
    412: ("precondition-failed", "Not the protocol of this call"),
    413: ("too-large", "The body is too large"),
    414: ("uri-too-long", "The path or the query is too long"),
    415: ("unsupported-media-type", "Not a media type for this call"),
    416: ("range-not-satisfiable", "No such range"),
    421: ("host-unknown", "Not a host of this server"),
    422: ("invalid", "Well-formed, but not valid"),
    423: ("upload-finalizing", "Somebody else is at it"),
    429: ("rate-limited", "Too many requests"),
    431: ("headers-too-large", "The headers are too large"),
    460: ("checksum-mismatch", "Not the bytes of the checksum"),
    500: ("internal", "Something broke on our side"),
    503: ("unavailable", "A needed part is down"),
}

EXAMPLES: Mapping[ProblemType, str] = MappingProxyType(
    {
        "checksum-mismatch": "These are not the bytes of the checksum.",
        "conflict": "The upload is aborted, so it can't be completed.",
        "forbidden": "This belongs to another user.",
        "forgotten": "This user was forgotten.",
        "headers-too-large": "The headers have more than 32768 bytes.",
        "host-unknown": "This server is not known by that `Host`.",
        "invalid": "`title`: String should have at least 1 character.",
        "not-found": "There is no such video.",
        "object-store-unavailable": "There is no room for objects.",
        "object-unknown": "There is no such object.",
        "part-cut-off": "The connection ended within the part; send it again.",
        "part-too-large": "Content-Length is 11, but the URL was signed for 10 bytes.",
        "part-too-short": "Content-Length is 9, but the URL was signed for 10 bytes.",
        "parts-mismatch": "Part 2 is missing.",
        "precondition-failed": "Send `Tus-Resumable: 1.0.0`: this is the protocol tus.",
        "range-not-satisfiable": "The object has 10 bytes, none of them in that range.",
        "rate-limited": "Too many requests of the class `write`; come back in 2 s.",
        "too-large": "The body has more than 1048576 bytes.",
        "unauthenticated": "This call needs a token: `Authorization: Bearer <token>`.",
        "unavailable": "Tokens can't be verified right now.",
        "unreadable": "The body is not valid JSON.",
        "unsupported-media-type": "Send `application/offset+octet-stream`.",
        "upload-finalizing": "The upload is being completed; ask again.",
        "upload-gone": "The object store does not have this upload any more.",
        "uri-too-long": "A path has at most 2048 bytes, a query 8192.",
        "url-expired": "The URL has expired; ask for a new one.",
    }
)
"""What a client may be told of a problem, for each type that is an example in the document."""

DETAILS = {
    400: "The body can't be read; send JSON in UTF-8.",
    404: "There is no such path.",
    405: "This path does not have that method.",
}
"""What is said of the framework's own refusals."""


class ProblemDetails(BaseModel):
    """RFC 9457: what went wrong and what to do. More members depend on `type`."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    type: ProblemType
    title: str
    status: int
    detail: str
    request_id: Annotated[str | None, Field(alias="requestId")] = None


class Problem(Exception):
    """An answer other than success: an RFC 9457 problem with a stable `type` slug.

    `extra` become further members, so that a program need not parse the text.
    """

    def __init__(
        self,
        status: int,
        slug: ProblemType,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra


Make = Callable[[Any], Problem]
"""What turns an exception of one kind into its problem."""


def problems(
    *statuses: int, types: Mapping[int, ProblemType] = MappingProxyType({})
) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route that can answer these problems.

    Whoever may be refused for their token may be told that their user was forgotten. `types` are
    the examples where a status says something else here than elsewhere.
    """
    return {
        status: _documented(status, types.get(status, TITLES[status][0]))
        for status in sorted({*statuses, 410} if 401 in statuses else statuses)
    }


def _documented(status: int, slug: ProblemType) -> dict[str, Any]:
    title = TITLES[status][1]
    example = {"type": slug, "title": title, "status": status, "detail": EXAMPLES[slug]}
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        "description": title,
        "content": {PROBLEM_JSON: {"schema": schema, "example": example}},
    }


def _validation_problem(error: RequestValidationError) -> Problem:
    """Unreadable JSON is 400; a readable body or parameter that breaks a rule is 422."""
    found = error.errors()[:MOST_ERRORS]
    errors = [
        {
            "field": ".".join(str(part) for part in item["loc"][1:]),
            "message": NO_MEMBER
            if item["type"] == "extra_forbidden"
            else item["msg"].removeprefix(OWN_RULE),
        }
        for item in found
    ]
    if any(item["type"] == "json_invalid" for item in found):
        return Problem(400, "unreadable", "The body is not valid JSON.", errors=errors)
    told = [each for each in errors if each["message"] == NO_MEMBER] or errors[:1]
    names = ", ".join(f"`{each['field'] or 'body'}`" for each in told[:MOST_NAMED])
    return Problem(422, "invalid", f"{names}: {told[0]['message']}.", errors=errors)


def unknown_parameters(unknown: Sequence[str], known: Iterable[str]) -> Problem:
    """Return the problem of query parameters that a call does not have."""
    there = ", ".join(f"`{name}`" for name in sorted(known)) or "none"
    message = f"no query parameter of this call, which has {there}"
    errors = [{"field": name, "message": message} for name in unknown[:MOST_ERRORS]]
    names = ", ".join(f"`{name}`" for name in unknown[:MOST_NAMED])
    return Problem(422, "invalid", f"{names}: {message}.", errors=errors)


def _allowed(request: Request) -> str:
    """Return all methods of the path; Starlette names only those of the route that it found."""
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))


def _http_problem(error: HTTPException) -> Problem:
    slug, title = TITLES.get(error.status_code, TITLES[500])
    detail = DETAILS.get(error.status_code, str(error.detail) or title)
    return Problem(error.status_code, slug, detail, headers=dict(error.headers or {}))


FRAMEWORK: Mapping[type[Exception], Make] = {
    Problem: lambda problem: problem,
    RequestValidationError: _validation_problem,
    HTTPException: _http_problem,
}
"""The problems of the framework's own refusals."""


def explain(problem: Problem, request: Request, error: Exception) -> Problem:
    """Add to a framework's problem what only the request tells."""
    if problem.status == 405:
        problem.headers["Allow"] = _allowed(request)
    if problem.status == 422 and isinstance(error, RequestValidationError):
        whole = any(item["loc"] == ("body",) for item in error.errors())
        if whole and "json" not in request.headers.get("content-type", ""):
            problem.detail = "Send the body as JSON, with `Content-Type: application/json`."
    return problem
