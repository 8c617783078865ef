"""The console of the started program, as everybody: what roles open, and forms that nobody sent."""

from __future__ import annotations

import re
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.pages import visitor
from tests.e2e.program import Program
from tests.e2e.videos import read, see, upload
from tests.web_routes import CONSOLE, Call, calls, may
from web.console import ROUTES, SECTIONS

CALLERS = {"ann": [], "vera": ["auditor"], "mona": ["moderator"], "olga": ["admin"]}
REQUEST = "of-one-comment"
# What is asked for: a user, an event under a seal; without them these pages only have a form.
QUERIES = {
    "/console/trace": {"requestId": REQUEST},
    "/console/why/user": {"user": "ann"},
    "/console/privacy": {"user": "ann"},
    "/console/privacy/progress": {"user": "ann"},
    "/console/privacy/certificate": {"user": "ann"},
    "/console/privacy/export": {"user": "ann"},
    "/console/integrity/proof": {"seal": "1", "position": "1"},
}


def enter(server: Program, user: str) -> httpx.Client:
    """A browser without its window, logged in by the form."""
    client = httpx.Client(base_url=server.url, timeout=60, trust_env=False)
    form = {"token": server.token(user, roles=CALLERS[user]), "next": "/login"}
    answer = client.post("/login", data=form)
    assert answer.status_code == 303, answer.text
    return client


@pytest.fixture(scope="module")
def names(server: Program) -> dict[str, str]:
    """What the names in paths stand for."""
    ann, olga = server.client("ann"), server.client("olga", admin=True)
    video = upload(ann)
    comment = ann.post(
        f"/videos/{video}/comments", json={"content": "Rain"}, headers={"X-Request-Id": REQUEST}
    )
    see(ann, comment)
    commented = read(comment)["commentId"]
    read(ann.get(f"/comments/{commented}"))
    hook = {"url": "https://hooks.example.org/", "topics": ["video.liked"]}
    asked = olga.post("/projections/likes/pause", json={"reason": "To be seen"})
    assert asked.status_code == 202, asked.text
    webhook = olga.post("/admin/webhooks", json=hook)
    assert webhook.status_code == 201, webhook.text
    return {
        "position": "1",
        "stream": video,
        "request_id": REQUEST,
        "comment": commented,
        "report": str(uuid4()),
        "name": "likes",
        "webhook_id": webhook.json()["webhookId"],
        "operation_id": asked.json()["operationId"],
    }


def answer_of(client: httpx.Client, call: Call) -> str:
    answer = client.request(call.method, call.path, params=QUERIES.get(call.path))
    location = answer.headers.get("location", "")
    if answer.status_code in (204, 303) and location.startswith("/login"):
        return "login"
    return "let in" if answer.status_code in (200, 204, 303) else str(answer.status_code)


def test_every_page_opens_to_its_roles_and_the_apis_agree(
    server: Program, names: dict[str, str]
) -> None:
    pages = [each for each in calls(ROUTES, names) if each.method == "GET"]
    # No event is parked.
    missing = {f"GET /console/queues/parked/{names['name']}/{names['position']}"}
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as nobody:
        assert {answer_of(nobody, page) for page in pages} == {"login"}
    for user, roles in CALLERS.items():
        with enter(server, user) as client:
            found = {str(page): answer_of(client, page) for page in pages}
        assert found == {
            str(page): "403"
            if may(page).isdisjoint(roles)
            else ("404" if str(page) in missing else "let in")
            for page in pages
        }, user


def test_no_form_of_another_site_does_anything(server: Program, names: dict[str, str]) -> None:
    olga = server.client("olga", admin=True)
    acts = [each for each in calls(ROUTES, names) if each.method == "POST"]
    done = read(olga.get("/admin/operations"))
    with enter(server, "olga") as client:
        code = re.search(r'name="_csrf" value="(\w+)"', client.get("/login").text)
        assert code is not None
        crossed = {"Sec-Fetch-Site": "cross-site"}
        found = {
            f"{act}: {answer.status_code}"
            for act in acts
            for answer in (
                client.post(act.path, data={"reason": "x"}),
                client.post(act.path, data={"reason": "x", "_csrf": code[1]}, headers=crossed),
            )
            if answer.status_code != 403
        }
    assert found == set()
    assert read(olga.get("/admin/operations")) == done


@pytest.mark.parametrize("user", CALLERS)
def test_the_navigation_leads_to_what_a_role_opens(
    server: Program, browser: Browser, user: str
) -> None:
    roles = CALLERS[user]
    offered = [each for each in SECTIONS if not CONSOLE[each.path].isdisjoint(roles)]
    with visitor(browser, server, user, roles) as page:
        into = page.get_by_role("navigation", name="Parts").get_by_role("link", name="Console")
        if not offered:
            expect(into).to_have_count(0)
            return
        into.click()
        links = page.get_by_role("navigation", name="Console").get_by_role("link")
        expect(links).to_have_text([each.name for each in offered])
        for section in offered:
            links.get_by_text(section.name, exact=True).click()
            expect(page.locator("nav a[aria-current=page]", has_text=section.name)).to_be_visible()
            expect(page.locator("h1")).to_be_visible()
            expect(page.locator(".flash.bad")).to_have_count(0)


def test_who_is_not_logged_in_comes_back_to_where_they_wanted(
    server: Program, browser: Browser
) -> None:
    with visitor(browser, server) as page:
        page.goto("/console/log?type=upload")
        expect(page).to_have_url(re.compile(r"/login\?next="))
        page.get_by_label("Token").fill(server.token("olga", roles=["admin"]))
        page.get_by_role("main").get_by_role("button", name="Log in").click()
        expect(page).to_have_url(re.compile(r"/console/log\?type=upload$"))
        expect(page.locator("h1")).to_have_text("Log")
