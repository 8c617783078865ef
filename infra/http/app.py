"""The application that both APIs are: its edge, its hot routes, its answers and its callers.

The edge is the outermost layer: request ids, limits of bodies, metrics, and no naked 500.
"""

from __future__ import annotations

import logging
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import ParamTypes
from fastapi.routing import APIRoute
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import QueryParams
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.http.auth import Authenticator, Identity, InvalidToken
from infra.http.jwks import KeysUnavailable
from infra.http.problems import (
    FRAMEWORK,
    PROBLEM_JSON,
    TITLES,
    Make,
    Problem,
    ProblemDetails,
    explain,
    problems,
    unknown_parameters,
)
from infra.http.shapes import Wire
from infra.logging import CORRELATION_ID
from infra.metrics import REGISTRY, SECONDS
from infra.security_log import SecurityEvent, record

log = structlog.get_logger(__name__)

REQUESTS = logging.getLogger(__name__)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REMEMBERED_PATHS = 10_000
# What the edge keeps in a request's scope: its headers, those that its answer gets beside its own,
# the method that the client sent in place of GET, and the problem of a body that is too large.
HEADERS = "backlot.headers"
ADDED = "backlot.added"
ASKED = "backlot.method"
TOO_LARGE = "backlot.too_large"
# Defined for GET alone (RFC 9110, 14.2): a HEAD is told of the whole.
FOR_RANGES = (b"range", b"if-range")
SHORTCUT = "backlot_shortcut"
ROLES = "backlot_roles"
TOKEN_OPTIONAL: dict[str, Any] = {"security": [{}, {"bearer": []}]}
"""`openapi_extra=` of a public call that tells a known caller more."""
REFUSED = problems(422)[422]
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "`backlot token --user alice` mints one for the local secret.",
}

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]

Shortcut = Callable[[UUID, Request], Awaitable[Response | None]]
"""Answers a request for the one id in its path, or None: then it goes through the framework."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class DirectRoute(APIRoute):
    """A hot route, whose endpoint is called without the framework, except for an id that is none.

    It is documented like every other.
    """


def hot(shortcut: Shortcut) -> Callable[[Endpoint], Endpoint]:
    """Marks an ordinary endpoint, before which `shortcut` may answer what is asked most."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, SHORTCUT, shortcut)
        return endpoint

    return mark


def _shortcut(route: APIRoute) -> Shortcut | None:
    if isinstance(route, DirectRoute):
        return cast("Shortcut", route.endpoint)
    return getattr(route.endpoint, SHORTCUT, None)


def _id_in(route: APIRoute, path: str) -> UUID | None:
    match = route.path_regex.match(path)
    try:
        return UUID(match[1]) if match else None
    except ValueError:
        return None


def query_parameters(route: APIRoute) -> frozenset[str]:
    """Return the names of the query parameters of a call, as the client writes them."""
    params = get_flat_params(route.dependant)
    # Those of a shape, as signed URLs have, don't say where they stand.
    return frozenset(
        param.alias
        for param in params
        if getattr(param.field_info, "in_", ParamTypes.query) is ParamTypes.query
    )


class HeadersSent(Exception):
    """All that a HEAD asks for is sent, so whatever answers may stop."""


def as_get(scope: Scope) -> Scope:
    """Return the GET whose headers a HEAD asks for."""
    headers = [pair for pair in scope["headers"] if pair[0] not in FOR_RANGES]
    return {**scope, "method": "GET", ASKED: "HEAD", "headers": headers}


@dataclass(slots=True)
class Timings:
    """Requests of one method and route: how many fell into each bucket, and their seconds."""

    counts: list[int]
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)


