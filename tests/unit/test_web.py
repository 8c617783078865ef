"""Sessions, forms and headers of the pages, on APIs that answer what each test says."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import httpx
import jwt
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from web.api import Api, ApiProblem, path
from web.app import OWN_PATHS, has_page, make_web_app, policy
from web.login import own_page
from web.sealed import Box
from web.sessions import MOST_COOKIE_BYTES, SESSION
from web.templating import STATIC, ago, clock, number, seconds, size, static
from web.visits import WebParts

NOW = 1_000_000.0
Answers = Mapping[str, tuple[int, Any]]


def token(*roles: str, user: str = "ann", **claims: Any) -> str:
    told = {"sub": user, "roles": list(roles), "exp": 4_000_000_000} | claims
    return jwt.encode(told, "signs the tokens of these tests only", algorithm="HS256")


def apis(answers: Answers, seen: list[httpx.Request]) -> Callable[[Request], httpx.AsyncClient]:
    """APIs that know everybody with a token, and answer these calls."""

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        call = f"{request.method} {request.url.path}"
        if call == "GET /users/me":
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
            try:
                claims = jwt.decode(bearer, options={"verify_signature": False})
            except jwt.PyJWTError:
                problem = {"type": "unauthorized", "title": "No", "detail": "That is no token."}
                return httpx.Response(401, json=problem)
            return httpx.Response(200, json={"userId": claims["sub"], "roles": claims["roles"]})
        status, body = answers.get(call, (404, {"type": "not-found", "title": "Unknown"}))
        return httpx.Response(status, json=body)

    transport = httpx.MockTransport(answer)
    return lambda _: httpx.AsyncClient(transport=transport, base_url="http://api")


def browser(answers: Answers | None = None, **parts: Any) -> TestClient:
    """A browser at the pages; `seen` has what the APIs were asked."""
    seen: list[httpx.Request] = []
    app = make_web_app(WebParts(connect=apis(answers or {}, seen), box=Box("a secret"), **parts))
    client = TestClient(app, base_url="http://backlot.test", follow_redirects=False)
    client.seen = seen  # type: ignore[attr-defined]
    return client


def logged_in(*roles: str, answers: Answers | None = None, **parts: Any) -> TestClient:
    client = browser(answers, **parts)
    answer = client.post("/login", data={"token": token(*roles), "next": "/studio"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/studio")
    return client


def code_of(page: str) -> str:
    found = re.search(r'name="_csrf" value="([0-9a-f]{64})"', page)
    assert found is not None
    return found[1]


def test_what_is_sealed_is_opened_for_its_purpose_and_in_its_time_only() -> None:
    now = [NOW]
    box = Box("a secret", lambda: now[0])
    sealed = box.seal("session", {"user": "ann"}, 10)
    assert box.open("session", sealed) == {"user": "ann"}
    assert box.open("link", sealed) is None
    assert Box("another secret", lambda: now[0]).open("session", sealed) is None
    now[0] += 10
    assert box.open("session", sealed) is None


@pytest.mark.parametrize("text", ["", "x", "é", "AAAA", "A" * 5000, "=" * 40])
def test_what_was_never_sealed_is_nothing(text: str) -> None:
    assert Box("a secret").open("session", text) is None


def test_no_character_of_what_is_sealed_can_be_changed() -> None:
    box = Box("a secret")
    sealed = box.seal("session", {"roles": []}, 60)
    for at in range(len(sealed) - 1):
        other = "A" if sealed[at] != "A" else "B"
        assert box.open("session", sealed[:at] + other + sealed[at + 1 :]) is None


def test_a_login_keeps_the_token_where_no_script_and_no_other_site_gets_it() -> None:
    answer = browser().post("/login", data={"token": token("admin")})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert token("admin") not in answer.headers["set-cookie"]
    answer = browser(secure=True).post("/login", data={"token": token("admin")})
    assert "; secure" in answer.headers["set-cookie"].lower()


def test_a_token_that_the_api_refuses_logs_nobody_in() -> None:
    answer = browser().post("/login", data={"token": "rubbish"})
    assert answer.status_code == 401
    assert "That is no token." in answer.text
    assert SESSION not in answer.headers.get("set-cookie", "")


def test_a_token_that_fits_into_no_cookie_is_refused_with_a_word() -> None:
    large = token("admin", told="x" * MOST_COOKIE_BYTES)
    answer = browser().post("/login", data={"token": large})
    assert answer.status_code == 422
    assert "fewer claims" in answer.text


@pytest.mark.parametrize(
    "elsewhere", ["https://evil.test", "//evil.test", "/\\evil.test", "evil", "", None]
)
def test_a_login_leads_to_a_page_of_ours_only(elsewhere: str | None) -> None:
    assert own_page(elsewhere) == "/"
    assert own_page("/console/log?actor=ann") == "/console/log?actor=ann"


def test_who_is_not_logged_in_comes_back_after_the_login() -> None:
    answer = browser().get("/console/now/live")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=/console/now/live"


def test_who_lacks_the_role_is_told_so() -> None:
    answer = logged_in("moderator").get("/console")
    assert answer.status_code == 403
    assert "for admin and auditor" in answer.text


def test_a_form_of_another_site_does_nothing() -> None:
    client = logged_in("admin")
    page = client.get("/login").text
    assert client.post("/logout", data={}).status_code == 403
    assert client.post("/logout", data={"_csrf": "0" * 64}).status_code == 403
    crossed = {"sec-fetch-site": "cross-site"}
    assert client.post("/logout", data={"_csrf": code_of(page)}, headers=crossed).status_code == 403
    assert client.post("/login", data={"token": token()}, headers=crossed).status_code == 403
    answer = client.post("/logout", data={"_csrf": code_of(page)})
    assert answer.headers["location"] == "/login"
    assert client.get("/console").headers["location"].startswith("/login")


def test_a_code_is_good_in_its_session_only() -> None:
    one, other = logged_in("admin"), logged_in("admin")
    code = code_of(one.get("/login").text)
    assert other.post("/logout", data={"_csrf": code}).status_code == 403


def test_a_session_whose_token_is_over_leads_to_the_login() -> None:
    over = (401, {"type": "unauthorized", "title": "No", "detail": "The token is revoked."})
    answer = logged_in("admin", answers={"GET /admin/overview": over}).get("/console")
    assert answer.headers["location"] == "/login?next=/console"


def test_what_an_api_refuses_is_told_with_the_id_of_the_request() -> None:
    away = {"type": "unavailable", "title": "Away", "detail": "No <b>answer</b>", "requestId": "r1"}
    answer = logged_in("admin", answers={"GET /admin/overview": (503, away)}).get("/console")
    assert answer.status_code == 503
    assert "No &lt;b&gt;answer&lt;/b&gt;" in answer.text
    assert "/console/trace/r1" in answer.text


def test_what_breaks_in_a_page_is_told_without_its_inside() -> None:
    answer = logged_in("admin", answers={"GET /admin/overview": (200, {})}).get("/console")
    assert answer.status_code == 500
    assert "our fault" in answer.text
    assert "Undefined" not in answer.text


def test_a_link_logs_in_once() -> None:
    left = {"right": token("admin")}

    async def spend(code: str) -> str | None:
        return left.pop(code, None)

    client = browser(spend_link=spend)
    assert client.get("/login/link/wrong").status_code == 410
    answer = client.get("/login/link/right?next=/console")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    assert client.get("/login/link/right").status_code == 410


def test_every_answer_keeps_others_out() -> None:
    client = browser()
    for where in ("/login", "/console", "/nothing", "/static/base.css", "/static/nothing"):
        headers = client.get(where).headers
        assert headers["content-security-policy"] == policy(()), where
        assert headers["x-content-type-options"] == "nosniff", where
    assert "unsafe" not in policy(())
    assert "https://s3.test" not in policy(())
    assert policy(("https://s3.test",)).count("https://s3.test") == 2


def test_a_file_is_kept_for_a_year_under_the_name_of_its_content_only() -> None:
    client = browser()
    assert "immutable" in client.get(static("base.css")).headers["cache-control"]
    assert client.get("/static/base.css").headers["cache-control"] == "no-store"
    assert client.get("/login").headers["cache-control"] == "no-store"


def test_no_template_has_a_script_or_a_style_of_its_own() -> None:
    found = []
    for template in (STATIC.parent / "templates").rglob("*.html"):
        text = template.read_text()
        inline = re.findall(r"<script(?![^>]* src=)|\son[a-z]+=|\sstyle=|<style|\|\s*safe", text)
        found += [f"{template.name}: {each}" for each in inline]
    assert found == []


def test_the_files_of_others_are_those_that_their_list_says() -> None:
    folder = STATIC / "vendor"
    told = json.loads((folder / "files.json").read_text())
    assert {each["file"]: each["sha256"] for each in told} == {
        file.name: sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "files.json"
    }
    assert all(each["version"] and each["license"] and each["package"] for each in told)


def test_the_pages_take_no_path_of_the_apis() -> None:
    from tests.routes import ROUTES

    assert [line.call for line in ROUTES if has_page(line.call.split()[1])] == []
    assert has_page("/")
    assert all(map(has_page, OWN_PATHS))
    assert has_page("/console/log")
    assert not has_page("/console/log", "/console")
    assert not has_page("/consoles")


def test_what_is_put_into_a_path_stays_one_part_of_it() -> None:
    assert path("/users/{}/export", "a/../b?c#d é") == "/users/a%2F..%2Fb%3Fc%23d%20%C3%A9/export"


def test_an_api_that_is_away_is_a_problem_too() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async def ask() -> None:
        transport = httpx.MockTransport(away)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            await Api(client, None).get("/videos")

    with pytest.raises(ApiProblem) as told:
        asyncio.run(ask())
    assert (told.value.status, told.value.type) == (503, "unavailable")


def test_how_values_are_written() -> None:
    assert [number(each) for each in (1234567, 0.5, 12.34, None)] == [
        "1,234,567", "0.5", "12.3", "\u2013",
    ]  # fmt: skip
    assert [size(each) for each in (999, 1500, 2_500_000_000)] == ["999 bytes", "1.5 KB", "2.5 GB"]
    assert [seconds(each) for each in (0.85, 3.21, 250, 7500, 273600)] == [
        "850 ms", "3.2 s", "4 min 10 s", "2 h 5 min", "3 d 4 h",
    ]  # fmt: skip
    assert [clock(each) for each in (63, 3723)] == ["1:03", "1:02:03"]
    assert ago(None) == "\u2013"
    assert ago("2020-01-01T00:00:00Z").endswith("days ago")
