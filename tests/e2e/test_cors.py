"""A page of another origin in a real browser: it likes, comments, uploads, plays, and follows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import upload
from tests.support import DEADLINE_SECONDS

READABLE = """
async ([base, token, video]) => {
  const bearer = {Authorization: `Bearer ${token}`};
  const json = {...bearer, 'Content-Type': 'application/json'};
  const liked = await fetch(`${base}/videos/${video}/like`, {method: 'PUT', headers: bearer});
  const position = liked.headers.get('Backlot-Position');
  const read = await fetch(`${base}/videos/${video}`, {
    headers: {...bearer, 'Backlot-Min-Position': position, 'If-None-Match': '"none"'},
  });
  const comment = await fetch(`${base}/videos/${video}/comments`, {
    method: 'POST', body: JSON.stringify({content: 'From afar'}),
    headers: {...json, 'Idempotency-Key': 'one', 'X-Request-Id': 'mine'},
  });
  const refused = await fetch(`${base}/videos/nothing`, {headers: bearer});
  const unknown = await fetch(`${base}/videos/liked`);
  return {
    liked: (await liked.json()).likesCount,
    seen: (await read.json()).likes,
    etag: read.headers.get('ETag'),
    comment: [comment.status, comment.headers.get('X-Request-Id')],
    refused: [refused.status, (await refused.json()).type, refused.headers.has('X-Request-Id')],
    unknown: [unknown.status, unknown.headers.get('WWW-Authenticate')],
  };
}
"""
UPLOADED = """
async ([base, token]) => {
  const json = {Authorization: `Bearer ${token}`, 'Content-Type': 'application/json'};
  const film = new Blob(['ten bytes.'], {type: 'video/mp4'});
  const body = JSON.stringify({
    title: 'Far', filename: 'far.mp4', contentType: 'video/mp4', sizeBytes: film.size,
  });
  const begun = await (
    await fetch(`${base}/uploads`, {method: 'POST', headers: json, body})
  ).json();
  const part = await fetch(begun.parts[0].url, {method: 'PUT', body: film});
  const parts = [{number: 1, etag: part.headers.get('ETag')}];
  const path = `${base}/uploads/${begun.uploadId}/complete`;
  const done = await fetch(path, {method: 'POST', headers: json, body: JSON.stringify({parts})});
  const watch = `${base}/videos/${begun.videoId}/watch`;
  const playing = await (await fetch(watch, {method: 'POST', headers: json})).json();
  const piece = await fetch(playing.url, {headers: {Range: 'bytes=0-2'}});
  return [
    done.status, piece.status, await piece.text(), piece.headers.get('Content-Range'),
  ];
}
"""
FOLLOWED = """
([base, video]) => new Promise((resolve, reject) => {
  const live = new EventSource(`${base}/videos/${video}/events`);
  live.addEventListener('likes', event => { live.close(); resolve(JSON.parse(event.data)); });
  live.onerror = () => reject('the stream was refused');
})
"""
BLOCKED = """
base => fetch(`${base}/videos`).then(() => 'read it', error => error.name)
"""


class Blank(BaseHTTPRequestHandler):
    """A page without anything: scripts of tests run in it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><link rel=icon href=data:,><title>Afar</title>")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The origin of a site with one empty page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_page() as page:
        page.set_default_timeout(1000 * DEADLINE_SECONDS)
        yield page


def test_a_page_of_a_named_origin_does_all_that_clients_do(
    make_program: Callable[..., Program], site: str, page: Page
) -> None:
    program = make_program(CORS_ORIGINS=site).start()
    video, token = upload(program.client("owner")), program.token("ann")
    page.goto(f"{site}/")
    told = page.evaluate(READABLE, [program.url, token, video])
    assert (told["liked"], told["seen"]) == (1, 1)
    assert told["etag"].startswith('W/"')
    assert told["comment"] == [201, "mine"]
    assert told["refused"] == [422, "invalid", True]
    assert told["unknown"] == [401, "Bearer"]
    uploaded = page.evaluate(UPLOADED, [program.url, token])
    assert uploaded == [200, 206, "ten", "bytes 0-2/10"]
    assert page.evaluate(FOLLOWED, [program.url, video]) == {"likesCount": 1}


def test_a_page_of_another_origin_reads_nothing(
    make_program: Callable[..., Program], site: str, page: Page
) -> None:
    program = make_program(CORS_ORIGINS="https://app.example.org").start()
    page.goto(f"{site}/")
    assert page.evaluate(BLOCKED, program.url) == "TypeError"


ORIGIN = {"Origin": "https://app.example.org"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "PUT"}


def readable(answer: httpx.Response) -> bool:
    told = answer.headers
    exposed = {name.lower() for name in told["access-control-expose-headers"].split(", ")}
    own = {"x-request-id", "retry-after", "ratelimit", "ratelimit-policy"} & set(told)
    return told["access-control-allow-origin"] == ORIGIN["Origin"] and own <= exposed


def test_refusals_can_be_read_and_preflights_are_not_limited(
    make_program: Callable[..., Program],
) -> None:
    # Two commands, and the next one in a hundred minutes.
    once = {"RATE_LIMITS": "on", "RATE_LIMIT_WRITE": "0.01/2"}
    cors = {"CORS_ORIGINS": ORIGIN["Origin"], "BODY_LIMIT_BYTES": "1024"}
    program = make_program(**cors, **once).start()
    ann = program.client("ann")
    ann.headers.update(ORIGIN)
    large = ann.post("/videos/0d6c9f5e-6a51-4f8e-9b5a-5f0a86f0c0de/comments", content=b"x" * 2000)
    path = "/videos/0d6c9f5e-6a51-4f8e-9b5a-5f0a86f0c0de/like"
    limited = [ann.post(path) for _ in range(4)][-1]
    refused = plain.get(f"{program.url}/videos", headers={**ORIGIN, "Authorization": "Bearer no"})
    answers = (large, limited, refused)
    assert [each.status_code for each in answers] == [413, 429, 401]
    assert all(map(readable, answers))
    assert "retry-after" in limited.headers
    for _ in range(20):
        asked = ann.options(path, headers=PREFLIGHT)
        assert asked.status_code == 204
        assert "ratelimit" not in asked.headers
