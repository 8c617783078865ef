"""Moderation and privacy in the console: what is decided there is seen through the API."""

from __future__ import annotations

import json

import httpx
from playwright.sync_api import Browser, expect

from tests.e2e.pages import XSS, axe, fits, visitor
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, see, upload
from tests.support import eventually


def posted(client: httpx.Client, video: str, content: str) -> str:
    """The id of a comment, which every later read of that client sees."""
    answer = client.post(f"/videos/{video}/comments", json={"content": content})
    see(client, answer)
    return str(read(answer)["commentId"])


def test_reports_are_decided(
    server: Program, browser: Browser, alice: httpx.Client, bob: httpx.Client
) -> None:
    video = upload(alice)
    bad, good = posted(bob, video, XSS), posted(bob, video, "Not spam at all")
    for comment in (bad, good):
        report = {"reason": "spam", "detail": XSS}
        assert alice.post(f"/comments/{comment}/report", json=report).status_code == 202
    with visitor(browser, server, "judge", roles=["moderator"]) as page:
        page.goto("/console/moderation")
        page.locator("article", has_text="Not spam at all").get_by_role(
            "button", name="Dismiss"
        ).click()
        expect(page.locator(".flash")).to_have_text("The reports were dismissed.")
        assert axe(page) == []
        fits(page)
        case = page.locator("article").filter(has=page.locator("blockquote", has_text=XSS))
        case.get_by_label("Reason of the decision").fill("It is one")
        case.get_by_role("button", name="Remove").click()
        expect(page.locator(".flash")).to_have_text("It was removed.")
        page.get_by_role("link", name="removed").click()
        expect(page.locator("article")).to_contain_text("It is one")
    left = read(alice.get(f"/videos/{video}/comments"))["items"]
    assert [each["commentId"] for each in left] == [good]


def test_held_comments_are_approved_and_users_blocked(
    server: Program, browser: Browser, alice: httpx.Client, bob: httpx.Client
) -> None:
    video = upload(alice, commentPolicy="approval")
    comment = posted(bob, video, f"Hold this {XSS}")
    with visitor(browser, server, "judge", roles=["moderator"]) as page:
        page.goto("/console/moderation/held")
        page.locator("article", has_text="Hold this").get_by_role("button", name="Approve").click()
        expect(page.locator(".flash")).to_have_text("The comment is there for everybody.")
        assert read(alice.get(f"/comments/{comment}"))["content"] == f"Hold this {XSS}"
        page.goto("/console/moderation/blocked")
        page.get_by_label("User").fill("bob")
        page.get_by_role("button", name="Block").click()
        expect(page.get_by_role("listitem").filter(has_text="bob")).to_be_visible()
        judge = server.client("judge", roles=["moderator"])
        assert read(judge.get("/users/me/blocked"))["items"] == [{"userId": "bob"}]
        page.get_by_role("button", name="Take back").click()
        expect(page.locator(".nothing")).to_be_visible()
        page.goto("/console/moderation/translations")
        expect(page.locator("h2")).to_have_text("Failed translations")
        assert axe(page) == []


def test_a_person_is_exported_forgotten_and_certified(server: Program, browser: Browser) -> None:
    user = "pia of the console"
    pia = server.client(user)
    video = upload(server.client("alice"))
    posted(pia, video, "A text of Pia's, for the console")
    admin = server.client("olga", admin=True)
    with visitor(browser, server, "olga", roles=["admin"]) as page:
        page.goto("/console/privacy")
        page.get_by_label("User").fill(user)
        page.get_by_role("button", name="Look").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Export everything").click()
        assert "A text of Pia's" in json.dumps(json.loads(download.value.path().read_text()))
        assert axe(page) == []
        fits(page)

        page.get_by_label("Type the user id to confirm").fill("somebody else")
        page.get_by_role("button", name="Forget for good").click()
        expect(page.locator(".flash.bad")).to_contain_text("Nothing was done")
        problem(admin.get(f"/users/{user}/forgetting"), 404)

        page.get_by_label("Type the user id to confirm").fill(user)
        page.get_by_role("button", name="Forget for good").click()
        eventually(lambda: read(admin.get(f"/users/{user}/forgetting"))["status"] == "forgotten")
        expect(page.locator(".badge", has_text="forgotten")).to_be_visible()
        page.get_by_role("button", name="Look everywhere now").click()
        expect(page.locator("#certificate .flash")).to_have_text(f"Nothing was found of {user}.")