class RequestMetrics(Collector):
    """Requests by method, route template and status, and the time that they took.

    prometheus_client's own counters cost a request as much as its route. One event loop observes;
    the figures get Prometheus' shape when somebody scrapes them.
    """

    def __init__(self, prefix: str, buckets: Sequence[float]) -> None:
        """`buckets` are upper bounds in seconds, in rising order."""
        self._prefix = prefix
        self._bounds = list(buckets)
        self._timed: dict[tuple[str, str], Timings] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Take in one answered request."""
        timed = self._timed.get((method, route))
        if timed is None:
            timed = self._timed[method, route] = Timings([0] * (len(self._bounds) + 1))
        timed.counts[bisect_left(self._bounds, seconds)] += 1
        timed.seconds += seconds
        timed.statuses[status] += 1

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            f"{self._prefix}_requests",
            "HTTP requests answered, by route template.",
            labels=("method", "route", "status"),
        )
        seconds = HistogramMetricFamily(
            f"{self._prefix}_request_seconds",
            "Time to answer an HTTP request, by route template.",
            labels=("method", "route"),
        )
        names = [*map(str, self._bounds), "+Inf"]
        for labels, timed in list(self._timed.items()):
            for status, count in list(timed.statuses.items()):
                requests.add_metric((*labels, str(status)), count)
            below = list(zip(names, accumulate(timed.counts), strict=True))
            seconds.add_metric(labels, below, timed.seconds)
        return (requests, seconds)


HTTP = RequestMetrics("backlot_http", SECONDS)
REGISTRY.register(HTTP)


class HttpApp(FastAPI):
    """A FastAPI application behind the edge, which calls the endpoints of hot routes itself.

    The framework's own layers and its search for the route cost more than a whole like. A HEAD is
    answered as the GET of its path, without a body (RFC 9110, 9.3.2).
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        body_limit: int,
        translate: Mapping[type[Exception], Make],
        unlimited: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        """`translate` maps exceptions to problems; `body_limit` is in bytes.

        `unlimited` are path prefixes whose bodies are streamed and limit themselves; `options` are
        FastAPI's.
        """
        self._translate = {**FRAMEWORK, **translate}
        handlers: dict[Any, Any] = dict.fromkeys(self._translate, self._refuse)
        super().__init__(exception_handlers=handlers, **options)
        self.state.authenticator = authenticator
        self._body_limit = body_limit
        self._unlimited = unlimited
        self._apart: dict[int, HttpApp] = {}
        self._known: list[tuple[APIRoute, frozenset[str]]] | None = None
        self._hot: list[tuple[APIRoute, Shortcut]] | None = None
        self._find = lru_cache(REMEMBERED_PATHS)(self._search)

    def serve_apart(self, port: int, app: HttpApp) -> None:
        """Have requests that arrive at a port of their own answered by another application.

        Both have the same state; the lifespan is this one's.
        """
        app.state = self.state
        self._apart[port] = app

    def build_middleware_stack(self) -> ASGIApp:
        """Return the framework's layers, without the one that tells what breaks in plain text."""
        stack = super().build_middleware_stack()
        return stack.app if isinstance(stack, ServerErrorMiddleware) else stack

    def openapi(self) -> dict[str, Any]:
        """OpenAPI with the problem shape, and the token wherever a call can answer 401."""
        document = super().openapi()
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"bearer": BEARER}
        components.setdefault("schemas", {})["ProblemDetails"] = ProblemDetails.model_json_schema()
        for path in document.get("paths", {}).values():
            for operation in path.values():
                # That is how query parameters are refused which a call does not have.
                operation["responses"].setdefault("422", REFUSED)
                if "401" in operation["responses"]:
                    operation.setdefault("security", [{"bearer": []}])
        return document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if self._apart and (apart := self._apart.get(_local_port(scope))):
            await apart(scope, receive, send)
            return
        with suppress(HeadersSent):
            await self._serve(as_get(scope) if scope["method"] == "HEAD" else scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request, or tell what went wrong in place of an answer."""
        started = time.perf_counter()
        scope["app"] = self
        scope[HEADERS] = dict(reversed(scope["headers"]))
        request_id = scope["request_id"] = _request_id(scope)
        stamp = (b"x-request-id", request_id.encode("latin-1"))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = scope.get(ADDED, {}).items()
                message["headers"] = [*message.get("headers", ()), stamp, *added]
            elif ASKED in scope and message["type"] == "http.response.body":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise HeadersSent
            await send(message)

        answer = self._find(scope["method"], scope["path"]) or super().__call__
        limited = not (self._unlimited and scope["path"].startswith(self._unlimited))
        correlation = CORRELATION_ID.set(request_id)
        try:
            if scope["query_string"]:
                self._require_known_parameters(scope)
            guarded = _limit(receive, scope, self._body_limit) if limited else receive
            await answer(scope, guarded, send_with_id)
        except Exception as error:
            if status:
                raise
            refusal = await self._refuse(Request(scope), error)
            await refusal(scope, receive, send_with_id)
        finally:
            _measure(scope, status or 500, time.perf_counter() - started)
            CORRELATION_ID.reset(correlation)

    def _require_known_parameters(self, scope: Scope) -> None:
        """Raise Problem 422 for query parameters that the call does not have.

        Here, before the way parts: a hot route's endpoint never sees the framework.
        """
        if self._known is None:
            routes = [route for route in self.routes if isinstance(route, APIRoute)]
            self._known = [(route, query_parameters(route)) for route in routes]
        for route, known in self._known:
            allowed = scope["method"] in (route.methods or ())
            if allowed and route.path_regex.match(scope["path"]):
                unknown = [name for name in QueryParams(scope["query_string"]) if name not in known]
                if unknown:
                    scope["route"] = route
                    raise unknown_parameters(unknown, known)
                return

    def _search(self, method: str, path: str) -> Answer | None:
        """Return what answers at once, if a hot route has this method and path."""
        if self._hot is None:
            routes = [route for route in self.routes if isinstance(route, APIRoute)]
            self._hot = [(route, call) for route in routes if (call := _shortcut(route))]
        for route, call in self._hot:
            if method in (route.methods or ()) and (stream := _id_in(route, path)) is not None:
                return partial(self._answer_at_once, route, call, stream)
        return None

    async def _answer_at_once(
        self,
        route: APIRoute,
        call: Shortcut,
        stream: UUID,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        scope["route"] = route
        answer = await call(stream, Request(scope, receive, send)) or super().__call__
        await answer(scope, receive, send)

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """Return the answer that tells of an error; what nobody foresaw is logged."""
        problem = request.scope.get(TOO_LARGE) or explain(
            self._problem_of(error, request.scope), request, error
        )
        return problem_response(request.scope, problem)

    def _problem_of(self, error: Exception, scope: Scope) -> Problem:
        for kind in type(error).__mro__:
            if kind in self._translate:
                return self._translate[kind](error)
        log.error("request_broke", method=scope["method"], path=scope["path"], exc_info=error)
        detail = "This is our fault and has been logged; please try again."
        return Problem(500, "internal", detail)


def _measure(scope: Scope, status: int, seconds: float) -> None:
    asked = scope.get(ASKED, scope["method"])
    method = asked if asked in METHODS else "other"
    HTTP.observe(method, getattr(scope.get("route"), "path", "unmatched"), status, seconds)
    if REQUESTS.isEnabledFor(logging.DEBUG):
        told = {"path": scope["path"], "requestId": request_id_of(scope)}
        log.debug("request", method=method, status=status, seconds=seconds, **told)


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of the request by its name in lower case; of several the first one."""
    value: bytes | None = scope[HEADERS].get(name)
    return None if value is None else value.decode("latin-1")


def client_address(scope: Scope) -> str:
    """Return the address that sends the request, such as a proxy's; '' on a socket file."""
    host, _ = scope.get("client") or ("", 0)
    return str(host)


def _local_port(scope: Scope) -> int:
    """Return the port that the connection was made to, whatever the request says; 0 for a file."""
    _, port = scope.get("server") or ("", 0)
    return int(port or 0)


def add_header(scope: Scope, name: bytes, value: str) -> None:
    """Have the answer carry a header, whatever it is; the first value of a name stays."""
    scope.setdefault(ADDED, {}).setdefault(name, value.encode("latin-1"))


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(128):032x}"


