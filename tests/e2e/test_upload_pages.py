"""The example pages in a real browser: tus-js-client and Uppy go on with what was cut off."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from infra.objects.s3_cors import rule
from tests.e2e import plain
from tests.e2e.cut_wire import cut_wire_to
from tests.e2e.program import Program
from tests.e2e.videos import read
from tests.integration.s3_server import BUCKET, s3_server
from tests.support import DEADLINE_SECONDS, PROJECT, eventually, unavailable, unused_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Request

DEADLINE = 1000 * DEADLINE_SECONDS
PART = 5 * 1024 * 1024
FILM = random.Random(7).randbytes(2 * PART + 1000)
SECOND_PART = re.compile(r"[?&]partNumber=2(&|$)")
USER = "uploader"


class Files(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """The origin at which the folder of examples is served."""
    for name in ("tus", "uppy"):
        if not (PROJECT / "examples" / name / "build" / "page.js").exists():
            unavailable("the example pages are not built: make examples")
    handler = partial(Files, directory=str(PROJECT / "examples"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module", params=["folder", "s3"])
def program(request: pytest.FixtureRequest, pages: str, short_dir: Path) -> Iterator[Program]:
    """A program for pages of that origin, with its objects in a folder or in S3."""
    settings = {"CORS_ORIGINS": pages, "PART_SIZE_BYTES": str(PART)}
    with ExitStack() as stack:
        if request.param == "s3":
            s3 = stack.enter_context(s3_server())
            rules: Any = json.loads(rule({pages}))
            s3.client().put_bucket_cors(Bucket=BUCKET, CORSConfiguration=rules)
            settings |= s3.settings()
        program = Program(short_dir / f"pages-{request.param}", unused_port(), settings)
        stack.callback(program.clean_up)
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser's memory, in which pages are opened and closed."""
    context = browser.new_context()
    context.set_default_timeout(DEADLINE)
    yield context
    context.close()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(FILM)
    return path


def begin(page: Page, where: str, server: str, token: str, film: Path) -> None:
    """Fill in the form of an example page, and send it."""
    page.goto(where)
    for name, text in (("server", server), ("token", token), ("title", "Cut off")):
        page.fill(f"[name={name}]", text)
    page.set_input_files("[name=file]", film)
    page.click("button")


def finished(page: Page) -> str:
    """The video's id, once the page tells it."""
    output = page.locator("output")
    under_way = ("", "sending", "resuming")
    told = eventually(lambda: "" if (found := output.inner_text()) in under_way else found)
    assert told.startswith("done: "), told
    return told.removeprefix("done: ")


def played(client: httpx.Client, video: str) -> bytes:
    watching = eventually(lambda: _watching(client, video)) or {}
    return plain.get(watching["url"]).content


def _watching(client: httpx.Client, video: str) -> dict[str, Any] | None:
    answer = client.post(f"/videos/{video}/watch")
    return read(answer) if answer.is_success else None


def test_tus_js_client_goes_on_after_its_connection_and_its_page_were_lost(
    program: Program, pages: str, context: BrowserContext, film: Path
) -> None:
    where, token, client = f"{pages}/tus/index.html", program.token(USER), program.client(USER)
    with cut_wire_to(program.port) as wire:
        wire.left = PART + PART // 2
        page, urls = context.new_page(), list[str]()
        page.on("request", lambda sent: urls.append(sent.url) if sent.method == "PATCH" else None)
        with page.expect_event("requestfailed", lambda failed: failed.method == "PATCH"):
            begin(page, where, wire.url, token, film)
        page.close()
        upload = urlsplit(urls[0]).path
        reached = eventually(lambda: _offset(client, upload))
        assert PART <= reached < len(FILM)

        wire.mend()
        again, offsets = context.new_page(), list[int]()
        again.on("request", lambda sent: offsets.extend(_offset_sent(sent)))
        begin(again, where, wire.url, token, film)
        video = finished(again)
        # Not from the beginning; more than once where the rest of the first request came late.
        assert offsets
        assert all(PART <= at < len(FILM) for at in offsets)
    assert upload.endswith(video)
    assert played(client, video) == FILM


def _offset(client: httpx.Client, upload: str) -> int:
    """How far it is; 0 until the first part has arrived."""
    told = client.head(upload, headers={"Tus-Resumable": "1.0.0"})
    reached = int(told.headers["Upload-Offset"])
    return reached if reached >= PART else 0


def _offset_sent(sent: Request) -> list[int]:
    return [int(sent.headers["upload-offset"])] if sent.method == "PATCH" else []


def test_uppy_goes_on_after_its_page_was_closed(
    program: Program, pages: str, context: BrowserContext, film: Path
) -> None:
    where, token, client = f"{pages}/uppy/index.html", program.token(USER), program.client(USER)
    page = context.new_page()
    # Nothing is done about the request for the second part: it hangs until its page is closed.
    page.route(SECOND_PART, lambda route: None)
    with page.expect_request(SECOND_PART):
        begin(page, where, program.url, token, film)
    page.close()

    again, sent = context.new_page(), list[int]()
    again.on("request", lambda request: sent.extend(_part_sent(request)))
    begin(again, where, program.url, token, film)
    video = finished(again)
    assert sent == [2, 3]
    assert played(client, video) == FILM


def _part_sent(request: Request) -> list[int]:
    if request.method != "PUT":
        return []
    return [int(number) for number in parse_qs(urlsplit(request.url).query)["partNumber"]]
