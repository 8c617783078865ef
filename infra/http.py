"""The HTTP edge that both applications share: request ids, problems, identity, limits, metrics."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import metrics
from infra.auth import Authenticator, Identity, InvalidToken, KeysUnavailable
from infra.contract import ProblemDetails, Wire
from infra.logging import correlated

log = structlog.get_logger(__name__)

REQUESTS = logging.getLogger(__name__)
PROBLEM_JSON = "application/problem+json"
TITLES = {
    400: ("unreadable", "The request can't be read"),
    401: ("unauthenticated", "A valid token is needed"),
    403: ("forbidden", "Not allowed"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "The path does not have this method"),
    409: ("conflict", "In conflict with the present state"),
    413: ("too-large", "The body is too large"),
    415: ("unsupported-media-type", "Not a media type for this call"),
    416: ("range-not-satisfiable", "No such range"),
    422: ("invalid", "Well-formed, but not valid"),
    429: ("rate-limited", "Too many requests"),
    500: ("internal", "Something broke on our side"),
    503: ("unavailable", "A needed part is down"),
}


class Problem(Exception):
    """An answer other than success: an RFC 9457 problem with a stable `type` slug.

    `extra` become further members, so that a program need not parse the text.
    """

    def __init__(
        self,
        status: int,
        slug: str,
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


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that can answer these problems."""
    return {
        status: {
            "description": TITLES[status][1],
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in statuses
    }


def wire(body: Wire, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response made straight from a contract shape."""
    return Response(body.to_json(), status, dict(headers or {}), "application/json")


def problem_response(scope: Scope, problem: Problem) -> Response:
    """The response of a problem; the request id is the one that the edge gave the request."""
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


def request_id_of(scope: Scope) -> str:
    """The id of the request, which is also the correlation id of what it causes."""
    return str(scope.get("request_id", ""))


class DirectRoute(APIRoute):
    """A hot route: its endpoint, of the one id in its path and the request, is called by the edge.

    It is documented like every other. What is unusual, such as an id that is none, goes the
    ordinary way through the framework.
    """

    def stream_in(self, scope: Scope) -> UUID | None:
        """The id in the path, if this is a request that the edge can hand to the endpoint."""
        match = self.path_regex.match(scope["path"])
        if match is None or scope["method"] not in (self.methods or ()):
            return None
        try:
            return UUID(match[1])
        except ValueError:
            return None


Make = Callable[[Any], Problem]


class Edge:
    """The outermost ASGI layer: request id, body limit, metrics, hot routes, and no naked 500."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_limit: int,
        translate: Mapping[type[Exception], Make],
        unlimited: tuple[str, ...] = (),
    ) -> None:
        self._app = app
        self._body_limit = body_limit
        self._translate = translate
        self._unlimited = unlimited
        self._hot: list[DirectRoute] | None = None
        self._counters: dict[tuple[str, str, int], Any] = {}
        self._timers: dict[tuple[str, str], Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = scope["request_id"] = _request_id(scope)
        status = 500
        answering = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, answering
            if message["type"] == "http.response.start":
                status, answering = message["status"], True
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode("latin-1")),
                ]
            await send(message)

        limited = not scope["path"].startswith(self._unlimited) if self._unlimited else True
        try:
            with correlated(request_id):
                try:
                    guarded = _limit(receive, scope, self._body_limit) if limited else receive
                    if not await self._answer_at_once(scope, guarded, send_with_id):
                        await self._app(scope, guarded, send_with_id)
                except Exception as error:
                    if answering:
                        raise
                    problem = self._as_problem(error, scope)
                    await problem_response(scope, problem)(scope, receive, send_with_id)
        finally:
            self._measure(scope, status, time.perf_counter() - started)

    async def _answer_at_once(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Call the endpoint of a hot route; returns whether there was one."""
        if self._hot is None:
            routes = scope["app"].routes
            self._hot = [route for route in routes if isinstance(route, DirectRoute)]
        for route in self._hot:
            stream = route.stream_in(scope)
            if stream is not None:
                scope["route"] = route
                response: Response = await route.endpoint(stream, Request(scope, receive, send))
                await response(scope, receive, send)
                return True
        return False

    def _as_problem(self, error: Exception, scope: Scope) -> Problem:
        for kind in type(error).__mro__:
            if kind in self._translate:
                return self._translate[kind](error)
        log.error("request_broke", method=scope["method"], path=scope["path"], exc_info=error)
        detail = "This is our fault and has been logged; please try again."
        return Problem(500, "internal", detail)

    def _measure(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "unmatched")
        key = (method, route, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = metrics.HTTP_REQUESTS.labels(method, route, str(status))
        counter.inc()
        timer = self._timers.get(key[:2])
        if timer is None:
            timer = self._timers[key[:2]] = metrics.HTTP_SECONDS.labels(method, route)
        timer.observe(seconds)
        if REQUESTS.isEnabledFor(logging.DEBUG):
            path, id_ = scope["path"], request_id_of(scope)
            log.debug(
                "request", method=method, path=path, status=status, seconds=seconds, requestId=id_
            )


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if 1 <= len(text) <= 128 and text.isascii() and text.isprintable():
                return text
    return secrets.token_hex(16)


def _limit(receive: Receive, scope: Scope, most: int) -> Receive:
    """Refuse a body above the limit, by its declared length or, failing that, as it arrives."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise _too_large(most)
    taken = 0

    async def counting() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            # FastAPI would turn it into a 400; the handler looks here first.
            scope["problem"] = _too_large(most)
            raise scope["problem"]
        return message

    return counting


def _too_large(most: int) -> Problem:
    return Problem(413, "too-large", f"The body has more than {most} bytes.", headers=CLOSE)


CLOSE = {"Connection": "close"}


def _validation_problem(error: RequestValidationError) -> Problem:
    """Unreadable JSON is 400; a readable body or parameter that breaks a rule is 422."""
    errors = [
        {"field": ".".join(str(part) for part in item["loc"][1:]), "message": item["msg"]}
        for item in error.errors()
    ]
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return Problem(400, "unreadable", "The body is not valid JSON.", errors=errors)
    first = errors[0] if errors else {"field": "", "message": "invalid"}
    name = first["field"] or "body"
    return Problem(422, "invalid", f"`{name}`: {first['message']}.", errors=errors)


def _is_not_json(request: Request, error: Any) -> bool:
    """Whether a whole body was refused because its content type says that it is not JSON."""
    return (
        isinstance(error, RequestValidationError)
        and any(item["loc"] == ("body",) for item in error.errors())
        and "json" not in request.headers.get("content-type", "")
    )


def _allowed(request: Request) -> str:
    """All methods that the path has; Starlette names only those of the route that it found."""
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(methods))


