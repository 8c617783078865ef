"""The application that both APIs are: its edge, its hot routes and its answers.

The edge is the outermost layer: request ids, limits of bodies, metrics, and no naked 500.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import ParamTypes
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.http.auth import Authenticator, Identity, caller_of, recalled
from infra.http.cors import CrossOrigin
from infra.http.openapi import document
from infra.http.problems import FRAMEWORK, Make, Problem, explain, unknown_parameters
from infra.http.rate_limits import LimitReached, RateLimits, fields, too_many
from infra.http.requests import (
    ADDED,
    HEADERS,
    HTTP,
    OBJECTS,
    TOO_LARGE,
    Hosts,
    Proxies,
    check_size,
    client_address,
    header,
    limited,
    new_request_id,
    rate_class,
    request_id_of,
)
from infra.http.responses import PRIVATE, problem_response
from infra.logging import CORRELATION_ID
from infra.security_log import SecurityEvent, record

log = structlog.get_logger(__name__)

REQUESTS = logging.getLogger(__name__)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REMEMBERED_BYTES = 8 * 1024 * 1024
# About what an entry of the table takes beside its path.
ENTRY_BYTES = 700
# What is kept in a request's scope: the method that the client sent in place of GET, and a body
# that a shortcut has read.
ASKED = "backlot.method"
# Defined for GET alone (RFC 9110, 14.2): a HEAD is told of the whole.
FOR_RANGES = (b"range", b"if-range")
BODY = "backlot.body"
SHORTCUT = "backlot_shortcut"
NOT_KEPT = ((b"cache-control", b"no-store"),)
REVALIDATED = ((b"cache-control", PRIVATE.encode()),)
Answer = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


class Way(NamedTuple):
    """What answers a request at once, if a hot route does; the request's class of rate limits."""

    answer: Answer | None
    kind: str | None
    route: APIRoute | None = None


Shortcut = Callable[..., Awaitable[Response | None]]
"""Answers a `request`, given the ids of its path by name; None: it goes through the framework."""

B = TypeVar("B", bound=BaseModel)
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class DirectRoute(APIRoute):
    """A hot route, whose endpoint is called without the framework, except for an id that is none.

    It is documented like every other.
    """


