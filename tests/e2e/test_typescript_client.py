"""The client in TypeScript, as `make clients` builds it, against the started program.

Its own tests run in Node; what is a browser's part runs in Chromium, on a page of another origin.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route

from tests.e2e import plain
from tests.e2e.conftest import SMALL_PARTS
from tests.e2e.program import Program
from tests.e2e.test_clients import TYPESCRIPT, generated
from tests.e2e.videos import read, upload
from tests.support import DEADLINE_SECONDS, eventually, requires

__all__ = ["generated"]

USERS = ("alice", "bob", "carol")
BUILT = TYPESCRIPT / "build"


@pytest.mark.parametrize("about", ["parts", "client", "upload", "live"])
def test_the_client_in_node(about: str, server: Program) -> None:
    own = {
        "BACKLOT_URL": server.url,
        "BACKLOT_TOKENS": json.dumps({user: server.token(user) for user in USERS}),
    }
    done = subprocess.run(
        [
            *(requires("node"), "--test", f"--test-timeout={1000 * DEADLINE_SECONDS:.0f}"),
            f"build/tests/{about}.test.js",
        ],
        cwd=TYPESCRIPT,
        env={**os.environ, **own},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_is_whole(tmp_path: Path) -> None:
    packed = ["npm", "pack", "--silent", "--pack-destination", str(tmp_path)]
    requires("npm")
    subprocess.run(packed, cwd=TYPESCRIPT, check=True, capture_output=True)
    (package,) = tmp_path.glob("backlot-client-*.tgz")
    installed = tmp_path / "node_modules" / "backlot-client"
    installed.mkdir(parents=True)
    untar = ["tar", "-xzf", str(package), "-C", str(installed), "--strip-components=1"]
    subprocess.run(untar, check=True)
    script = """
        import { Backlot } from 'backlot-client';
        import { fileSource } from 'backlot-client/node';
        import { likeVideo } from 'backlot-client/api';
        console.log([Backlot, fileSource, likeVideo].map((each) => typeof each).join());
    """
    run = ["node", "--input-type=module", "--eval", script]
    done = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "function,function,function"
    assert (installed / "build/src/index.d.ts").exists()
    assert (installed / "README.md").exists()
    assert not (installed / "build/tests").exists()


PAGE = b"""<!doctype html><link rel=icon href=data:,><title>Afar</title>
<input type=file id=film>
<script type=module>
  import { Backlot } from '/src/index.js';
  window.open = (baseUrl, token) => new Backlot({ baseUrl, token: () => token });
  window.ready = true;
