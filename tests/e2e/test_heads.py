"""Every GET answers HEAD (RFC 9110, 9.3.2): the same status and headers, and no body."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import MP4, problem, read
from tests.e2e.wire import Wire

UNKNOWN = "00000000-0000-4000-8000-000000000000"
BESIDE_THE_DOCUMENT = ("/docs", "/openapi.json", "/docs/static/swagger-ui.css", "/nowhere")
# They differ from one answer to the next, or belong to the body's way over the wire.
OWN = {"date", "x-request-id", "transfer-encoding"}
# Their bodies tell of the moment, so not even two GETs are of one length, or have one ETag.
OF_THE_MOMENT = (
    *("/metrics", "/readyz", "/projections", "/analytics", "/recommendations", "/audit"),
    "/admin/overview",
)
STREAM = "/videos/{video_id}/events"


def paths(document: dict[str, Any]) -> list[str]:
    """Every path of the document that has a GET."""
    return [path for path, operations in document["paths"].items() if "get" in operations]


def told(answer: httpx.Response) -> tuple[int, dict[str, str]]:
    """The status and headers by which a HEAD and a GET are compared."""
    headers = {k: v for k, v in answer.headers.items() if k not in OWN}
    if answer.url.path.startswith(OF_THE_MOMENT):
        headers.pop("content-length", None)
        headers |= dict.fromkeys({"etag", "backlot-position"} & headers.keys(), "of the moment")
    return answer.status_code, headers


def compare(client: httpx.Client, path: str, **options: Any) -> None:
    head, get = client.head(path, **options), client.get(path, **options)
    assert told(head) == told(get), path
    assert head.content == b""
    assert head.headers["X-Request-Id"]


def test_every_get_answers_head(server: Program, film: str) -> None:
    document = plain.get(f"{server.url}/openapi.json").json()
    found = paths(document)
    assert {"/healthz", "/videos/{video_id}/like", "/objects/{key}", STREAM} <= set(found)
    for caller in (server.client("root", admin=True), server.client("alice"), server.client()):
        for path in (*found, *BESIDE_THE_DOCUMENT):
            for video in (UNKNOWN, "nonsense") if path == STREAM else (film, UNKNOWN, "nonsense"):
                compare(caller, path.replace("{name}", "likes").replace("{video_id}", video))
        assert caller.head("/healthz").status_code == 200


def test_what_was_not_modified_is_so_for_head(nobody: httpx.Client) -> None:
    path = "/analytics/trending?category=nobody-has-this"
    known = {"If-None-Match": nobody.get(path).headers["ETag"]}
    assert nobody.head(path, headers=known).status_code == 304
    compare(nobody, path, headers=known)
    compare(nobody, path, headers={"If-None-Match": '"other"'})


def test_a_film_is_looked_at(alice: httpx.Client, video: str) -> None:
    url = read(alice.post(f"/videos/{video}/watch"))["url"]
    with plain.client() as player:
        compare(player, url)
        whole = player.head(url)
        assert whole.headers["Content-Length"] == str(len(MP4))
        compare(player, url, headers={"If-None-Match": whole.headers["ETag"]})
        # Ranges are for GET: a HEAD is told of the whole (RFC 9110, 14.2).
        for asked in ("bytes=0-9", f"bytes={len(MP4)}-"):
            assert told(player.head(url, headers={"Range": asked})) == told(whole)
        assert player.head(url.replace("signature=", "signature=0")).status_code == 403
        compare(player, url.replace("signature=", "signature=0"))


def test_head_of_live_counts_ends_and_leaves_nobody_watching(
    server: Program, nobody: httpx.Client, video: str
) -> None:
    def watchers() -> str:
        lines = nobody.get("/metrics").text.splitlines()
        return next(line for line in lines if line.startswith("backlot_live_watchers "))

    before = watchers()
    for _ in range(20):
        head = nobody.head(f"/videos/{video}/events")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Type"].startswith("text/event-stream")
        assert head.headers["Cache-Control"] == "no-store"
    assert watchers() == before


def test_no_byte_of_a_body_is_on_the_wire(server: Program, film: str) -> None:
    for path in (f"/videos/{film}", f"/videos/{UNKNOWN}", "/healthz", f"/videos/{film}/like"):
        with Wire(server) as wire:
            wire.send([f"HEAD {path} HTTP/1.1", "Connection: close"])
            received = wire.all_bytes()
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        assert body == b""


def test_a_path_without_get_has_no_head(nobody: httpx.Client, film: str) -> None:
    for path in ("/uploads", f"/videos/{film}/watch"):
        answer = nobody.head(path)
        assert (answer.status_code, answer.content) == (405, b"")
        assert "HEAD" not in answer.headers["Allow"]
    refused = nobody.request("PROPFIND", "/videos")
    problem(refused, 405, "method-not-allowed")
    assert {"GET", "HEAD"} <= set(refused.headers["Allow"].split(", "))


def test_heads_and_gets_of_one_connection(server: Program, film: str) -> None:
    with plain.client(base_url=server.url) as client:
        for _ in range(20):
            assert client.head(f"/videos/{film}").content == b""
            assert read(client.get(f"/videos/{film}"))["videoId"] == film


@pytest.mark.parametrize("path", ["/healthz", "/videos"])
def test_heads_are_measured_as_such(server: Program, nobody: httpx.Client, path: str) -> None:
    nobody.head(path)
    lines = nobody.get("/metrics").text.splitlines()
    assert any('method="HEAD"' in line and f'route="{path}"' in line for line in lines)