def hot(shortcut: Shortcut) -> Callable[[Endpoint], Endpoint]:
    """Mark an ordinary endpoint: `shortcut` is asked first, and answers what is asked most."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, SHORTCUT, shortcut)
        return endpoint

    return mark


def _shortcut(route: APIRoute) -> Shortcut | None:
    if isinstance(route, DirectRoute):
        return cast("Shortcut", route.endpoint)
    return getattr(route.endpoint, SHORTCUT, None)


def _ids_in(route: APIRoute, path: str) -> dict[str, UUID] | None:
    """Return the ids in a path of the route; None where it is none, or has what is no id."""
    match = route.path_regex.match(path)
    try:
        return {name: UUID(text) for name, text in match.groupdict().items()} if match else None
    except ValueError:
        return None


class AnswersByPath:
    """What answers at the paths that hot routes were found for; bounded by bytes, oldest first."""

    def __init__(self, most_bytes: int = REMEMBERED_BYTES) -> None:
        self._most = most_bytes
        self._answers: dict[tuple[str, str], Way] = {}
        self.bytes = 0

    def get(self, method: str, path: str) -> Way | None:
        return self._answers.get((method, path))

    def put(self, method: str, path: str, answer: Way) -> None:
        self._answers[method, path] = answer
        self.bytes += ENTRY_BYTES + len(path)
        while self.bytes > self._most:
            oldest = next(iter(self._answers))
            del self._answers[oldest]
            self.bytes -= ENTRY_BYTES + len(oldest[1])


def query_parameters(route: APIRoute) -> frozenset[str]:
    """Return the names of the query parameters of a call, as the client writes them."""
    params = get_flat_params(route.dependant)
    # Those of a shape, as signed URLs have, don't say where they stand.
    return frozenset(
        param.alias
        for param in params
        if getattr(param.field_info, "in_", ParamTypes.query) is ParamTypes.query
    )


class PageApp(NamedTuple):
    """An application for browsers, and whether a path is one of its."""

    app: ASGIApp
    has: Callable[[str], bool]


class HeadersSent(Exception):
    """All that a HEAD asks for is sent, so whatever answers may stop."""


def as_get(scope: Scope) -> Scope:
    """Return the GET whose headers a HEAD asks for."""
    headers = [pair for pair in scope["headers"] if pair[0] not in FOR_RANGES]
    return {**scope, "method": "GET", ASKED: "HEAD", "headers": headers}


def as_overridden(scope: Scope) -> Scope:
    """Return the request that a POST stands for where its client can't send other methods."""
    for name, value in scope["headers"]:
        if name == b"x-http-method-override":
            method = value.decode("latin-1").strip().upper()
            return {**scope, "method": method} if method in METHODS else scope
    return scope


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
        overridden: tuple[str, ...] = (),
        proxies: Proxies | None = None,
        hosts: Hosts | None = None,
        **options: Any,
    ) -> None:
        """`translate` maps exceptions to problems; `body_limit` is in bytes.

        `unlimited` are path prefixes whose bodies are streamed and limit themselves, `overridden`
        those where `X-HTTP-Method-Override` of a POST says the method. Without
        `hosts` a request may name any; `options` are FastAPI's.
        """
        self._translate = {**FRAMEWORK, LimitReached: too_many, **translate}
        handlers: dict[Any, Any] = dict.fromkeys(self._translate, self._refuse)
        super().__init__(exception_handlers=handlers, **options)
        self.state.authenticator = authenticator
        self._body_limit = body_limit
        self._unlimited = unlimited
        self._overridden = overridden
        self.proxies = proxies or Proxies()
        self.rate_limits: RateLimits | None = None
        self.cross_origin: CrossOrigin | None = None
        self._hosts = hosts
        self._apart: dict[int, HttpApp] = {}
        self._pages: PageApp | None = None
        self._known: list[tuple[APIRoute, frozenset[str], frozenset[str]]] | None = None
        self._hot: list[tuple[APIRoute, Shortcut]] | None = None
        self._answers = AnswersByPath()

    def serve_apart(self, port: int, app: HttpApp) -> None:
        """Have requests that arrive at a port of their own answered by another application.

        Both have the same state; the lifespan is this one's.
        """
        app.state = self.state
        self._apart[port] = app

    def show_pages(self, pages: ASGIApp, has: Callable[[str], bool]) -> None:
        """Have another application answer at the paths that it has, as pages for browsers."""
        self._pages = PageApp(pages, has)

    def limit_rates(self, limits: RateLimits) -> None:
        """Limit the rates of all requests, whichever port they come to."""
        for app in (self, *self._apart.values()):
            app.rate_limits = limits

    def build_middleware_stack(self) -> ASGIApp:
        """Return the framework's layers, without the one that tells what breaks in plain text."""
        stack = super().build_middleware_stack()
        return stack.app if isinstance(stack, ServerErrorMiddleware) else stack

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which is made once."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self.title, self.version, self.routes)
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if self._apart and (apart := self._apart.get(_local_port(scope))):
            await apart(scope, receive, send)
            return
        if self._pages is not None and self._pages.has(scope["path"]):
            await self._show(self._pages.app, scope, receive, send)
            return
        if scope["method"] == "POST" and scope["path"].startswith(self._overridden):
            scope = as_overridden(scope)
        if scope["method"] != "HEAD":
            await self._serve(scope, receive, send)
            return
        with suppress(HeadersSent):
            await self._serve(as_get(scope), receive, send)

    async def _show(self, pages: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a page. What it asks the APIs for is authorized and limited there."""
        started, status = time.perf_counter(), 0
        scope["app"], scope[HEADERS] = self, dict(reversed(scope["headers"]))
        scope["client"] = (client_address(scope), 0)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            check_size(scope)
            if self._hosts is not None:
                _check_host(scope, self._hosts)
            await pages(scope, limited(receive, scope, self._body_limit), watched)
        except Problem as problem:
            await problem_response(scope, problem)(scope, receive, watched)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            HTTP.observe(method, "pages", status or 500, time.perf_counter() - started)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request, or tell what went wrong in place of an answer."""
        started = time.perf_counter()
        scope["app"] = self
        scope[HEADERS] = dict(reversed(scope["headers"]))
        request_id = scope["request_id"] = new_request_id(scope)
        stamp = (b"x-request-id", request_id.encode("latin-1"))
        status, cross_origin = 0, self.cross_origin

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = self._stamped(scope, message.get("headers", ()), stamp)
            elif ASKED in scope and message["type"] == "http.response.body":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise HeadersSent
            await send(message)

        correlation = CORRELATION_ID.set(request_id)
        try:
            check_size(scope)
            if self._hosts is not None:
                _check_host(scope, self._hosts)
            if cross_origin is not None and (preflight := cross_origin.preflight(scope)):
                await preflight(scope, receive, send_with_id)
                return
            found = self._find(scope["method"], scope["path"])
            if found.kind is not None and self.rate_limits is not None:
                await _admit(scope, self.rate_limits, found.kind)
            if scope["query_string"]:
                self._require_known_parameters(scope, found.route)
            answer = found.answer or super().__call__
            unlimited = self._unlimited and scope["path"].startswith(self._unlimited)
            body = receive if unlimited else limited(receive, scope, self._body_limit)
            await answer(scope, body, send_with_id)
        except Exception as error:
            if status:
                raise
            refusal = await self._refuse(Request(scope), error)
            await refusal(scope, receive, send_with_id)
        finally:
            _measure(scope, status or 500, time.perf_counter() - started)
            CORRELATION_ID.reset(correlation)

    def _stamped(self, scope: Scope, own: Headers, stamp: tuple[bytes, bytes]) -> Headers:
        """Return the headers of an answer: its own, and what every answer has."""
        headers = [*own, stamp]
        if ADDED in scope:
            headers += scope[ADDED].items()
        headers += _storage(scope, own)
        return headers if self.cross_origin is None else self.cross_origin.stamped(scope, headers)

    def _find(self, method: str, path: str) -> Way:
        """Return what answers at once, if a hot route does, and the class of the request."""
        known = self._answers.get(method, path)
        if known is None:
            known = self._search(method, path)
            if known.answer is not None:
                self._answers.put(method, path, known)
        return known

    def _require_known_parameters(self, scope: Scope, found: APIRoute | None) -> None:
        """Raise Problem 422 for query parameters that the call does not have.

        Here, before the way parts: a hot route's endpoint never sees the framework.
        """
        if self._known is None:
            self._known = self._known_parameters()
        for route, own, known in self._known:
            allowed = scope["method"] in (route.methods or ()) and found in (None, route)
            if allowed and route.path_regex.match(scope["path"]):
                unknown = [name for name in QueryParams(scope["query_string"]) if name not in known]
                if unknown:
                    scope["route"] = route
                    raise unknown_parameters(unknown, own)
                return

    def _known_parameters(self) -> list[tuple[APIRoute, frozenset[str], frozenset[str]]]:
        """Return each call with its query parameters, and with those that it may be sent.

        A signed URL may have those of all methods of its path: its signature says which one it is
        for.
        """
        routes = [route for route in self.routes if isinstance(route, APIRoute)]
        own = [(route, query_parameters(route)) for route in routes]
        signed: dict[str, frozenset[str]] = {}
        for route, names in own:
            if self._unlimited and route.path.startswith(self._unlimited):
                signed[route.path] = signed.get(route.path, frozenset()) | names
        return [(route, names, signed.get(route.path, names)) for route, names in own]

    def _search(self, method: str, path: str) -> Way:
        if self._hot is None:
            routes = [route for route in self.routes if isinstance(route, APIRoute)]
            self._hot = [(route, call) for route in routes if (call := _shortcut(route))]
        for route, call in self._hot:
            if method in (route.methods or ()) and (ids := _ids_in(route, path)) is not None:
                answer = partial(self._answer_at_once, route, call, ids)
                return Way(answer, rate_class(method, path), route)
        return Way(None, rate_class(method, path))

    async def _answer_at_once(
        self,
        route: APIRoute,
        call: Shortcut,
        ids: Mapping[str, UUID],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        scope["route"] = route
        request = Request(scope, receive, send)
        answer = await call(request=request, **ids)
        if answer is not None:
            await answer(scope, receive, send)
        else:
            await super().__call__(scope, _again(scope, receive), send)

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
        log.error("request_broke", method=scope["method"], path=_path_told(scope), exc_info=error)
        detail = "This is our fault and has been logged; please try again."
        return Problem(500, "internal", detail)


async def body_at_once(request: Request, shape: type[B]) -> B | None:
    """Return the body of a request to a shortcut; None for whatever is no JSON of that shape.

    The framework is to tell what is wrong: it gets the same body again.
    """
    kind = header(request.scope, b"content-type") or ""
    if kind.partition(";")[0].strip().lower() != "application/json":
        return None
    try:
        request.scope[BODY] = body = await request.body()
        return shape.model_validate_json(body)
    except (ClientDisconnect, ValueError):
        return None


def _again(scope: Scope, receive: Receive) -> Receive:
    """Return what receives a body that a shortcut has read, and then what comes after it."""
    if BODY not in scope:
        return receive
    read = [{"type": "http.request", "body": scope[BODY], "more_body": False}]

    async def again() -> Message:
        return read.pop() if read else await receive()

    return again


def _measure(scope: Scope, status: int, seconds: float) -> None:
    asked = scope.get(ASKED, scope["method"])
    method = asked if asked in METHODS else "other"
    HTTP.observe(method, getattr(scope.get("route"), "path", "unmatched"), status, seconds)
    if REQUESTS.isEnabledFor(logging.DEBUG):
        told = {"path": _path_told(scope), "requestId": request_id_of(scope)}
        log.debug("request", method=method, status=status, seconds=seconds, **told)


def _path_told(scope: Scope) -> str:
    """Return the path as logs may have it: without the user id that it may name."""
    template = str(getattr(scope.get("route"), "path", ""))
    return template if "{user_id}" in template else str(scope["path"])


def _local_port(scope: Scope) -> int:
    """Return the port that the connection was made to, whatever the request says; 0 for a file."""
    _, port = scope.get("server") or ("", 0)
    return int(port or 0)


def _check_host(scope: Scope, hosts: Hosts) -> None:
    """Raise Problem 421 where the request names a host that is not this server's."""
    if not hosts.knows(header(scope, b"host"), scope) and rate_class("GET", scope["path"]):
        detail = "This server is not known by that `Host`; its operator has to set "
        raise Problem(421, "host-unknown", f"{detail}`BACKLOT_PUBLIC_URL`.")


def _storage(scope: Scope, headers: Headers) -> Sequence[tuple[bytes, bytes]]:
    """Return what an answer lacks that says who may keep it: nobody, unless it has a tag."""
    tagged = False
    for name, _ in headers:
        if name == b"cache-control":
            return ()
        tagged |= name == b"etag"
    return REVALIDATED if tagged and scope["method"] == "GET" else NOT_KEPT


async def _admit(scope: Scope, limits: RateLimits, kind: str) -> None:
    """Let a request of a class pass within its caller's limits; raise LimitReached beyond them."""
    path = scope["path"]
    caller = None if path.startswith(OBJECTS) else recalled(scope) or await caller_of(scope)
    person = caller.person if isinstance(caller, Identity) else None
    address = client_address(scope)
    try:
        told = await limits.admit(kind, person, address, path)
    except LimitReached:
        record(SecurityEvent.LIMIT_HIT, person or address, limit=kind)
        raise
    if told is not None:
        # The first of all that is added to the answer.
        scope[ADDED] = fields(told)
