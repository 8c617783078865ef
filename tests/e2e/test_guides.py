"""The guides of docs/guides/, followed block by block against the started program."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.docs_commands import GUIDES, shell_blocks
from tests.e2e.guide import blocks, carried_out
from tests.e2e.program import Program
from tests.support import DEADLINE_SECONDS, PROJECT, eventually, requires, unused_port

FOLDER = PROJECT / "docs" / "guides"
# What a guide has in terminals of its own, beside the one in which the rest is typed.
SERVER = re.compile(r"(?:\w+=\S+ )*make up\n|python3 -m http\.server ")
FENCE = re.compile(r"(?m)^```\w*$")
HAVE_CURRENT_DATA = 2


class Afternoon:
    """One who follows a guide in a clone, with the ports that this machine has free."""

    def __init__(self, site: Program, ports: dict[str, int], folder: Path) -> None:
        self.site, self.folder = site, folder
        self._ports = ports

    def begin(self, guide: str) -> list[str]:
        """Write the files of a guide; return what it has its reader type, block by block."""
        for block in blocks(self._here(FOLDER / guide)):
            block.apply(self.folder)
        typed = shell_blocks(FOLDER / guide)
        return [self._moved(block) for block in typed if not SERVER.match(block)]

    def types(self, *typed: str) -> str:
        """Type blocks into one shell; return what they print."""
        return carried_out("".join(typed), self.site, self.folder)

    def _here(self, page: Path) -> str:
        return self._moved(page.read_text())

    def _moved(self, text: str) -> str:
        told = "|".join(self._ports)
        return re.sub(rf"\b(?:{told})\b", lambda port: str(self._ports[port[0]]), text)


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """By the port that the guides name: the one that is free here."""
    return {told: unused_port() for told in ("8000", "8001", "8090", "8091")}


@pytest.fixture(scope="module")
def site(short_dir: Path, ports: dict[str, int]) -> Iterator[Program]:
    """One program for all guides, with what each of them has set; nobody waits to be forgotten."""
    variables = {
        "CORS_ORIGINS": f"http://127.0.0.1:{ports['8090']}",
        "SETTLES": "yes",
        "WEBHOOK_ALLOW_HTTP": "true",
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    hasty = "tests.e2e.hasty_erasure"
    program = Program(short_dir / "guides", ports["8000"], variables, hasty)
    try:
        yield program.start()
        assert program.stop() == 0
    finally:
        program.clean_up()


@pytest.fixture
def afternoon(site: Program, ports: dict[str, int], clone: Path) -> Afternoon:
    requires("curl")
    return Afternoon(site, ports, clone)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_block_of_a_guide_is_typed_or_a_file(guide: Path) -> None:
    text = guide.read_text()
    assert len(list(blocks(text))) + len(shell_blocks(guide)) == len(FENCE.findall(text)) / 2


class Quiet(SimpleHTTPRequestHandler):
    """What `python3 -m http.server` answers with."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def pages(ports: dict[str, int], clone: Path) -> Iterator[None]:
    """The folder `page` of the clone, served as the guide says."""
    handler = partial(Quiet, directory=str(clone / "page"))
    with ThreadingHTTPServer(("127.0.0.1", ports["8090"]), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_page() as page:
        page.set_default_timeout(1000 * DEADLINE_SECONDS)
        yield page


@pytest.mark.usefixtures("pages")
def test_the_page_of_the_web_developer_plays_and_shows_what_others_do(
    afternoon: Afternoon, page: Page
) -> None:
    upload, opened, taken_part = afternoon.begin("web-developer.md")
    url = afternoon.types(upload, opened).splitlines()[-1]
    page.goto(url)
    page.locator("#new").get_by_role("button", name="Rain").click()
    film = page.locator("#film")
    eventually(lambda: film.evaluate("film => film.readyState") >= HAVE_CURRENT_DATA)
    film.evaluate("film => film.play()")
    with page.expect_response(lambda told: told.url.endswith("/watch-time")) as reported:
        film.evaluate("film => film.pause()")
    assert reported.value.ok
    page.locator("#likes", has_text="0 likes").wait_for()
    page.locator("#like").click()
    page.locator("#likes", has_text="1 likes").wait_for()
    page.locator("#text").fill("<b>Rain</b> & thunder")
    page.get_by_role("button", name="Send").click()
    page.locator("#comments", has_text="bob: <b>Rain</b> & thunder").wait_for()
    afternoon.types(taken_part)
    page.locator("#likes", has_text="2 likes").wait_for()
    page.locator("#comments", has_text="carol: I was there!").wait_for()
    assert page.locator("#problem").inner_text() == ""

    def ranked() -> bool:
        page.reload()
        page.locator("#new li").first.wait_for()
        return "Rain" in page.locator("#trending").inner_text()

    eventually(ranked)


def test_the_service_of_the_back_end_developer_resumes_and_is_called(afternoon: Afternoon) -> None:
    told = afternoon.types(*afternoon.begin("back-end-developer.md"))
    for said in (
        "is new",
        "was begun before",
        "likes in the stats: 1",
        "comments: 1\n",
        "forged: 401",
        "received comment.created",
    ):
        assert said in told, told
    first, *_ = re.findall(r"(\S+) is new", told)
    assert f"('{first}', 1)" in told
    assert f"('{first}', 0)" in told
    assert "1 new" in told.partition(f"('{first}', 1)")[2]


# The pause in which consumers take in what was under way is none here: so that comes first.
CONSUMED = """
until test "$("$BIN/psql" "$URL" -Atc "
    SELECT min(position) >= (SELECT max(notification_id) FROM backlot_events
                             WHERE topic LIKE 'comment%')
    FROM backlot_checkpoints WHERE source = 'events' AND (
        kind = 'consumer' OR subscription IN ('audit', 'comments', 'moderation'))")" = t
do sleep 0.1; done
"""


def test_the_operator_mends_restores_and_forgets(afternoon: Afternoon) -> None:
    (afternoon.folder / ".backlot").symlink_to(afternoon.site.data)
    *before, forgotten, restored = afternoon.begin("operator.md")
    assert "privacy forget" in forgotten
    told = afternoon.types(*before, CONSUMED, forgotten, restored)
    for said in (
        "ready: True",
        "auditor: 200\nmoderator: 403",
        "comment.posted.v1",
        "some rows differ",
        "switched at position",
        "no row differs",
        "no fault",
        "erin is forgotten",
        "comments here: 0",
        "restored: Storm with 1 like",
        "0\nher text is not there",
    ):
        assert said in told, told
    assert "restored_persons_erased" in (afternoon.folder / "restored.log").read_text()


def test_the_analyst_finds_what_was_watched_and_why(afternoon: Afternoon) -> None:
    told = afternoon.types(*afternoon.begin("analyst.md"))
    for said in (
        "views 3\nuniqueViewers 3\nlikes 3\ncomments 3\nshares 3\n",
        "{'channel': 'mail', 'shares': 3}",
        "of alice: ",
        "1 Drizzle ",
        "\nweather,3,3,",
        ",mail\n",
        " 1 of 1 true rate",
        "video_likes.liked.v1 ",
    ):
        assert said in told, told
    heads = (afternoon.folder / "rain.csv").read_text().splitlines()[0].split(",")
    assert "views" in heads
