"""The outermost layer of both applications: request ids, limits, metrics, and no naked 500."""

from __future__ import annotations

import logging
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, TypeVar, cast
from uuid import UUID

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.http.problems import Make, Problem, problem_response, request_id_of
from infra.logging import CORRELATION_ID
from infra.metrics import REGISTRY, SECONDS

log = structlog.get_logger(__name__)

REQUESTS = logging.getLogger(__name__)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLOSE = {"Connection": "close"}
REMEMBERED_PATHS = 10_000
HEADERS = "backlot.headers"
ADDED = "backlot.added"
GUARDED = "backlot.guarded"
ASKED = "backlot.method"
# Defined for GET alone (RFC 9110, 14.2): a HEAD is told of the whole.
FOR_RANGES = (b"range", b"if-range")
SHORTCUT = "backlot_shortcut"

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]

Hot = Callable[[UUID, Request], Awaitable[Response | None]]
"""Answers a request for the one id in its path, or None: then it goes through the framework."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class DirectRoute(APIRoute):
    """A hot route, whose endpoint is called without the framework.

    It is documented like every other. What is unusual, such as an id that is none, goes the
    ordinary way.
    """


def hot(shortcut: Hot) -> Callable[[Endpoint], Endpoint]:
    """Marks an ordinary endpoint, before which `shortcut` may answer what is asked most."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, SHORTCUT, shortcut)
        return endpoint

    return mark


def _shortcut(route: APIRoute) -> Hot | None:
    if isinstance(route, DirectRoute):
        return cast("Hot", route.endpoint)
    return getattr(route.endpoint, SHORTCUT, None)


def _id_in(route: APIRoute, path: str) -> UUID | None:
    match = route.path_regex.match(path)
    try:
        return UUID(match[1]) if match else None
    except ValueError:
        return None


class HeadersSent(Exception):
    """All that a HEAD asks for is sent, so whatever answers may stop."""


def as_get(scope: Scope) -> Scope:
    """Return the GET whose headers a HEAD asks for."""
    headers = [pair for pair in scope["headers"] if pair[0] not in FOR_RANGES]
    return {**scope, "method": "GET", ASKED: "HEAD", "headers": headers}


