"""What pages of other origins may do: the settings, and that no header is forgotten."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from backlot.http import ApiPart
from infra.http.cors import ALLOWED, EXPOSED, METHODS
from infra.http.problems import ProblemType
from infra.settings import SettingsError, load_settings
from tests.api_changes import follow
from tests.structure import ROOT, nodes_of
from tests.unit.unstarted import application, described

PAGE, OTHER = "https://app.example.org", "http://localhost:5173"
ORIGINS = f"{PAGE},{OTHER}"
UNKNOWN = "https://app.example.org.evil.example"
# What browsers send by themselves, or scripts can't set (the forbidden request-headers).
OF_THE_BROWSER = {"host", "content-length", "origin", "user-agent"}
# A script may always set it.
OF_EVERY_PAGE = {"accept"}
# What proxies say.
OF_PROXIES = {"x-forwarded-for"}
# The CORS-safelisted response-headers, and those that only the browser goes by.
READ_ANYWAY = {"cache-control", "content-language", "content-length", "content-type", "expires"}
READ_ANYWAY |= {"last-modified"}
FOR_THE_BROWSER = {"content-security-policy", "vary", "x-accel-buffering", "x-content-type-options"}
NAME = re.compile(r"[A-Za-z]+(?:-[A-Za-z0-9]+)+|ETag|Allow|Location|Link|RateLimit|Vary")
EDGE = ("infra/http", "infra/objects/routes.py", "commands", "readapi", "backlot/http.py")
# It speaks of both sides: what it names is what is tested here.
ITSELF = "infra/http/cors.py"


def sources() -> Iterator[Path]:
    for place in EDGE:
        path = ROOT / place
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def text_of(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value.decode() if isinstance(node.value, bytes) else node.value
    return None


def names_of_constants() -> dict[str, str]:
    """The names of headers that constants of the edge stand for."""
    found: dict[str, str] = {}
    for node in (node for path in sources() for node in nodes_of(path)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple | ast.Name):
            target, value = node.targets[0], node.value
            pairs = (
                zip(target.elts, value.elts, strict=False)
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                else [(target, value)]
            )
            for name, each in pairs:
                text = text_of(each)
                if isinstance(name, ast.Name) and text and NAME.fullmatch(text):
                    found[name.id] = text.lower()
    return found


def read_in_code() -> set[str]:
    """The headers of requests that the edge asks for by `header(scope, …)` or `headers.get(…)`."""
    constants, found = names_of_constants(), set()
    for path in sources():
        for node in nodes_of(path):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "header":
                name = node.args[1]
            elif called in ("request.headers.get", "scope[HEADERS].get"):
                name = node.args[0]
            else:
                continue
            text = constants.get(name.id) if isinstance(name, ast.Name) else text_of(name)
            # `header` itself has it as its parameter.
            if text is not None:
                found.add(text.lower())
    return found


def sent_in_code() -> set[str]:
    """The headers of answers: keys of dicts that look like one, and pairs of bytes."""
    found = set()
    for path in sources():
        if str(path.relative_to(ROOT)) == ITSELF:
            continue
        for node in nodes_of(path):
            keys: list[ast.AST | None] = []
            if isinstance(node, ast.Dict):
                keys = list(node.keys)
            elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
                # Two names beside each other are no name with its value.
                named = NAME.fullmatch(text_of(node.elts[1]) or "")
                is_bytes = isinstance(getattr(node.elts[0], "value", None), bytes)
                keys = [node.elts[0]] if is_bytes and not named else []
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("headers"):
                keys = [node.slice]
            texts = [text for key in keys if (text := text_of(key))]
            found |= {text.lower() for text in texts if NAME.fullmatch(text)}
    # Keys of a dict that look like one, too.
    return found - {*get_args(ProblemType.__value__)}


def test_each_header_that_is_read_may_be_sent_by_a_page() -> None:
    document = described(ApiPart.ALL)
    declared = {
        parameter["name"].lower()
        for methods in document["paths"].values()
        for operation in methods.values()
        for parameter in (follow(document, each) for each in operation["parameters"])
        if parameter["in"] == "header"
    }
    asked = read_in_code()
    assert {"authorization", "idempotency-key", "if-range", "backlot-min-position"} <= asked
    allowed = {name.lower() for name in ALLOWED}
    assert (declared | asked) - OF_THE_BROWSER - OF_EVERY_PAGE - OF_PROXIES - allowed == set()
    assert sorted(ALLOWED, key=str.lower) == list(ALLOWED)


def test_each_header_that_is_sent_may_be_read_by_a_page() -> None:
    sent = sent_in_code()
    assert {"etag", "retry-after", "ratelimit", "x-request-id", "content-range"} <= sent
    # Those are of constants: `add_header(scope, STALE, …)`.
    sent |= {"backlot-stale-position", "backlot-position"}
    exposed = {name.lower() for name in EXPOSED}
    assert sent - READ_ANYWAY - FOR_THE_BROWSER - exposed - {"connection"} == set()
    assert sorted(EXPOSED, key=str.lower) == list(EXPOSED)


def test_each_method_of_a_call_may_be_used_by_a_page(tmp_path: Path) -> None:
    routes = [each for each in application(tmp_path).routes if isinstance(each, APIRoute)]
    assert {method for route in routes for method in route.methods or ()} <= set(METHODS)


@pytest.mark.parametrize(
    ("origins", "told"),
    [
        ("app.example.org", "must be origins such as https://app.example.org"),
        ("null", "must be origins such as"),
        ("https://app.example.org/page", "must be origins such as"),
        ("https://me@app.example.org", "must be origins such as"),
        ("https://app.example.org:port", "must be origins such as"),
        ("https://bücher.example", "must be origins such as"),
        ("https://App.example.org", "browsers send 'https://app.example.org'"),
        ("https://app.example.org/", "browsers send 'https://app.example.org'"),
        ("https://app.example.org:443", "browsers send 'https://app.example.org'"),
        (f"*,{PAGE}", "must name origins, or * alone"),
    ],
)
def test_an_origin_that_no_browser_sends_stops_the_start(origins: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"CORS_ORIGINS": origins})
    assert str(caught.value).startswith("CORS_ORIGINS: ")
    assert told in str(caught.value)


def test_credentials_are_for_known_origins() -> None:
    with pytest.raises(SettingsError, match="CORS_CREDENTIALS: name the origins"):
        load_settings({"CORS_ORIGINS": "*", "CORS_CREDENTIALS": "on"})
    assert load_settings({"CORS_ORIGINS": ORIGINS, "CORS_CREDENTIALS": "on"}).cors.credentials
    assert not load_settings({"CORS_ORIGINS": ORIGINS}).cors.credentials


@pytest.mark.parametrize("origin", ["capacitor://localhost", "http://[::1]:8080", OTHER])
def test_apps_and_addresses_have_origins_too(origin: str) -> None:
    assert load_settings({"CORS_ORIGINS": origin}).cors.origins == {origin}


def ask(client: TestClient, path: str = "/videos", origin: str = PAGE) -> Any:
    wanted = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "etag"}
    return client.options(path, headers={"Origin": origin, **wanted})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return TestClient(application(tmp_path_factory.mktemp("cors"), CORS_ORIGINS=ORIGINS))


@pytest.mark.parametrize("path", ["/videos", "/videos/1/like", "/objects/videos/1", "/nowhere"])
def test_a_preflight_is_answered_at_any_path(client: TestClient, path: str) -> None:
    answer = ask(client, path)
    assert (answer.status_code, answer.content) == (204, b"")
    told = answer.headers
    assert told["access-control-allow-origin"] == PAGE
    assert told["access-control-allow-methods"].split(", ") == list(METHODS)
    assert told["access-control-allow-headers"].split(", ") == list(ALLOWED)
    assert told["access-control-max-age"] == "7200"
    assert told["vary"] == "Origin"
    assert "access-control-allow-credentials" not in told


def test_a_preflight_of_an_unknown_origin_is_told_nothing(client: TestClient) -> None:
    answer = ask(client, origin=UNKNOWN)
    assert (answer.status_code, answer.headers["vary"]) == (204, "Origin")
    assert [name for name in answer.headers if name.startswith("access-control")] == []


REFUSALS = {
    "/nowhere": 404,
    # Nothing is started here: what nobody foresaw.
    "/videos/liked": 500,
    "/videos?nothing=1": 422,
    f"/videos?cursor={'x' * 9000}": 414,
    "/openapi.json": 200,
}


@pytest.mark.parametrize(("path", "status"), REFUSALS.items())
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_answer_can_be_read_by_the_page(
    client: TestClient, path: str, status: int, method: str
) -> None:
    answer = client.request(method, path, headers={"Origin": OTHER})
    assert answer.status_code == status
    told = answer.headers
    assert told["access-control-allow-origin"] == OTHER
    assert told["access-control-expose-headers"].split(", ") == list(EXPOSED)
    assert "Origin" in told["vary"].split(", ")


@pytest.mark.parametrize("headers", [{}, {"Origin": UNKNOWN}, {"Origin": "null"}])
def test_others_are_told_that_it_depends(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/nowhere", headers=headers)
    assert "Origin" in answer.headers["vary"].split(", ")
    assert [name for name in answer.headers if name.startswith("access-control")] == []


def test_any_origin_is_told_the_same(tmp_path: Path) -> None:
    client = TestClient(application(tmp_path, CORS_ORIGINS="*"))
    for headers in ({}, {"Origin": UNKNOWN}):
        answer = client.get("/nowhere", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "vary" not in answer.headers
    assert ask(client, origin=UNKNOWN).headers["access-control-allow-origin"] == "*"


def test_credentials_are_allowed_where_they_are_on(tmp_path: Path) -> None:
    on = {"CORS_ORIGINS": ORIGINS, "CORS_CREDENTIALS": "on"}
    client = TestClient(application(tmp_path, **on))
    for answer in (ask(client), client.get("/nowhere", headers={"Origin": PAGE})):
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-allow-origin"] == PAGE


def test_without_the_setting_nothing_is_said(tmp_path: Path) -> None:
    client = TestClient(application(tmp_path))
    assert ask(client).status_code == 405
    answer = client.get("/nowhere", headers={"Origin": PAGE})
    told = {name for name in answer.headers if name.startswith("access-control")}
    assert told | ({"vary"} & set(answer.headers)) == set()


def test_what_is_for_operators_at_a_port_of_its_own_is_for_no_page(tmp_path: Path) -> None:
    app = application(tmp_path, CORS_ORIGINS=ORIGINS, ADMIN_PORT="8001")
    for port, told in ((8000, PAGE), (8001, None)):
        client = TestClient(app, base_url=f"http://127.0.0.1:{port}")
        answer = client.get("/nowhere", headers={"Origin": PAGE})
        assert answer.headers.get("access-control-allow-origin") == told
