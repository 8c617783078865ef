"""Every route has a line that says who may call it, and every line a route."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Mount, Route

from infra.http.app import HttpApp
from infra.http.auth import required_roles
from infra.http.shapes import Wire
from tests.routes import ADMIN, AUDITORS, MODERATORS, ROUTES, SERVICES
from tests.unit.unstarted import application

ADMIN_PORT = 8001
# Documentation and readiness are on both ports.
ON_BOTH = {"GET /healthz", "GET /readyz", "GET /openapi.json", "GET /docs", "GET /docs/static"}


def calls(app: HttpApp) -> list[str]:
    """Every method and path in the application's route table; a folder of files is one GET."""
    found = []
    for route in app.routes:
        if isinstance(route, Mount):
            found.append(f"GET {route.path}")
        elif isinstance(route, Route | APIRoute):
            # Every GET answers HEAD; the framework's own routes say so.
            found += [f"{method} {route.path}" for method in sorted(_methods(route) - {"HEAD"})]
        else:
            raise AssertionError(f"a route of a kind that nobody walks: {route!r}")
    return found


def _methods(route: Route) -> set[str]:
    return set(route.methods or ())


def test_what_can_be_repeated_says_its_shape(tmp_path: Path) -> None:
    """What is kept of an answer has pseudonyms: the shape says where names belong."""
    posts = [
        route
        for route in application(tmp_path).routes
        if isinstance(route, APIRoute) and "POST" in _methods(route)
    ]
    assert posts
    assert [route.path for route in posts if not issubclass(route.response_model, Wire)] == []


def test_every_route_has_a_line_and_every_line_a_route(tmp_path: Path) -> None:
    lines = Counter(line.call for line in ROUTES)
    assert [call for call, count in lines.items() if count > 1] == []
    routes = set(calls(application(tmp_path)))
    assert routes - lines.keys() == set(), "add a line to tests/routes.py for these"
    assert lines.keys() - routes == set(), "there are no such routes"


def test_lines_say_the_roles_that_routes_require(tmp_path: Path) -> None:
    """A route that requires a role does so of everybody, and its line says of whom."""
    may = {line.call: line.may for line in ROUTES}
    by_roles = {
        frozenset({"admin"}): ADMIN,
        frozenset({"admin", "auditor"}): AUDITORS,
        frozenset({"admin", "moderator"}): MODERATORS,
        frozenset({"admin", "service"}): SERVICES,
    }
    for route in application(tmp_path).routes:
        if isinstance(route, APIRoute) and (roles := required_roles(route)):
            for method in _methods(route):
                assert may[f"{method} {route.path}"] <= by_roles[roles]


def test_with_an_admin_port_each_route_is_on_one_port(tmp_path: Path) -> None:
    public = application(tmp_path, ADMIN_PORT=str(ADMIN_PORT))
    apart = public._apart[ADMIN_PORT]
    outside, inside = set(calls(public)), set(calls(apart))
    assert outside & inside == ON_BOTH
    assert outside | inside == {line.call for line in ROUTES}
    for_operators = {line.call for line in ROUTES if line.may <= AUDITORS and line.may}
    assert inside - ON_BOTH == for_operators | {"GET /metrics"}
    assert apart.state is public.state


@pytest.mark.parametrize(
    ("port", "server", "served"),
    [(8001, ("10.0.0.1", 8001), True), (8001, ("10.0.0.1", 8000), False), (8001, None, False)],
)
def test_the_port_is_that_of_the_connection_not_of_the_request(
    tmp_path: Path, port: int, server: tuple[str, int] | None, served: bool
) -> None:
    app = application(tmp_path, ADMIN_PORT=str(port))
    scope = {
        "type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "server": server,
        "headers": [(b"host", b"127.0.0.1:8001"), (b"x-forwarded-port", b"8001")],
    }  # fmt: skip
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    asyncio.run(app(scope, receive, send))
    assert statuses == [200 if served else 404]