def without_body(send: Send) -> Send:
    """Sends the headers of an answer, then ends it and raises HeadersSent."""

    async def send_headers(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        raise HeadersSent

    return send_headers


class Timed:
    """Requests of one method and route: how many fell into each bucket, and their seconds."""

    __slots__ = ("counts", "seconds", "statuses")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.seconds = 0.0
        self.statuses: Counter[int] = Counter()


class RequestMetrics(Collector):
    """Requests by method, route template and status, and the time that they took.

    prometheus_client's own counters cost a request as much as its route. One event loop observes;
    the figures get Prometheus' shape when somebody scrapes them.
    """

    def __init__(self, prefix: str, buckets: Sequence[float]) -> None:
        """`buckets` are upper bounds in seconds, in rising order."""
        self._prefix = prefix
        self._bounds = list(buckets)
        self._timed: dict[tuple[str, str], Timed] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Take in one answered request."""
        timed = self._timed.get((method, route))
        if timed is None:
            timed = self._timed[method, route] = Timed(len(self._bounds))
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


class Edge:
    """Guards every answer: gives the request its id, limits its body, measures, tells problems."""

    def __init__(
        self,
        *,
        body_limit: int,
        translate: Mapping[type[Exception], Make],
        unlimited: tuple[str, ...] = (),
    ) -> None:
        self._body_limit = body_limit
        self._translate = translate
        self._unlimited = unlimited

    async def guard(self, scope: Scope, receive: Receive, send: Send, answer: Answer) -> None:
        """Have `answer` answer an HTTP request, or tell what went wrong in its place."""
        started = time.perf_counter()
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
            await send(message)

        limited = not (self._unlimited and scope["path"].startswith(self._unlimited))
        correlation = CORRELATION_ID.set(request_id)
        try:
            guarded = _limit(receive, scope, self._body_limit) if limited else receive
            await answer(scope, guarded, send_with_id)
        except Exception as error:
            if status:
                raise
            problem = self._as_problem(error, scope)
            await problem_response(scope, problem)(scope, receive, send_with_id)
        finally:
            self._measure(scope, status or 500, time.perf_counter() - started)
            CORRELATION_ID.reset(correlation)

    def _as_problem(self, error: Exception, scope: Scope) -> Problem:
        for kind in type(error).__mro__:
            if kind in self._translate:
                return self._translate[kind](error)
        log.error("request_broke", method=scope["method"], path=scope["path"], exc_info=error)
        detail = "This is our fault and has been logged; please try again."
        return Problem(500, "internal", detail)

    def _measure(self, scope: Scope, status: int, seconds: float) -> None:
        asked = scope.get(ASKED, scope["method"])
        method = asked if asked in METHODS else "other"
        route = getattr(scope.get("route"), "path", "unmatched")
        HTTP.observe(method, route, status, seconds)
        if REQUESTS.isEnabledFor(logging.DEBUG):
            path, id_ = scope["path"], request_id_of(scope)
            log.debug(
                "request", method=method, path=path, status=status, seconds=seconds, requestId=id_
            )


class EdgeLayer:
    """The edge as the framework's middleware."""

    def __init__(self, app: ASGIApp, edge: Edge) -> None:
        self._app = app
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and GUARDED not in scope:
            await self._edge.guard(scope, receive, send, self._app)
        else:
            await self._app(scope, receive, send)


class EdgedApp(FastAPI):
    """An application behind the edge, which calls the endpoints of hot routes itself.

    The framework's own layers and its search for the route cost more than a whole like. A HEAD is
    answered as the GET of its path, without a body (RFC 9110, 9.3.2).
    """

    def __init__(self, edge: Edge, **options: Any) -> None:
        super().__init__(**options)
        self._edge = edge
        self._hot: list[tuple[APIRoute, Hot]] | None = None
        self._find = lru_cache(REMEMBERED_PATHS)(self._search)
        self.add_middleware(EdgeLayer, edge=edge)

    def build_middleware_stack(self) -> ASGIApp:
        """Return the framework's layers, without the one that tells what breaks in plain text.

        That is the edge's, also of a hot route that left its request to the framework.
        """
        stack = super().build_middleware_stack()
        return stack.app if isinstance(stack, ServerErrorMiddleware) else stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            with suppress(HeadersSent):
                await self._serve(as_get(scope), receive, without_body(send))
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._find(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if answer is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self._edge.guard(scope, receive, send, answer)

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
        self, route: APIRoute, call: Hot, stream: UUID, scope: Scope, receive: Receive, send: Send
    ) -> None:
        scope["route"] = route
        response = await call(stream, Request(scope, receive, send))
        if response is None:
            scope[GUARDED] = True
            await super().__call__(scope, receive, send)
        else:
            await response(scope, receive, send)


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of the request by its name in lower case; of several the first one."""
    value: bytes | None = scope[HEADERS].get(name)
    return None if value is None else value.decode("latin-1")


def client_address(scope: Scope) -> str:
    """Return the address that sends the request, such as a proxy's; '' on a socket file."""
    host, _ = scope.get("client") or ("", 0)
    return str(host)


def add_header(scope: Scope, name: bytes, value: str) -> None:
    """Have the answer carry a header, whatever it is; the first value of a name stays."""
    scope.setdefault(ADDED, {}).setdefault(name, value.encode("latin-1"))


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(128):032x}"


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
            scope["problem"] = _too_large(most)
            raise scope["problem"]
        return message

    return counting


def _too_large(most: int) -> Problem:
    return Problem(413, "too-large", f"The body has more than {most} bytes.", headers=CLOSE)
