"""The log in the console, its integrity, and why rankings are as they are, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
from playwright.sync_api import Browser, Page, expect

from tests.e2e.pages import XSS, axe, fits, visitor
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, see, upload
from tests.support import eventually


def newest(client: httpx.Client, **filters: str) -> dict[str, object]:
    """The newest event like that."""
    found = read(client.get("/audit/events", params={"limit": "1", **filters}))["items"]
    event: dict[str, object] = found[0]
    return event


def rows(page: Page) -> list[str]:
    """The positions that the list shows."""
    return page.locator("tbody td:first-child a").all_inner_texts()


def test_the_log_is_found_in_by_all_that_is_known_and_moves_by_itself(
    server: Program, browser: Browser, alice: httpx.Client
) -> None:
    video = upload(alice, title=XSS)
    with visitor(browser, server, "olga", roles=["admin"]) as page:
        page.goto("/console/log")
        before = len(rows(page))
        assert before
        assert alice.put(f"/videos/{video}/like").is_success
        expect(page.locator("tbody tr").first).to_contain_text("video_likes.liked")
        expect(page.locator("[data-live-state]")).to_have_text("live")

        page.get_by_label("Type").fill("upload")
        page.get_by_label("Stream").fill(video)
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**/console/log?*type=upload*")
        # What a page shows is what its link shows to others.
        with visitor(browser, server, "vera", roles=["auditor"]) as other:
            parts = urlsplit(page.url)
            other.goto(f"{parts.path}?{parts.query}")
            assert rows(other) == rows(page)
        page.locator("tbody td:first-child a").last.click()
        expect(page.locator("h1")).to_contain_text("upload.started")
        expect(page.locator("pre")).to_contain_text(json.dumps(XSS))
        assert axe(page) == []


def test_a_stream_is_seen_at_each_version(
    server: Program, browser: Browser, alice: httpx.Client
) -> None:
    video = upload(alice, title="First")
    assert alice.patch(f"/videos/{video}", json={"title": XSS}).is_success
    with visitor(browser, server, "olga", roles=["admin"]) as page:
        page.goto(f"/console/streams/{video}")
        expect(page.locator("td.is", has_text=json.dumps(XSS))).to_be_visible()
        expect(page.locator("td.was", has_text="First")).to_be_visible()
        page.get_by_role("slider").fill("1")
        expect(page.locator("#state")).to_contain_text("upload.started")
        expect(page.locator("pre")).to_contain_text('"title": "First"')
        expect(page.locator("[data-value]")).to_have_text("1")
        assert axe(page) == []
        fits(page)


def test_the_id_of_a_problem_leads_to_what_its_request_caused(
    server: Program, browser: Browser, alice: httpx.Client
) -> None:
    video = upload(alice)
    headers = {"X-Request-Id": "told <i>by somebody"}
    answer = alice.post(f"/videos/{video}/comments", json={"content": "Nice rain"}, headers=headers)
    see(alice, answer)
    with visitor(browser, server, "olga", roles=["admin"], refused=[404]) as page:
        page.goto("/console/log")
        page.get_by_label("Request id of a problem").fill(headers["X-Request-Id"])
        page.get_by_role("button", name="Trace it").click()
        expect(page.locator(".tree")).to_contain_text("comment.posted")
        # What comes of it comes later, below the comment.
        eventually(lambda: page.reload() and "language_detected" in page.inner_text(".tree"))
        page.goto("/console/trace/unknown")
        expect(page.locator(".flash.bad")).to_be_visible()


def test_proofs_are_downloaded_and_a_tampered_event_is_shown_red(
    server: Program, browser: Browser, tmp_path: Path
) -> None:
    admin = server.client("olga", admin=True)
    upload(server.client("alice"))
    eventually(lambda: read(admin.get("/audit/seals"))["items"])
    seal = read(admin.get("/audit/seals"))["items"][0]
    with visitor(browser, server, "olga", roles=["admin"]) as page:
        page.goto("/console/integrity")
        expect(page.locator("#verdict .flash")).to_contain_text("as it was sealed")
        expect(page.locator(".ribbon rect")).not_to_have_count(0)
        assert axe(page) == []
        fits(page)
        page.get_by_label("Position").fill(str(seal["lastPosition"]))
        page.get_by_label("Led to seal").fill(str(seal["number"]))
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").click()
        proof = tmp_path / "proof.json"
        download.value.save_as(proof)
        assert json.loads(proof.read_text())["seal"]["number"] == seal["number"]

        with psycopg.connect(server.database_url, autocommit=True) as conn:
            conn.execute(
                "UPDATE backlot_events SET state = state || ' ' WHERE notification_id = %s",
                [seal["lastPosition"]],
            )
            try:
                page.get_by_role("button", name="Verify everything now").click()
                expect(page.locator("#verdict .flash.bad")).to_contain_text("not as it was sealed")
                expect(page.locator("#verdict .badge.bad")).to_have_text("altered")
                changed = page.locator("#verdict tr.bad")
                expect(changed).to_contain_text(f"{seal['lastPosition']:,}")
                expect(changed.get_by_role("link").first).to_be_visible()
                assert axe(page) == []
            finally:
                conn.execute(
                    "UPDATE backlot_events SET state = substring(state for length(state) - 1)"
                    " WHERE notification_id = %s",
                    [seal["lastPosition"]],
                )


def test_other_weights_show_what_they_would_change(
    server: Program, browser: Browser, alice: httpx.Client, bob: httpx.Client
) -> None:
    first, second = upload(alice, title="Liked"), upload(alice, title="Discussed")
    # What owners do with their own videos does not count.
    assert bob.put(f"/videos/{first}/like").is_success
    assert bob.post(f"/videos/{second}/comments", json={"content": "Nice rain"}).is_success
    admin = server.client("olga", admin=True)

    def ranked() -> list[str]:
        found = read(admin.get("/analytics/trending/why", params={"timeRange": "7d"}))["items"]
        return [each["video"]["videoId"] for each in found]

    eventually(lambda: {first, second} <= {*ranked()})
    with visitor(browser, server, "olga", roles=["admin"]) as page:
        page.goto("/console/why")
        expect(page.get_by_role("link", name="Liked")).to_be_visible()
        page.get_by_role("slider", name="Likes").fill("10")
        page.wait_for_url("**likes=10*")
        places = page.locator("#ranking tbody tr")
        expect(places.filter(has_text="Liked").locator("td").nth(5)).to_have_text("10")
        assert axe(page) == []
        fits(page)
        page.get_by_role("link", name="A user's list").click()
        page.get_by_label("User").fill("carla")
        page.get_by_role("button", name="Look").click()
        expect(page.locator("tbody")).to_contain_text("Liked")


def test_who_may_look(server: Program, browser: Browser) -> None:
    with visitor(browser, server, "ann", refused=[403]) as page:
        for where in ("/console/log", "/console/integrity", "/console/why"):
            page.goto(where)
            expect(page.locator(".flash.bad")).to_contain_text("This page is for")
    problem(server.client("ann").get("/audit/events"), 403)
