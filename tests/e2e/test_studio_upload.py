"""Uploads from the studio in a real browser: cut off, reloaded, paused, given up."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, Route, expect

from infra.objects.s3_cors import rule
from tests.e2e import plain
from tests.e2e.pages import DEADLINE, XSS, accept_questions, axe, log_in, visitor
from tests.e2e.program import Program
from tests.e2e.videos import problem, read
from tests.integration.s3_server import BUCKET, s3_server
from tests.support import eventually, unused_port

# Of 16 KiB each: what the shared program asks for.
PARTS = 9
FILM = random.Random(21).randbytes((PARTS - 1) * 16 * 1024 + 100)
OBJECTS = "**/objects/**"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "a film.mp4"
    path.write_bytes(FILM)
    return path


@pytest.fixture
def user() -> str:
    return f"uploader-{uuid4().hex[:8]}"


@pytest.fixture
def context(browser: Browser, server: Program, user: str) -> Iterator[BrowserContext]:
    """A browser in which that user is logged in; connections may break in it."""
    context = browser.new_context(base_url=server.url)
    context.set_default_timeout(DEADLINE)
    expect.set_options(timeout=DEADLINE)
    log_in(context.new_page(), server.token(user), "/studio")
    yield context
    context.close()


class Gate:
    """Lets those parts pass that it is told of, breaks the connections of the others."""

    def __init__(self, page: Page, *passing: int) -> None:
        self.passing = set(passing)
        self.sent: list[int] = []
        page.route(OBJECTS, self._look)

    def _look(self, route: Route) -> None:
        number = part_of(route.request)
        if number in self.passing:
            self.sent.append(number)
            route.continue_()
        else:
            route.abort("connectionreset")


def part_of(request: Request) -> int:
    (number,) = parse_qs(urlsplit(request.url).query)["partNumber"]
    return int(number)


def begin(page: Page, film: Path, **fields: str) -> None:
    """Fill in the form, and send it."""
    page.goto("/studio/upload")
    page.get_by_label("The file").set_input_files(film)
    for label, text in fields.items():
        page.get_by_label(label.capitalize()).fill(text)
    page.get_by_role("button", name="Upload", exact=True).click()


def row(page: Page) -> Locator:
    return page.locator(".uploads li")


def upload_id(page: Page) -> str:
    """The upload that the browser remembers."""
    told: list[dict[str, Any]] = page.evaluate(
        "Object.entries(localStorage).filter(([name]) => name.startsWith('backlot-upload:'))"
        ".map(([, told]) => JSON.parse(told))"
    )
    return str(told[0]["uploadId"])


def await_parts(page: Page, client: httpx.Client, upload: str, numbers: set[int]) -> None:
    """Wait until these parts, and no others, have arrived."""

    def have_arrived() -> bool:
        # What the browser asks the gate is answered while this process waits for the browser.
        page.evaluate("0")
        parts = read(client.get(f"/uploads/{upload}"))["parts"]
        return {part["number"] for part in parts} == numbers

    assert eventually(have_arrived)


def played(client: httpx.Client, video: str) -> bytes:
    return plain.get(read(client.post(f"/videos/{video}/watch"))["url"]).content


def test_an_upload_goes_on_after_its_connection_broke_and_its_page_was_loaded_again(
    server: Program, context: BrowserContext, user: str, film: Path
) -> None:
    client, page = server.client(user), context.pages[0]
    gate = Gate(page, 1, 2)
    begin(page, film, title=XSS, description="Cut off")
    expect(row(page)).to_contain_text("The connection broke; it goes on by itself")
    expect(row(page)).to_contain_text(XSS)
    upload = upload_id(page)
    await_parts(page, client, upload, {1, 2})
    # By itself, as soon as it can.
    gate.passing.add(3)
    await_parts(page, client, upload, {1, 2, 3})

    page.reload()
    expect(row(page)).to_contain_text("% have arrived. Choose the same file, and it goes on.")
    other = film.with_name("other.mp4")
    other.write_bytes(FILM)
    row(page).locator("input").set_input_files(other)
    expect(row(page)).to_contain_text("That is another file.")
    gate.passing.update(range(1, PARTS + 1))
    gate.sent.clear()
    # In the list of videos too.
    page.goto("/studio/videos")
    row(page).locator("input").set_input_files(film)
    expect(row(page)).to_contain_text("The video is there")
    assert sorted(gate.sent) == list(range(4, PARTS + 1))

    row(page).get_by_role("link", name="Open the video").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(XSS)
    told = read(client.get(f"/videos/{upload}"))
    assert (told["title"], told["description"], told["ownerId"]) == (XSS, "Cut off", user)
    assert played(client, upload) == FILM
    page.goto("/studio/upload")
    expect(row(page)).to_have_count(0)


def test_an_upload_is_paused_and_given_up(
    server: Program, context: BrowserContext, user: str, film: Path
) -> None:
    client, page = server.client(user), context.pages[0]
    accept_questions(page)
    gate = Gate(page, 1)
    begin(page, film, title="Paused")
    expect(row(page)).to_have_count(1)
    upload = upload_id(page)
    await_parts(page, client, upload, {1})
    row(page).get_by_role("button", name="Pause").click()
    expect(row(page)).to_contain_text("Paused")
    gate.passing.update(range(2, PARTS))
    row(page).get_by_role("button", name="Go on").click()
    await_parts(page, client, upload, set(range(1, PARTS)))
    row(page).get_by_role("button", name="Give up").click()
    expect(row(page)).to_have_count(0)
    assert read(client.get(f"/uploads/{upload}"))["status"] == "aborted"
    problem(client.get(f"/videos/{upload}"), 404)


def test_an_upload_in_one_go_and_one_that_is_refused(
    browser: Browser, server: Program, user: str, film: Path, tmp_path: Path
) -> None:
    client = server.client(user)
    page_of_text = tmp_path / "notes.html"
    page_of_text.write_text("<p>no film")
    with visitor(browser, server, user, refused=[422]) as page:
        begin(page, page_of_text)
        expect(page.get_by_role("alert").filter(has_text="contentType")).to_be_visible()
        assert read(client.get("/videos", params={"owner": "me"}))["items"] == []
        page.reload()
        begin(page, film)
        expect(row(page)).to_contain_text("The video is there")
        assert axe(page) == []
        (video,) = read(client.get("/videos", params={"owner": "me"}))["items"]
        # Without a title of its own it is called as its file.
        assert video["title"] == "a film"
        assert played(client, video["videoId"]) == FILM


def test_parts_go_straight_to_the_store_in_s3(
    browser: Browser, short_dir: Path, tmp_path: Path
) -> None:
    """From a page whose policy admits that store, and nothing else that is not its own origin."""
    # S3 takes no smaller parts.
    least = 5 * 1024 * 1024
    content = random.Random(22).randbytes(least + 1000)
    film = tmp_path / "a film.mp4"
    film.write_bytes(content)
    with s3_server() as s3:
        settings = s3.settings() | {"PART_SIZE_BYTES": str(least)}
        program = Program(short_dir / "studio-s3", unused_port(), settings)
        rules: Any = json.loads(rule({program.url}))
        s3.client().put_bucket_cors(Bucket=BUCKET, CORSConfiguration=rules)
        store = settings["S3_ENDPOINT_URL"]
        try:
            program.start()
            with visitor(browser, program, "ann", origins=[store]) as page:
                sent: list[str] = []
                page.on(
                    "request",
                    lambda request: sent.append(request.url) if request.method == "PUT" else None,
                )
                begin(page, film, title="Far away")
                expect(row(page)).to_contain_text("The video is there")
            assert len(sent) == 2
            assert all(url.startswith(store) for url in sent)
            client = program.client("ann")
            (video,) = read(client.get("/videos", params={"owner": "me"}))["items"]
            assert played(client, video["videoId"]) == content
            assert program.stop() == 0
        finally:
            program.clean_up()
