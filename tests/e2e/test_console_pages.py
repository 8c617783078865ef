"""The console in a real browser: what runs, what stopped, what it costs, and who did what."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from psycopg.types.json import Jsonb

from tests.e2e.pages import XSS, accept_questions, axe, fits, visitor
from tests.e2e.program import Program
from tests.e2e.videos import everything, read, see, upload
from tests.support import eventually

DEAD = """
INSERT INTO backlot_dead_letters
    (kind, subscription, position, topic, key, value, headers, error, status)
VALUES ('consumer', %s, %s, 'comment.created', 'k', %s, %s, %s, 'dead')
"""
CALLED = """
INSERT INTO backlot_llm_calls
VALUES (date_trunc('hour', now()), %s, 'm', 12, 3, 40000, 5000, 0.25)
"""
POISON = "ALTER TABLE dismissals.dismissed ADD CONSTRAINT poison CHECK (position < 0) NOT VALID"
CURED = "ALTER TABLE dismissals.dismissed DROP CONSTRAINT poison"
COUNTED = "SELECT likes FROM likes.counts WHERE video_id = %s"
ADMIN, AUDITOR = ["admin"], ["auditor"]


@pytest.fixture
def root(server: Program) -> httpx.Client:
    return server.client("root", admin=True)


def looked_at(page: Page) -> None:
    """Assert that a page can be used by everybody, and fits."""
    assert axe(page) == []
    fits(page)


def figure(page: Page, name: str) -> Locator:
    """Return the number of a figure by its name."""
    found = page.locator(".figure").filter(has=page.locator("dt").get_by_text(name, exact=True))
    return found.locator("dd").first


def form(page: Page, button: str) -> Locator:
    """Return the form with this button."""
    return page.locator("form").filter(has=page.get_by_role("button", name=button, exact=True))


def give(page: Page, button: str, reason: str) -> None:
    """Do what a button does, for a reason, on a page that changes while it is open."""
    found = form(page, button)
    found.get_by_label("Reason").first.fill(reason)
    found.get_by_role("button", name=button, exact=True).click()


def head_of(root: httpx.Client) -> int:
    return int(read(root.get("/admin/overview"))["log"]["head"])


class TestNow:
    def test_it_is_live_and_says_when_it_is_not(
        self, server: Program, browser: Browser, root: httpx.Client
    ) -> None:
        with visitor(browser, server, "aud", AUDITOR, refused=[503]) as page:
            page.goto("/console")
            events = figure(page, "Events in the log")
            before = int(events.inner_text().replace(",", ""))
            expect(page.locator("[data-trend=lag] polyline")).to_have_count(1)
            expect(page.get_by_role("table").get_by_text("PostgreSQL")).to_be_visible()
            see(root, server.client("ann").put(f"/videos/{upload(root)}/like"))
            # All of a second are told the same.
            eventually(lambda: head_of(root) > before)
            after = head_of(root)
            expect(events).to_have_text(f"{after:,}")
            looked_at(page)

            away = {"status": 503, "body": "", "content_type": "text/html"}
            page.route("**/console/now/live", lambda route: route.fulfill(**away))
            expect(page.locator("[data-live-state]")).to_contain_text("not live since")
            # What was known last stays.
            expect(events).to_have_text(f"{after:,}")
            page.unroute("**/console/now/live")
            expect(page.locator("[data-live-state]")).to_have_text("live")

    def test_a_phone_shows_it_without_scrolling_aside(
        self, server: Program, browser: Browser
    ) -> None:
        with visitor(browser, server, "olga", ADMIN, phone=True) as page:
            for where in ("", "/projections", "/projections/likes", "/queues", "/spending"):
                page.goto(f"/console{where}")
                fits(page)


def test_a_replay_is_watched_to_its_switch(
    server: Program, browser: Browser, root: httpx.Client
) -> None:
    video = upload(server.client("alice"))
    for viewer in ("ann", "bob"):
        see(root, server.client(viewer).put(f"/videos/{video}/like"))
    eventually(lambda: likes_of(server, video) == 2)
    with psycopg.connect(server.database_url, autocommit=True) as conn:
        conn.execute("UPDATE likes.counts SET likes = 77 WHERE video_id = %s", (video,))

    with visitor(browser, server, "olga", ADMIN) as page:
        accept_questions(page)
        page.goto("/console/projections")
        page.get_by_role("link", name="likes", exact=True).click()
        cost, copies = page.locator("#cost"), page.get_by_role("region", name="Copies")
        expect(cost).to_contain_text("Events to apply")
        expect(cost).to_contain_text("not known: there was no replay yet")
        page.get_by_label("Reason for a replay").fill(XSS)
        page.get_by_role("button", name="Begin the replay").click()

        # Nothing is loaded again by hand: the page shows how far it is, and what differs.
        expect(page.locator("[data-replay=waiting]")).to_be_visible()
        row = page.locator(".difference").filter(has_text=video)
        expect(row.locator("td.was")).to_have_text("77")
        expect(row.locator("td.becomes")).to_have_text("2")
        looked_at(page)
        assert likes_of(server, video) == 77

        give(page, "Switch although they differ", "the new one is right")
        expect(page.locator("[data-replay=switched]")).to_be_visible()
        assert likes_of(server, video) == 2
        expect(page.locator("#cost")).to_contain_text("as the last replay went")
        expect(copies.get_by_text("likes__previous")).to_be_visible()

        give(page, "Pause", "to look at it")
        expect(figure(page, "State")).to_contain_text("paused")
        assert status_of(root)["status"] == "paused"
        give(page, "Resume", "it was looked at")
        expect(figure(page, "State")).to_contain_text("running")

        give(page, "Roll back", "for a try")
        expect(page.get_by_role("heading", name="Rollback switched")).to_be_visible()
        assert likes_of(server, video) == 77
        expect(page.get_by_text("Done: rollback likes")).to_be_visible()
        give(page, "Drop the previous copy", "of a test")
        expect(page.get_by_text("Done: drop-old likes")).to_be_visible()
        expect(copies.get_by_text("likes__previous")).to_have_count(0)
        assert [copy["kind"] for copy in status_of(root)["copies"]] == ["live"]

        page.goto("/console/operations?actor=olga")
        expect(page.get_by_role("cell", name=XSS).first).to_be_visible()
        looked_at(page)
        page.get_by_role("link", name="replay", exact=True).click()
        expect(page.get_by_role("heading", name="What came of it")).to_be_visible()
        looked_at(page)


def likes_of(server: Program, video: str) -> int | None:
    """Return what the live copy counts, past what Redis does."""
    with psycopg.connect(server.database_url, autocommit=True) as conn:
        row = conn.execute(COUNTED, (video,)).fetchone()
    return None if row is None else int(row[0])


def status_of(root: httpx.Client, name: str = "likes") -> dict[str, Any]:
    return read(root.get(f"/projections/{name}"))


def test_a_poison_event_is_found_read_and_discarded(
    server: Program, browser: Browser, root: httpx.Client
) -> None:
    video = upload(server.client("alice"))
    with psycopg.connect(server.database_url, autocommit=True) as conn:
        conn.execute(POISON)
    poisoned = server.client("zoe").put(f"/videos/{video}/not-interested")
    assert poisoned.is_success, poisoned.text

    with visitor(browser, server, "olga", ADMIN) as page:
        accept_questions(page)
        page.goto("/console")
        finding = page.locator(".findings li").filter(has_text="dismissals needs a decision")
        expect(finding).to_contain_text("CheckViolation")
        finding.get_by_role("link", name="Look").click()
        expect(figure(page, "State")).to_contain_text("stopped")
        position = status_of(root, "dismissals")["errorPosition"]
        expect(page.get_by_role("link", name=f"event {position}")).to_be_visible()
        give(page, "Set it aside", "so that the others go on")
        expect(figure(page, "State")).to_contain_text("running")
        with psycopg.connect(server.database_url, autocommit=True) as conn:
            conn.execute(CURED)

        page.goto("/console/queues")
        page.get_by_role("link", name=str(position), exact=True).click()
        expect(page.get_by_label("The event's payload")).to_contain_text(video)
        looked_at(page)
        page.get_by_label("and all of its kind and error").check()
        give(page, "Discard", f"of a test {XSS}")
        expect(page.get_by_text("Done: discard dismissals")).to_be_visible()
        expect(page.get_by_text(f"of a test {XSS}")).to_be_visible()
        page.goto("/console/queues/parked")
        expect(page.get_by_role("link", name=str(position), exact=True)).to_have_count(0)
    told = everything(root, "/projections/dismissals/parked")
    assert [(each["position"], each["status"], each["decidedBy"]) for each in told] == [
        (position, "discarded", "olga")
    ]
    assert everything(root, "/admin/parked") == []


def test_dead_letters_are_decided_one_by_one_and_in_bulk(
    server: Program, browser: Browser, root: httpx.Client
) -> None:
    with psycopg.connect(server.database_url, autocommit=True) as conn:
        for at in (1, 2, 3):
            conn.execute(DEAD, ("of-a-test", at, XSS.encode(), Jsonb({}), f"ValueError: {XSS}"))
    where = "/console/queues/letters?subscription=of-a-test"

    with visitor(browser, server, "aud", AUDITOR) as page:
        page.goto("/console/queues")
        expect(page.get_by_role("link", name="of-a-test")).to_have_count(3)
        # Which fault it was is told, and neither what was written nor a way to decide.
        expect(page.get_by_text("What it says")).to_have_count(0)
        expect(page.get_by_role("button", name="Discard")).to_have_count(0)
        looked_at(page)

    with visitor(browser, server, "olga", ADMIN) as page:
        accept_questions(page)
        page.goto(where)
        page.get_by_text("What it says").first.click()
        expect(page.locator("pre").first).to_have_text(XSS)
        looked_at(page)
        page.get_by_role("button", name="Retry: letter").first.click()
        expect(page.get_by_text("Done: redrive-dead dead messages")).to_be_visible()
        assert [each["status"] for each in letters(root)] == ["redrive", "dead", "dead"]

        page.get_by_label("Tick all that are shown").check()
        give(page, "Discard ticked", "nobody reads them")
        expect(page.get_by_text("Every message was handled and published.")).to_be_visible()
        expect(page.get_by_text("Done: discard-dead dead messages")).to_be_visible()
    assert letters(root) == []
    done = everything(root, "/admin/operations?actor=olga")
    assert ("discard-dead", "nobody reads them") in {
        (each["action"], each.get("reason")) for each in done
    }


def letters(root: httpx.Client) -> list[dict[str, Any]]:
    return everything(root, "/admin/dead-letters?subscription=of-a-test")


def test_webhooks_are_added_tried_and_removed(
    server: Program, browser: Browser, root: httpx.Client
) -> None:
    with visitor(browser, server, "olga", ADMIN, refused=[422]) as page:
        accept_questions(page)
        page.goto("/console/queues/webhooks")
        page.get_by_label("URL").fill("https://hooks.invalid/of-a-test")
        page.get_by_label("Topics").fill("video.likes")
        page.get_by_role("button", name="Add").click()
        expect(page.get_by_text("There is no topic 'video.likes'")).to_be_visible()
        page.go_back()
        page.get_by_label("URL").fill("https://hooks.invalid/of-a-test")
        page.get_by_label("Topics").fill("video.liked comment.created")
        page.get_by_role("button", name="Add").click()
        expect(page.get_by_role("heading", name="https://hooks.invalid/of-a-test")).to_be_visible()
        page.get_by_role("button", name="Show the secret").click()
        expect(page.get_by_text("whsec_")).to_be_visible()
        page.get_by_role("button", name="Send a test").click()
        expect(figure(page, "Waiting")).to_have_text("1")
        page.reload()
        page.get_by_label("Tick delivery").check()
        page.get_by_role("button", name="Skip ticked").click()
        expect(page.get_by_text("Given up; what waits behind goes on.")).to_be_visible()
        page.get_by_role("button", name="Disable").click()
        expect(figure(page, "State")).to_contain_text("disabled")
        looked_at(page)
        [made] = of_a_test(root)
        assert (made["enabled"], made["topics"]) == (False, ["comment.created", "video.liked"])
        page.get_by_role("button", name="Remove").click()
        expect(page.get_by_text("Removed, with its deliveries.")).to_be_visible()
        looked_at(page)
    assert of_a_test(root) == []


def of_a_test(root: httpx.Client) -> list[dict[str, Any]]:
    found = read(root.get("/admin/webhooks"))["items"]
    return [each for each in found if each["url"] == "https://hooks.invalid/of-a-test"]


def test_spending_is_told_by_purpose_and_day(server: Program, browser: Browser) -> None:
    with psycopg.connect(server.database_url, autocommit=True) as conn:
        conn.execute(CALLED, (XSS,))
    with visitor(browser, server, "aud", AUDITOR) as page:
        page.goto("/console/spending")
        row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=XSS))
        expect(row).to_contain_text("40,000")
        expect(row).to_contain_text("$0.2500")
        expect(figure(page, "translation")).to_have_text("0")
        page.get_by_role("link", name="24 hours").click()
        expect(figure(page, "Calls")).to_have_text("12")
        looked_at(page)