</script>"""
SEND = """
async ([base, token, resume]) => {
  const film = document.getElementById('film').files[0];
  window.told = [];
  return await window.open(base, token).upload(film, {
    title: 'Afar', filename: film.name, contentType: 'video/mp4', parallel: 2,
    ...(resume && { resume: localStorage.getItem('upload') }),
    onStart: (uploadId) => localStorage.setItem('upload', uploadId),
    onProgress: (sent) => window.told.push(sent),
  });
}
"""
FOLLOW = """
([base, token, video, way]) => {
  const backlot = window.open(base, token);
  const told = (window.events = []);
  const note = (event) => told.push([event.kind, event.data.content ?? event.data.likesCount]);
  if (way === 'EventSource') {
    const onError = (error) => told.push(['error', error.type]);
    window.stop = backlot.listen(video, note, { onError });
    return;
  }
  const leave = new AbortController();
  window.stop = () => leave.abort();
  (async () => {
    for await (const event of backlot.live(video, { signal: leave.signal })) note(event);
  })();
}
"""


class Site(SimpleHTTPRequestHandler):
    """A page of another origin, and the built client as files: nothing bundles it."""

    def do_GET(self) -> None:
        if self.path != "/":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The origin of the page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=BUILT)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Browser, site: str) -> Iterator[Page]:
    with browser.new_page() as page:
        page.set_default_timeout(1000 * DEADLINE_SECONDS)
        opened(page, site)
        yield page


def opened(page: Page, site: str) -> None:
    page.goto(f"{site}/")
    page.wait_for_function("window.ready")


def test_the_client_in_a_browser(
    make_program: Callable[..., Program], site: str, page: Page, tmp_path: Path
) -> None:
    """One program for all: pages of another origin need a setting."""
    program = make_program(CORS_ORIGINS=site, **SMALL_PARTS).start()
    a_file_whose_upload_is_cut_off_goes_on_after_a_reload(program, site, page, tmp_path)
    for way in ("fetch", "EventSource"):
        a_page_follows_a_private_video(program, page, way)
    a_ticket_that_has_ended_is_replaced(program, page)


def a_file_whose_upload_is_cut_off_goes_on_after_a_reload(
    program: Program, site: str, page: Page, tmp_path: Path
) -> None:
    film = tmp_path / "afar.mp4"
    film.write_bytes(os.urandom(10 * int(SMALL_PARTS["PART_SIZE_BYTES"]) - 7))
    held: list[Route] = []
    passed = 0

    def let_three_through(route: Route) -> None:
        nonlocal passed
        if route.request.method == "PUT":
            if passed == 3:
                held.append(route)
                return
            passed += 1
        route.continue_()

    page.route("**/objects/**", let_three_through)
    page.set_input_files("#film", film)
    given = [program.url, program.token("alice")]
    page.evaluate(f"given => {{ ({SEND})(given); }}", [*given, False])
    # Both that are under way now are held: nothing more arrives.
    page.wait_for_function("window.told.length === 4")
    eventually(lambda: page.title() and len(held) == 2)
    opened(page, site)
    page.unroute("**/objects/**")
    page.set_input_files("#film", film)
    done = page.evaluate(SEND, [*given, True])
    assert done["sentParts"] == 10 - 3
    alice = program.client("alice")
    url = read(alice.post(f"/videos/{done['videoId']}/watch"))["url"]
    assert plain.get(url).content == film.read_bytes()


def a_page_follows_a_private_video(program: Program, page: Page, way: str) -> None:
    alice = program.client("alice")
    video = upload(alice, visibility="private")
    page.evaluate(FOLLOW, [program.url, program.token("alice"), video, way])
    page.wait_for_function("window.events.length > 0")
    say(alice, video, f"by {way}")
    assert alice.put(f"/videos/{video}/like").is_success
    page.wait_for_function(f"window.events.some(event => event[1] === 'by {way}')")
    page.wait_for_function("window.events.some(event => event[0] === 'likes' && event[1] === 1)")
    page.evaluate("window.stop()")


def a_ticket_that_has_ended_is_replaced(program: Program, page: Page) -> None:
    alice = program.client("alice")
    video = upload(alice, visibility="private")
    opened_streams: list[str] = []

    def refuse_the_first(route: Route) -> None:
        opened_streams.append(route.request.url)
        if len(opened_streams) == 1:
            route.fulfill(status=401, headers={"Access-Control-Allow-Origin": "*"})
        else:
            route.continue_()

    page.route("**/events?*", refuse_the_first)
    page.evaluate(FOLLOW, [program.url, program.token("alice"), video, "EventSource"])
    page.wait_for_function("window.events.length > 0")
    first, second = (httpx.URL(url).params["ticket"] for url in opened_streams)
    assert first != second
    assert page.evaluate("window.events[0]") == ["likes", 0]
    assert alice.delete(f"/videos/{video}").is_success
    page.wait_for_function("window.events.at(-1)[0] === 'removed'")
    # Whoever asks then is told that it is gone, and asks no more.
    page.evaluate(FOLLOW, [program.url, program.token("alice"), video, "EventSource"])
    page.wait_for_function("window.events.length > 0")
    assert page.evaluate("window.events") == [["error", "not-found"]]


def say(client: httpx.Client, video: str, content: str) -> None:
    assert client.post(f"/videos/{video}/comments", json={"content": content}).is_success
