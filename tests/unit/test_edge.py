"""Whatever breaks behind the edge is an answer in the form of every other problem, and logged."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID, uuid4

import pytest
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from pydantic import Field
from structlog.testing import capture_logs

from infra.http.app import HttpApp, body_at_once, hot
from infra.http.auth import Authenticator
from infra.http.shapes import RequestBody


class Note(RequestBody):
    """What a client sends."""

    text: Annotated[str, Field(max_length=20)]
    number: int = 0


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

    async def told(id: UUID, body: Note, request: Request) -> Response:  # noqa: A002
        return JSONResponse(body.model_dump())

    async def tell_at_once(id: UUID, request: Request) -> Response | None:  # noqa: A002
        body = await body_at_once(request, Note)
        return None if body is None else await told(id, body, request)

    app.post("/plain/{id}")(told)

    @app.post("/hot/{id}")
    @hot(tell_at_once)
    async def hot_told(id: UUID, body: Note, request: Request) -> Response:  # noqa: A002
        return await told(id, body, request)

    return TestClient(app)


JSON = "application/json"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b'{"text": "a note"}'),
        ("Application/JSON; charset=utf-8", b'{"text": "a note", "number": "7"}'),
        (JSON, b'{"text": "twice", "text": "the last"}'),
        (JSON, b'\xef\xbb\xbf{"text": "after a byte order mark"}'),
        (JSON, b'{"text": "\\ud83d alone"}'),
        (JSON, b'{"text": "number", "number": NaN}'),
        (JSON, b'{"text": "number", "number": 7.5}'),
        (JSON, b'{"text": "more than twenty characters"}'),
        (JSON, b'{"text": "a note", "other": 1}'),
        (JSON, b'{"text": "cut'),
        (JSON, b'"text"'),
        (JSON, b"null"),
        (JSON, b""),
        (JSON, b'{"text": "' + 2000 * b"x" + b'"}'),
        ("text/plain", b'{"text": "a note"}'),
        (None, b'{"text": "a note"}'),
    ],
)
def test_a_body_is_taken_at_once_as_the_framework_takes_it(
    client: TestClient, kind: str | None, body: bytes
) -> None:
    headers = {"X-Request-Id": "mine"} | ({"Content-Type": kind} if kind else {})
    plain, hot = (
        client.post(f"/{route}/{uuid4()}", content=body, headers=headers)
        for route in ("plain", "hot")
    )
    assert (hot.status_code, hot.json()) == (plain.status_code, plain.json())


def test_what_is_sound_never_gets_to_the_framework(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi.FastAPI.__call__", None)
    assert client.post(f"/hot/{uuid4()}", json={"text": "a note"}).json()["text"] == "a note"


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
