"""A process that shows the pages alone: which APIs it asks, and what it has at which port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
import pytest
from starlette.testclient import TestClient

from backlot.web import FirstThatKnows, login_link, operators_link, pages_alone
from infra.settings import load_settings
from web.sealed import Box

SECRET = "0f7d2c9b8a1e4f6d3c5b7a9e8d1f2c4b"


def asked(status: Mapping[str, int], path: str = "/projections?limit=2") -> list[str]:
    """The URLs that were asked in turn, of APIs that answer with these statuses by host."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(status[request.url.host])

    apis = FirstThatKnows([f"http://{host}/base" for host in status], httpx.MockTransport(answer))

    async def ask() -> int:
        async with httpx.AsyncClient(transport=apis, base_url="http://api") as client:
            return (await client.post(path, json={"reason": "x"})).status_code

    seen.append(str(asyncio.run(ask())))
    return seen


def test_the_first_api_that_has_the_route_is_asked_and_no_other() -> None:
    url = "/base/projections?limit=2"
    assert asked({"a": 404, "b": 405, "c": 202, "d": 202}) == [
        f"http://a{url}", f"http://b{url}", f"http://c{url}", "202",
    ]  # fmt: skip
    assert asked({"a": 403, "b": 200}) == [f"http://a{url}", "403"]
    assert asked({"a": 404, "b": 404})[-1] == "404"


def test_the_console_is_at_the_port_of_operators_where_there_is_one() -> None:
    settings = load_settings({"WEB_SESSION_SECRET": SECRET, "ADMIN_PORT": "8001"})
    app, _ = pages_alone(settings, lambda: pytest.fail("there is a secret"))
    public = TestClient(app, base_url="http://backlot.test:8000", follow_redirects=False)
    console = TestClient(app, base_url="http://backlot.test:8001", follow_redirects=False)
    for client, page, none in ((public, "/studio", "/console"), (console, "/console", "/studio")):
        assert "json" not in client.get(page).headers.get("content-type", "")
        assert client.get(none).json()["type"] == "not-found"
    for client in (public, console):
        assert client.get("/login").status_code == 200
        assert client.get("/healthz").json() == {"status": "ok"}


def test_pages_whose_apis_are_away_are_not_ready() -> None:
    settings = load_settings({"WEB_API_URLS": "http://127.0.0.1:9", "WEB_SESSION_SECRET": SECRET})
    app, ask = pages_alone(settings, lambda: "")

    async def ready() -> bool:
        return (await ask()).ready

    assert not asyncio.run(ready())
    assert TestClient(app).get("/readyz").status_code == 503


def test_a_link_is_good_for_who_made_it() -> None:
    settings = load_settings({"BACKLOT_PUBLIC_URL": "https://video.test"})
    link = login_link(settings, "local", "ann", ["auditor"], page="/console")
    start, _, code = link.removesuffix("?next=/console").rpartition("/")
    assert start == "https://video.test/login/link"
    told = Box("local").open("login link", code)
    assert told is not None
    assert (told["user"], told["roles"]) == ("ann", ["auditor"])
    assert Box("another").open("login link", code) is None


@pytest.mark.parametrize(
    "given", [{"JWT_SECRET": SECRET}, {"BACKLOT_ROLES": "queries"}], ids=["tokens", "no pages"]
)
def test_no_operator_is_logged_in_where_others_give_tokens(given: dict[str, str]) -> None:
    assert operators_link(load_settings(given), "local") is None
    assert operators_link(load_settings({}), "local") is not None
