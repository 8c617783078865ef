"""What a person sees: the API's page works offline, and a film plays, in a real browser."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Error, Page

from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import read, upload
from tests.support import DEADLINE_SECONDS, eventually

# In milliseconds, as Playwright has it.
DEADLINE = 1000 * DEADLINE_SECONDS
HAVE_CURRENT_DATA = 2


class Watched:
    """A page, and what went wrong or abroad on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda told: self._note(told.type, told.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(request.url))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A page of this test's own: what an earlier one broke off is no complaint of its."""
    with browser.new_page() as page:
        yield Watched(page)


def test_the_page_of_the_api(server: Program, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    page.goto(f"{server.url}/docs")
    page.wait_for_selector(".opblock", timeout=DEADLINE)
    document = plain.get(f"{server.url}/openapi.json").json()
    operations = sum(len(path) for path in document["paths"].values())
    assert page.locator(".opblock").count() == operations
    assert page.title() == "Backlot API"

    page.locator("#operations-videos-listVideos").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    status = page.locator(".live-responses-table .response .response-col_status")
    status.wait_for(timeout=DEADLINE)
    assert status.inner_text().strip() == "200"

    picture = tmp_path / "docs.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 20_000
    assert watched.complaints == []
    assert watched.hosts == {f"127.0.0.1:{server.port}"}


def test_a_film_plays(
    server: Program, alice: httpx.Client, video: str, watched: Watched, tmp_path: Path
) -> None:
    page = watched.page
    page.goto(read(alice.post(f"/videos/{video}/watch"))["url"])
    film = page.locator("video")
    film.wait_for(timeout=DEADLINE)
    # Asked from here: the film's own page may run no script, so it has no timers.
    eventually(lambda: film.evaluate("film => film.readyState") >= HAVE_CURRENT_DATA)
    length, width = film.evaluate("film => [film.duration, film.videoWidth]")
    assert (round(length), width) == (4, 320)
    film.evaluate("film => { film.currentTime = 2.5 }")
    eventually(lambda: film.evaluate("film => !film.seeking && film.currentTime >= 2.5"))
    page.screenshot(path=tmp_path / "film.png")
    assert watched.complaints == []
    assert watched.hosts == {f"127.0.0.1:{server.port}"}


def test_a_film_that_is_really_a_page_runs_no_script(
    server: Program, alice: httpx.Client, watched: Watched
) -> None:
    script = b"<body><script>document.title = 'it ran'</script>"
    film = upload(alice, script, filename="film.html")
    page = watched.page
    with contextlib.suppress(Error):
        page.goto(read(alice.post(f"/videos/{film}/watch"))["url"])
    assert page.title() != "it ran"
    assert watched.hosts == {f"127.0.0.1:{server.port}"}
