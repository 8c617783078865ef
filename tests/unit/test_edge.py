"""Whatever breaks behind the edge is an answer in the form of every other problem, and logged."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from fastapi import Request, Response
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from infra.http.app import HttpApp, hot
from infra.http.auth import Authenticator


async def ask_the_framework(stream: UUID, request: Request) -> Response | None:
    """A hot route that leaves its request to the framework."""
    return None


async def break_at_once(stream: UUID, request: Request) -> Response | None:
    raise ArithmeticError("at once")


@pytest.fixture
def client() -> TestClient:
    app = HttpApp(
        title="some",
        authenticator=Authenticator.__new__(Authenticator),
        body_limit=1000,
        translate={},
    )

    @app.get("/plain/{id}")
    async def plain(id: UUID) -> None:  # noqa: A002 - the name in the path
        raise ArithmeticError("plain")

    @app.get("/later/{id}")
    @hot(ask_the_framework)
    async def later(id: UUID) -> None:  # noqa: A002 - the name in the path
        raise ArithmeticError("later")

    @app.get("/hot/{id}")
    @hot(break_at_once)
    async def at_once(id: UUID) -> None: ...  # noqa: A002 - the name in the path

    return TestClient(app)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("route", ["plain", "later", "hot"])
def test_what_breaks_is_a_problem_and_a_line_in_the_log(
    client: TestClient, route: str, method: str
) -> None:
    with capture_logs() as logged:
        answer = client.request(method, f"/{route}/{uuid4()}", headers={"X-Request-Id": "mine"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "mine"
    if method == "GET":
        assert answer.json()["type"] == "internal"
    assert [line["event"] for line in logged] == ["request_broke"]