def _http_problem(error: HTTPException) -> Problem:
    slug, title = TITLES.get(error.status_code, ("error", "Error"))
    details = {404: "There is no such path.", 405: "This path does not have that method."}
    detail = details.get(error.status_code, str(error.detail) or title)
    if error.status_code == 400:
        detail = "The body can't be read; send JSON in UTF-8."
    return Problem(error.status_code, slug, detail, headers=dict(error.headers or {}))


def create_app(
    *,
    title: str,
    authenticator: Authenticator,
    body_limit: int,
    translate: Mapping[type[Exception], Make],
    unlimited: tuple[str, ...] = (),
    **options: Any,
) -> FastAPI:
    """A FastAPI application behind the edge. `translate` maps exceptions to problems.

    `unlimited` are path prefixes whose bodies are streamed and limit themselves.
    """
    app = FastAPI(title=title, **options)
    app.state.authenticator = authenticator
    handlers: dict[type[Exception], Make] = {
        Problem: lambda problem: problem,
        RequestValidationError: _validation_problem,
        HTTPException: _http_problem,
        **translate,
    }
    app.add_middleware(Edge, body_limit=body_limit, translate=handlers, unlimited=unlimited)

    def handler(make: Make) -> Callable[[Request, Any], Awaitable[Response]]:
        async def handle(request: Request, error: Any) -> Response:
            problem = request.scope.get("problem") or make(error)
            if problem.status == 405:
                problem.headers["Allow"] = _allowed(request)
            if problem.status == 422 and _is_not_json(request, error):
                problem.detail = "Send the body as JSON, with `Content-Type: application/json`."
            return problem_response(request.scope, problem)

        return handle

    for kind, make in handlers.items():
        app.add_exception_handler(kind, handler(make))
    app.openapi = _document(app)  # type: ignore[method-assign]
    return app


TOKEN_OPTIONAL: dict[str, Any] = {"security": [{}, {"bearer": []}]}
"""`openapi_extra=` of a public call that tells a known caller more."""


async def maybe_identity(request: Request) -> Identity | None:
    """Who calls, or None without a token; a token that proves nothing is refused (401)."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("Send `Authorization: Bearer <token>`.")
    return await _verify(request.app.state.authenticator, token.strip())


async def require_identity(request: Request) -> Identity:
    """Who calls; 401 without a token."""
    identity = await maybe_identity(request)
    if identity is None:
        raise _unauthenticated("This call needs a token: `Authorization: Bearer <token>`.")
    return identity


async def require_admin(request: Request) -> Identity:
    """An operator; 403 for everybody else."""
    identity = await require_identity(request)
    if not identity.is_admin:
        raise Problem(403, "forbidden", "This call needs the role `admin`.")
    return identity


MaybeCaller = Annotated[Identity | None, Depends(maybe_identity)]
Caller = Annotated[Identity, Depends(require_identity)]
Admin = Annotated[Identity, Depends(require_admin)]


async def _verify(authenticator: Authenticator, token: str) -> Identity:
    known = authenticator.recall(token)
    if known is not None:
        return known
    try:
        if authenticator.may_block:
            return await asyncio.to_thread(authenticator.authenticate, token)
        return authenticator.authenticate(token)
    except InvalidToken as error:
        raise _unauthenticated(f"The token was refused: {error.reason}.") from error
    except KeysUnavailable as error:
        log.warning("key_server_unavailable", error=str(error))
        raise Problem(
            503,
            "unavailable",
            "Tokens can't be verified right now.",
            headers={"Retry-After": "5"},
        ) from error


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})


def _document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """OpenAPI with the problem shape, and the token wherever a call can answer 401."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        components = document.setdefault("components", {})
        components["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "`backlot token --user alice` mints one for the local secret.",
            }
        }
        components.setdefault("schemas", {})["ProblemDetails"] = ProblemDetails.model_json_schema()
        for path in document.get("paths", {}).values():
            for operation in path.values():
                if "401" in operation.get("responses", {}):
                    operation.setdefault("security", [{"bearer": []}])
        return document

    return openapi
