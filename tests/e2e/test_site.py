"""The site in a real browser: lists, the watch page, and two people who see each other's acts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from playwright.sync_api import Browser, Locator, Page, expect

from tests.e2e import plain
from tests.e2e.pages import XSS, accept_questions, axe, fits, visitor
from tests.e2e.program import Program
from tests.e2e.videos import read, see, upload
from tests.openai_server import openai_server
from tests.support import eventually


def watch(page: Page, video: str, sort: str = "") -> None:
    """Open a watch page, and wait until it follows what happens."""
    page.goto(f"/watch/{video}{sort and f'?sort={sort}'}")
    expect(page.locator("[data-live-state]")).to_have_text("live")


def comment(page: Page, text: str) -> Locator:
    """Return the comment, or reply, of this text on a page."""
    shown = page.locator("[data-slot=text]").filter(has_text=text)
    return page.locator("li.comment").filter(has=shown).last


def acts(comment: Locator, kind: str) -> Locator:
    """Return what acts on a comment, and not on a reply to it."""
    return comment.locator(f":scope > .acts > [{kind}]")


def items(client: httpx.Client, path: str, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(client.get(path, params=params))["items"]
    return found


def test_two_browsers_see_each_others_likes_and_comments(
    server: Program, browser: Browser, alice: httpx.Client, bob: httpx.Client
) -> None:
    video = upload(alice, title="Rain <i>", description=XSS, category="<b>weather</b>")
    with visitor(browser, server, "ann") as ann, visitor(browser, server, "bob") as other:
        watch(ann, video)
        watch(other, video)
        expect(other.locator("h1")).to_have_text("Rain <i>")

        ann.get_by_role("button", name="Like the video").click()
        expect(other.locator("[data-count=likes]")).to_have_text("1")
        assert read(alice.get(f"/videos/{video}"))["likes"] == 1

        other.get_by_label("Your comment").first.fill(XSS)
        other.get_by_role("button", name="Post the comment").click()
        expect(comment(ann, XSS)).to_be_visible()
        expect(comment(other, XSS)).to_be_visible()
        expect(ann.locator("[data-count=comments]")).to_have_text("1")
        [posted] = items(alice, f"/videos/{video}/comments")
        assert (posted["userId"], posted["content"]) == ("bob", XSS)

        # A like of the comment, and a reply, by who came first; its author sees both.
        acts(comment(ann, XSS), "data-act=comment-like").get_by_role("button").click()
        expect(comment(other, XSS).locator("[data-slot=likes]")).to_have_text("1")
        comment(ann, XSS).get_by_text("Reply", exact=True).click()
        ann.get_by_label("Your reply").fill("So it is")
        ann.get_by_role("button", name="Post the reply").click()
        expect(comment(ann, "So it is")).to_be_visible()
        comment(other, XSS).get_by_text("1 reply", exact=True).click()
        expect(comment(other, "So it is")).to_be_visible()
        [reply] = items(alice, f"/comments/{posted['commentId']}/replies")
        assert reply["content"] == "So it is"

        # Changed, reported and deleted.
        written, seen = (each.locator(f"#comment-{posted['commentId']}") for each in (other, ann))
        editing = acts(written, "data-slot=own")
        editing.locator("summary").click()
        editing.get_by_label("Your comment").fill("Only rain")
        editing.get_by_role("button", name="Save").click()
        expect(seen.locator("[data-slot=text]").first).to_have_text("Only rain")
        expect(seen.locator("[data-slot=edited]").first).to_be_visible()
        reporting = acts(seen, "data-slot=others")
        reporting.locator("summary").click()
        reporting.get_by_role("button", name="Report the comment").click()
        expect(reporting.locator("summary")).to_have_text("Reported")
        moderator = server.client("judge", roles=["moderator"])
        assert posted["commentId"] in str(items(moderator, "/moderation/reports"))
        accept_questions(other)
        acts(written, "data-slot=deletes").get_by_role("button").click()
        expect(seen).to_have_count(0)
        assert items(bob, f"/videos/{video}/comments") == []

        ann.get_by_role("button", name="Like the video").click()
        expect(other.locator("[data-count=likes]")).to_have_text("0")
        assert axe(other) == []


def test_a_film_plays_and_what_is_watched_is_told(
    server: Program, browser: Browser, alice: httpx.Client
) -> None:
    video = upload(alice)
    with visitor(browser, server, "ann") as page:
        watch(page, video)
        page.get_by_role("button", name="Play").click()
        film = page.locator("video")
        expect(film).to_be_visible()
        expect(film).to_be_focused()
        film.evaluate("film => { film.muted = true }")
        eventually(lambda: film.evaluate("film => film.ended"))

    def told() -> bool:
        totals = read(alice.get(f"/videos/{video}/stats", params={"timeRange": "24h"}))["totals"]
        # Four seconds, told in pieces.
        return bool(totals["views"] == 1 and totals["watchMinutes"] * 60 > 3.5)

    eventually(told)
    points = read(alice.get(f"/videos/{video}/stats/retention"))["points"]
    assert sum(each["watchedSeconds"] for each in points) > 3.5


def test_a_visitor_without_a_token_reads_and_is_led_to_the_login(
    server: Program, browser: Browser, alice: httpx.Client, film: str
) -> None:
    private = upload(alice, visibility="private")
    assert plain.get(f"{server.url}/watch/{private}").status_code == 404
    with visitor(browser, server) as page:
        page.goto("/")
        page.locator(f'a[href="/watch/{film}"]').click()
        page.get_by_role("button", name="Play").click()
        expect(page).to_have_url(f"{server.url}/login?next=/watch/{film}")
    # Its owner follows it, by a ticket.
    with visitor(browser, server, "alice") as page:
        watch(page, private)
        read(alice.put(f"/videos/{private}/like"))
        expect(page.locator("[data-count=likes]")).to_have_text("1")


def test_translations_arrive_and_anybody_watches_where_they_may(
    make_program: Callable[..., Program], browser: Browser
) -> None:
    with openai_server() as provider:
        anybody = {"OPENAI_BASE_URL": provider.url, "ANONYMOUS_VIEWERS": "true"}
        program = make_program(**anybody).start()
        ann = program.client("ann")
        video = upload(ann)
        with visitor(browser, program) as page:
            watch(page, video)
            text = "¡Qué bonito es este vídeo, señores!"
            read(ann.post(f"/videos/{video}/comments", json={"content": text}))
            translation = comment(page, text).locator("[data-slot=translated]")
            expect(translation).to_have_text(f"[en] {text}")
            expect(comment(page, text).locator("[data-slot=language]")).to_have_text(" from es")
            expect(comment(page, text).locator("[data-slot=pending]")).to_be_hidden()
            page.get_by_role("button", name="Play").click()
            expect(page.locator("video")).to_be_visible()
        eventually(lambda: read(ann.get(f"/videos/{video}"))["views"] == 1)


def test_lists_tell_what_trends_and_why(
    server: Program, browser: Browser, alice: httpx.Client
) -> None:
    category = f"<i>{XSS[:20]}"
    video = upload(alice, title=XSS, category=category)
    ann = server.client("ann")
    liked = ann.put(f"/videos/{video}/like")
    see(ann, liked)
    eventually(lambda: items(ann, "/analytics/trending", category=category))
    with visitor(browser, server, "ann") as page:
        page.goto("/")
        page.get_by_role("link", name=category, exact=True).click()
        expect(page.locator(".shelf .title")).to_have_text([XSS])
        assert axe(page) == []
        page.get_by_role("link", name="Trending").click()
        page.get_by_role("link", name=category, exact=True).click()
        expect(page.locator(".why")).to_contain_text("Mostly for its likes (100")
        page.locator("summary").click()
        assert axe(page) == []
        page.get_by_role("link", name="Liked", exact=True).click()
        expect(page.locator(".shelf .title")).to_contain_text([XSS])


def test_what_is_of_no_interest_is_recommended_no_more(
    server: Program, browser: Browser, alice: httpx.Client, film: str
) -> None:
    dull = upload(alice, title="Paint that dries")
    with visitor(browser, server, "carla", phone=True) as page:
        page.goto(f"/watch/{film}")
        listed = page.locator(f'[data-listed="{dull}"]')
        expect(listed.locator(".reason")).not_to_be_empty()
        listed.get_by_role("button", name="Not interested").click()
        expect(listed.get_by_role("button", name="Undo")).to_be_visible()
        fits(page)
        page.reload()
        page.locator(".next, aside .nothing").wait_for()
        expect(listed).to_have_count(0)
    carla = server.client("carla")
    assert dull not in [each["video"]["videoId"] for each in items(carla, "/recommendations")]


def test_a_form_of_another_site_does_nothing(
    server: Program, alice: httpx.Client, film: str
) -> None:
    with plain.client(base_url=server.url) as browser:
        token = server.token("dora")
        assert browser.post("/login", data={"token": token, "next": "/"}).status_code == 303
        for headers in ({}, {"X-CSRF-Token": "guessed"}, {"Sec-Fetch-Site": "cross-site"}):
            sent = browser.post(f"/watch/{film}/like", data={"on": "1"}, headers=headers)
            assert sent.status_code == 403
    assert read(server.client("dora").get(f"/videos/{film}/like"))["hasLiked"] is False