def request_id_of(scope: Scope) -> str:
    """Return the id of the request, which is also the correlation id of what it causes."""
    return str(scope.get("request_id", ""))


def _limit(receive: Receive, scope: Scope, most: int) -> Receive:
    """Refuse a body above the limit, by its declared length or, failing that, as it arrives."""
    declared = header(scope, b"content-length")
    if declared and declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    taken = 0

    async def counting() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            # FastAPI would turn it into a 400; the handler looks here first.
            scope[TOO_LARGE] = _too_large(most)
            raise scope[TOO_LARGE]
        return message

    return counting


def _too_large(most: int) -> Problem:
    detail = f"The body has more than {most} bytes."
    return Problem(413, "too-large", detail, headers={"Connection": "close"})


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


def wire(body: Wire, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response made straight from a contract shape."""
    return JsonResponse(body.to_json(), status, headers or {})


async def maybe_identity(request: Request) -> Identity | None:
    """Return who calls, or None without a token; a token that proves nothing is refused (401)."""
    given = header(request.scope, b"authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("Send `Authorization: Bearer <token>`.")
    try:
        return await _verify(request.app.state.authenticator, token.strip())
    except InvalidToken as error:
        record(SecurityEvent.TOKEN_REFUSED, client_address(request.scope), reason=error.reason)
        raise _unauthenticated(f"The token was refused: {error.reason}.") from error


async def require_identity(request: Request) -> Identity:
    """Return who calls; 401 without a token."""
    return require_known(await maybe_identity(request))


def require_known(identity: Identity | None) -> Identity:
    """Return who calls; 401 for nobody."""
    if identity is None:
        raise _unauthenticated("This call needs a token: `Authorization: Bearer <token>`.")
    return identity


def role_refused(request: Request, caller: Identity, detail: str) -> Problem:
    """Return the answer (403) to a caller without the role that is needed, and record it."""
    route = getattr(request.scope.get("route"), "path", "")
    roles = ", ".join(sorted(caller.roles))
    record(SecurityEvent.ROLE_REFUSED, caller.user_id, route=route, roles=roles)
    return Problem(403, "forbidden", detail)


def _require_role(*roles: str) -> Callable[[Request], Awaitable[Identity]]:
    """Return what gives a caller with one of these roles; 403 for everybody else."""
    needed = " or ".join(f"`{role}`" for role in roles)

    async def require(request: Request) -> Identity:
        identity = await require_identity(request)
        if identity.roles.isdisjoint(roles):
            raise role_refused(request, identity, f"This call needs the role {needed}.")
        return identity

    setattr(require, ROLES, frozenset(roles))
    return require


def required_roles(route: APIRoute) -> frozenset[str]:
    """Return the roles of which every caller of a route needs one; none where it takes others."""
    return _roles_of(route.dependant)


def _roles_of(dependant: Dependant) -> frozenset[str]:
    own: frozenset[str] = getattr(dependant.call, ROLES, frozenset())
    return own.union(*map(_roles_of, dependant.dependencies))


require_admin = _require_role("admin")
require_moderator = _require_role("moderator", "admin")
MaybeCaller = Annotated[Identity | None, Depends(maybe_identity)]
Caller = Annotated[Identity, Depends(require_identity)]
Admin = Annotated[Identity, Depends(require_admin)]
Moderator = Annotated[Identity, Depends(require_moderator)]
Auditor = Annotated[Identity, Depends(_require_role("auditor", "admin"))]
"""Who may look into the event log."""


async def _verify(authenticator: Authenticator, token: str) -> Identity:
    known = authenticator.recall(token)
    if known is not None:
        return known
    try:
        await authenticator.prepare(token)
        return authenticator.authenticate(token)
    except KeysUnavailable as error:
        log.warning("key_server_unavailable", error=str(error))
        raise Problem(
            503, "unavailable", "Tokens can't be verified right now.", headers={"Retry-After": "5"}
        ) from error


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})
