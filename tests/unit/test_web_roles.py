"""Who may see and do what on the pages, told once more, and held against every route of theirs.

No API is behind them: a call that one would have got is a refusal that came too late.
"""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.unit.test_web import browser, code_of, logged_in
from tests.web_routes import CONSOLE, Call, calls, may
from web.console import SECTIONS


class _Names(dict[str, str]):
    """What any name in a path stands for, whatever kind it is of."""

    def __missing__(self, name: str) -> str:
        if name == "position":
            return "7"
        return "00000000-0000-4000-8000-000000000007"


APP = browser().app
assert isinstance(APP, Starlette)
CALLS = list(calls(APP.routes, _Names()))
OF_CONSOLE = [each for each in CALLS if each.path.startswith("/console")]
ACTIONS = [each for each in CALLS if each.method == "POST" and each.path != "/login"]


def send(client: TestClient, call: Call, code: str = "", **headers: str) -> httpx.Response:
    form = {"_csrf": code} if call.method == "POST" else None
    return client.request(call.method, call.path, data=form, headers=headers)


def asked(client: TestClient) -> list[str]:
    """Return what the APIs were asked since the login."""
    seen: list[httpx.Request] = client.seen  # type: ignore[attr-defined]
    return [f"{each.method} {each.url.path}" for each in seen if each.url.path != "/users/me"]


def outcome(client: TestClient, call: Call, code: str) -> str:
    before = len(asked(client))
    answer = send(client, call, code)
    is_open = len(asked(client)) > before or answer.status_code in (200, 204)
    if answer.headers.get("location", "").startswith("/login"):
        return "asked an API, then the login" if is_open else "login"
    if answer.status_code == 403:
        return "asked an API, then refused" if is_open else "refused"
    # What the APIs have not is told as it is; where a form lacks something the browser goes back.
    return "let in" if answer.status_code in (200, 204, 303, 404) else f"{answer.status_code}"


@pytest.mark.parametrize("role", ["user", "auditor", "moderator", "admin"])
def test_a_role_opens_what_it_should_and_nothing_else(role: str) -> None:
    client = logged_in(*([] if role == "user" else [role]))
    code = code_of(client.get("/login").text)
    found = {str(call): outcome(client, call, code) for call in OF_CONSOLE}
    assert found == {str(call): "let in" if role in may(call) else "refused" for call in OF_CONSOLE}


def test_who_is_not_logged_in_gets_to_the_login_and_nowhere_else() -> None:
    client = browser()
    assert {outcome(client, call, "") for call in OF_CONSOLE} == {"login"}


def test_the_navigation_offers_what_its_roles_open() -> None:
    assert {each.path: set(each.roles) for each in SECTIONS} == {
        each.path: CONSOLE[each.path] for each in SECTIONS
    }


def test_no_action_takes_a_form_that_is_not_of_this_session_and_origin() -> None:
    client = logged_in("admin", "moderator", "auditor")
    code = code_of(client.get("/login").text)
    others = code_of(logged_in("admin").get("/login").text)
    elsewhere = {"sec-fetch-site": "cross-site"}
    taken = [
        f"{call}: {answer.status_code}"
        for call in ACTIONS
        for answer in (
            send(client, call),
            send(client, call, others),
            send(client, call, code, **elsewhere),
            send(client, call, code, **{"sec-fetch-site": "same-site"}),
        )
        if answer.status_code != 403
    ]
    assert (taken, asked(client)) == ([], [])


def test_a_console_that_is_read_only_changes_nothing() -> None:
    client = logged_in("admin", read_only=True)
    code = code_of(client.get("/login").text)
    acts = [call for call in OF_CONSOLE if call.method == "POST"]
    assert acts
    assert {send(client, call, code).status_code for call in acts} == {403}
    assert asked(client) == []
