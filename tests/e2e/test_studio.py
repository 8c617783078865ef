"""The studio in a real browser: how a video does, what is said of it, and what others say."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import httpx
from playwright.sync_api import Browser, expect
from starlette.routing import Route

from tests.e2e.pages import XSS, accept_questions, axe, fits, visitor
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, start, upload
from tests.support import eventually
from web.studio import ROUTES

HERE = "/studio/videos"
FIRST_CELLS = "rows => rows.map(row => [...row.cells].slice(0, 2).map(cell => cell.textContent))"
Form = dict[str, str | float | bool]


def creator(server: Program) -> tuple[str, httpx.Client]:
    """Somebody new, and a client of the API as them."""
    name = f"creator-{uuid4().hex[:8]}"
    return name, server.client(name)


def watch(client: httpx.Client, video: str) -> None:
    """View the video, and go on watching it until a second of it has been seen."""
    session = read(client.post(f"/videos/{video}/watch"))["sessionId"]
    report = {"sessionId": session, "seconds": 2, "position": 0}

    def seen() -> bool:
        assert client.post(f"/videos/{video}/watch-time", json=report).status_code == 202
        told = read(client.get(f"/videos/{video}/stats/retention"))
        return any("share" in point for point in told["points"])

    eventually(seen)


def test_a_creator_sees_how_videos_do(browser: Browser, server: Program) -> None:
    name, client = creator(server)
    video = upload(client, title=XSS, category=XSS[:50], visibility="unlisted")
    watch(client, video)
    client.post(f"/videos/{video}/share", json={"channel": XSS[:30]})
    with visitor(browser, server, name) as page:
        page.goto("/studio")
        choices = page.get_by_role("group", name="Figure in the chart")
        expect(choices.get_by_role("button", name="Views 1")).to_have_attribute(
            "aria-pressed", "true"
        )
        expect(page.get_by_role("link", name=XSS, exact=True)).to_be_visible()
        expect(page.get_by_text("Unlisted")).to_be_visible()
        assert axe(page) == []
        page.get_by_role("link", name=XSS, exact=True).click()

        chart = page.locator("[data-charted] .chart")
        expect(chart.locator("canvas")).to_be_visible()
        expect(chart).to_have_attribute("data-shown", "views")
        page.get_by_role("button", name="Shares 1").click()
        expect(chart).to_have_attribute("data-shown", "shares")
        # The channel, and the curve of who watches which second.
        expect(page.get_by_role("row", name=XSS[:30])).to_contain_text("1")
        expect(page.locator(".chart canvas")).to_have_count(2)
        assert axe(page) == []

        # Another zone, in which days begin at other times, and which the browser keeps.
        zone = page.get_by_label("Time zone")
        zone.fill("Pacific/Apia")
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_text("by days of Pacific/Apia")).to_be_visible()
        path = f"/videos/{video}/stats"

        def is_told() -> bool:
            # Another day, or hour, may begin between the page and the answer.
            page.reload()
            rows: list[list[str]] = page.locator("[data-charted] details tbody tr").evaluate_all(
                FIRST_CELLS
            )
            series = read(client.get(path, params={"tz": "Pacific/Apia"}))["series"]
            return rows == [[each["day"], str(each["views"])] for each in reversed(series)]

        assert eventually(is_told)
        page.goto(f"{HERE}/{video}?range=24h")
        expect(page.get_by_text("by hours of Pacific/Apia")).to_be_visible()

        def is_saved(what: str) -> bool:
            with page.expect_download() as saved:
                page.locator(f'a[href*="/{what.removeprefix("stats/")}.csv"]').click()
            params, accept = {"timeRange": "24h", "tz": "Pacific/Apia"}, {"Accept": "text/csv"}
            answer = client.get(f"/videos/{video}/{what}", params=params, headers=accept)
            return saved.value.path().read_bytes() == answer.content

        for what in ("stats", "stats/channels", "stats/retention"):
            assert eventually(partial(is_saved, what))

        # What happens meanwhile is seen without anything being done.
        figure = page.locator("[data-live] .figure").filter(has_text="Likes")
        expect(figure).to_contain_text("0")
        server.client("bob").put(f"/videos/{video}/like")
        expect(figure).to_contain_text("1")
        expect(page.locator("[data-live-state]")).to_have_text("live")


def test_a_time_that_can_not_be_is_told(browser: Browser, server: Program) -> None:
    name, _ = creator(server)
    with visitor(browser, server, name, refused=[422]) as page:
        main = page.get_by_role("main")
        page.goto("/studio?from=2024-11-02&to=2024-11-01&tz=Europe/Berlin")
        expect(main).to_contain_text("it lies before `from`")
        page.goto("/studio?tz=Europe/Atlantis")
        expect(main).to_contain_text("no time zone has that name")
        page.goto("/studio")
        expect(page.get_by_label("Time zone")).to_have_value("UTC")
        # Of one day the hours are told, where they are hours elsewhere too.
        day = datetime.now(UTC).date() - timedelta(days=3)
        for tz, bucket in (("Europe/Berlin", "hours"), ("Asia/Kolkata", "days")):
            page.goto(f"/studio?from={day}&to={day}&tz={tz}")
            expect(main).to_contain_text(f"by {bucket} of {tz}")


def test_a_creator_says_what_a_video_is_and_deletes_it(browser: Browser, server: Program) -> None:
    name, client = creator(server)
    video = upload(client, title="Before", description="Some words", category="nature")
    with visitor(browser, server, name, phone=True, refused=[422]) as page:
        page.goto(HERE)
        fits(page)
        page.get_by_role("link", name="Edit Before").click()
        page.get_by_label("Title").fill("After")
        page.get_by_label("Description").fill("two\nlines")
        page.get_by_label("Category").fill("")
        page.get_by_label("Who sees it").select_option("private")
        page.locator("select[name=commentPolicy]").select_option("approval")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("status")).to_have_text("The changes are saved.")
        told = read(client.get(f"/videos/{video}"))
        assert told["description"] == "two\nlines"
        assert "category" not in told
        named = ("title", "visibility", "commentPolicy")
        assert [told[each] for each in named] == ["After", "private", "approval"]

        page.get_by_label("Title").fill("\u00a0")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("alert").filter(has_text="title")).to_be_visible()
        expect(page.get_by_label("Who sees it")).to_have_value("private")
        assert axe(page) == []
        fits(page)

        page.goto(f"{HERE}/{video}/details")
        page.get_by_role("button", name="Delete the video").click()
        # The browser asks for the box first.
        expect(page.get_by_role("checkbox")).not_to_be_checked()
        read(client.get(f"/videos/{video}"))
        page.get_by_role("checkbox").check()
        page.get_by_role("button", name="Delete the video").click()
        expect(page.get_by_role("status")).to_have_text("The video is deleted.")
        problem(client.get(f"/videos/{video}"), 404)


def test_nobody_else_gets_at_a_video(browser: Browser, server: Program) -> None:
    owner, client = creator(server)
    video = upload(client, title="Mine", commentPolicy="approval")
    held = {"content": "Mine too"}
    comment = read(server.client("bob").post(f"/videos/{video}/comments", json=held))["commentId"]
    begun = start(client)["uploadId"]
    pages = [f"{HERE}/{video}{each}" for each in ("", "/details", "/comments", "/stats.csv")]
    acts = {
        f"{HERE}/{video}/details": 403,
        f"{HERE}/{video}/remove": 403,
        f"/studio/comments/{comment}/approve": 404,
        f"/studio/comments/{comment}/remove": 404,
        f"/studio/uploads/{begun}/part-urls": 403,
        f"/studio/uploads/{begun}/complete": 403,
        f"/studio/uploads/{begun}/abort": 403,
    }
    form: Form = {"title": "Theirs", "sure": "yes", "revision": "1", "numbers": "1"}
    with visitor(browser, server, "mallory", refused=[403]) as page:
        for where in pages:
            answer = page.goto(where)
            assert answer is not None
            assert answer.status == 403
        own = json.loads(page.locator("body").get_attribute("hx-headers") or "")
        for where, status in acts.items():
            sent = page.request.post(where, form=form, headers=own, max_redirects=0)
            assert (where, sent.status) == (where, status)
        assert page.request.get(f"/studio/uploads/{begun}").status == 403
    with visitor(browser, server, owner) as page:
        # A form of another site has no code of this session.
        for where in acts:
            sent = page.request.post(where, form={**form, "_csrf": "made up"})
            assert (where, sent.status) == (where, 403)
    with visitor(browser, server) as page:
        page.goto(f"{HERE}/{video}?range=24h")
        expect(page.get_by_label("Token")).to_be_visible()
    assert read(client.get(f"/videos/{video}"))["title"] == "Mine"
    assert read(client.get(f"/comments/{comment}"))["status"] == "held"
    assert read(client.get(f"/uploads/{begun}"))["status"] == "started"


def test_nothing_is_for_who_has_no_token(server: Program) -> None:
    things = {"video_id": str(uuid4()), "comment_id": str(uuid4()), "upload_id": str(uuid4())}
    walked = [each for each in ROUTES if isinstance(each, Route)]
    assert len(walked) == len(ROUTES)
    for route in walked:
        (method,) = (route.methods or set()) - {"HEAD"}
        where = re.sub(r"{(\w+):uuid}", lambda found: things[found[1]], route.path)
        answer = server.client().request(method, where)
        assert (where, answer.status_code) == (where, 303)
        assert answer.headers["Location"].startswith("/login?next=")


def test_a_creator_moderates_comments(browser: Browser, server: Program) -> None:
    name, client = creator(server)
    video = upload(client, title="Judged", commentPolicy="approval")
    fan, path = f"fan-of-{name}", f"/videos/{video}/comments"
    theirs = server.client(fan)
    held = read(theirs.post(path, json={"content": XSS}))["commentId"]

    def standing() -> tuple[str | None, str | None]:
        told = read(theirs.get(f"/comments/{held}"))
        return told.get("status"), told.get("statusReason")

    with visitor(browser, server, name) as page:
        accept_questions(page)
        status = page.get_by_role("status").first
        page.goto("/studio/comments")
        said = page.locator(f'[data-comment="{held}"]')
        expect(said).to_contain_text(XSS)
        expect(said.get_by_role("link", name="Judged")).to_be_visible()
        assert axe(page) == []
        said.get_by_role("button", name="Approve").click()
        expect(status).to_have_text("The comment is approved.")
        assert standing() == (None, None)
        reply = read(client.post(path, json={"content": "Thanks", "parentId": held}))["commentId"]

        page.goto(f"{HERE}/{video}/comments")
        said.get_by_role("link", name="1 reply").click()
        answer = page.locator(f'[data-comment="{reply}"]')
        expect(answer).to_contain_text("Thanks")
        answer.get_by_role("button", name="Delete").click()
        expect(status).to_have_text("The comment is deleted.")
        problem(client.get(f"/comments/{reply}"), 404)

        page.goto(f"{HERE}/{video}/comments")
        said.get_by_text("Remove…").click()
        said.get_by_label("Reason").fill(XSS)
        said.get_by_role("button", name="Remove").click()
        expect(status).to_have_text("The comment is removed.")
        assert standing() == ("removed", XSS)
        page.get_by_role("link", name="Removed").click()
        expect(said).to_contain_text(f"Reason: {XSS}")
        said.get_by_role("button", name="Restore").click()
        expect(status).to_have_text("The comment is shown again.")
        assert standing() == (None, None)

        page.get_by_role("link", name="Posted").click()
        said.get_by_role("button", name=f"Block {fan}").click()
        expect(status).to_contain_text("can't comment on your videos any more")
        problem(theirs.post(path, json={"content": "And now?"}), 403, "blocked")
        page.goto("/studio/blocked")
        page.get_by_role("row", name=fan).get_by_role("button", name="Unblock").click()
        expect(status).to_have_text(f"{fan} may comment again.")
        assert theirs.post(path, json={"content": "And now?"}).status_code == 201
