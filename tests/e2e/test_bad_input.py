"""Whatever a client sends, the answer is the documented problem, never a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.load import Request, together
from tests.e2e.program import Program
from tests.e2e.videos import MP4, everything, pieces, problem, read, see, send_parts, start, upload

UNKNOWN = "00000000-0000-4000-8000-000000000000"
BODY_LIMIT = 256 * 1024


@pytest.fixture(scope="module")
def film(server: Program) -> str:
    """A video that these tests do not change."""
    return upload(server.client("alice"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/videos/{id}"),
        ("GET", "/videos/{id}/like"),
        ("GET", "/videos/{id}/comments"),
        ("GET", "/uploads/{id}"),
        ("PATCH", "/videos/{id}"),
        ("DELETE", "/videos/{id}"),
        ("POST", "/videos/{id}/like"),
        ("PUT", "/videos/{id}/like"),
        ("DELETE", "/videos/{id}/like"),
        ("POST", "/videos/{id}/comments"),
        ("POST", "/videos/{id}/watch"),
        ("POST", "/videos/{id}/watch-time"),
        ("POST", "/videos/{id}/share"),
        ("PATCH", "/comments/{id}"),
        ("DELETE", "/comments/{id}"),
        ("POST", "/uploads/{id}/part-urls"),
        ("POST", "/uploads/{id}/complete"),
        ("DELETE", "/uploads/{id}"),
    ],
)
def test_an_id_that_nobody_has(alice: httpx.Client, method: str, path: str) -> None:
    body = {"content": "x", "title": "x", "numbers": [1], "sessionId": UNKNOWN, "seconds": 1}
    options: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": body}
    if path.endswith("/complete"):
        options = {}
    problem(alice.request(method, path.format(id=UNKNOWN), **options), 404, "not-found")
    for wrong in ("not-a-uuid", "1", UNKNOWN + "0", "%00", "%FF"):
        problem(alice.request(method, path.format(id=wrong), **options), 422, "invalid")


def test_an_id_of_something_else(alice: httpx.Client, film: str) -> None:
    comment = read(alice.post(f"/videos/{film}/comments", json={"content": "x"}))["commentId"]
    problem(alice.post(f"/videos/{comment}/like"), 404)
    problem(alice.delete(f"/comments/{film}"), 404)
    problem(alice.delete(f"/uploads/{comment}"), 404)
    assert alice.get(f"/videos/{film}").status_code == 200


@pytest.mark.parametrize("path", ["/", "/video", "/docs/../etc", "/%2e%2e/%2e%2e/etc"])
def test_a_path_that_is_not_there(nobody: httpx.Client, path: str) -> None:
    problem(nobody.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/videos", "GET"),
        ("PATCH", f"/videos/{UNKNOWN}/like", "DELETE, GET, POST, PUT"),
        ("DELETE", "/uploads", "POST"),
        ("PROPFIND", "/videos", "GET"),
    ],
)
def test_a_method_that_a_path_has_not(
    nobody: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = nobody.request(method, path)
    problem(answer, 405, "method-not-allowed")
    assert set(allowed.split(", ")) <= set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize(
    "path", ["/objects/x", "/objects/..%2f..%2fjwt-secret", "/objects/%00", "/objects//etc/passwd"]
)
def test_objects_are_reached_with_a_signed_url_only(
    nobody: httpx.Client, server: Program, path: str
) -> None:
    for method in ("GET", "HEAD", "PUT"):
        answer = nobody.request(method, path)
        assert answer.status_code == 403
        assert server.token("alice") not in answer.text
    problem(nobody.get(path), 403, "url-signature-wrong")


# Comments


@pytest.mark.parametrize(
    "content",
    ["", " \n\t ", "x" * 10_001, "\x00", "before\x00after", None, 1, ["x"], {"text": "x"}, True],
    ids=repr,
)
def test_a_comment_that_is_none(alice: httpx.Client, film: str, content: object) -> None:
    found = problem(alice.post(f"/videos/{film}/comments", json={"content": content}), 422)
    assert "content" in found["detail"]
    assert len(found["detail"]) < 500


@pytest.mark.parametrize("content", ["🎬" * 10_000, "\u202e\ufeff\u0007", "\\u0000", "'; --"])
def test_a_comment_that_is_odd_but_one(alice: httpx.Client, film: str, content: str) -> None:
    posted = alice.post(f"/videos/{film}/comments", json={"content": content})
    assert posted.status_code == 201
    headers = {"Backlot-Min-Position": posted.headers["Backlot-Position"]}
    listed = read(alice.get(f"/videos/{film}/comments", params={"limit": 1}, headers=headers))
    assert listed["items"][0]["content"] == content


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"{}", 422),
        (b"{", 400),
        (b'{"content": "cut', 400),
        (b'{"content": "x"} and more', 400),
        (b'{"content": "\xff\xfe"}', 400),
        (b'{"content": "\xed\xa0\x80"}', 422),
        (b"\x00", 400),
        (b"\xef\xbb\xbf", 400),
        (b'{"content": "\\ud800"}', 422),
        (b'{"content": "\\udc00 and more"}', 422),
        (b"[" * 100_000, 400),
        (b'{"a":' * 40_000, 400),
        (b'{"content": ' + b"[" * 50 + b"]" * 50 + b"}", 422),
        (b'{"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"content": ' + b"9" * 5_000 + b"}", 400),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else str(value),
)
def test_a_body_that_is_not_what_it_should_be(
    alice: httpx.Client, film: str, body: bytes, status: int
) -> None:
    for method, path in (("POST", f"/videos/{film}/comments"), ("POST", "/uploads")):
        answer = alice.request(
            method, path, content=body, headers={"Content-Type": "application/json"}
        )
        problem(answer, status)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "nonsense",
    ],
)
def test_a_wrong_content_type(alice: httpx.Client, film: str, content_type: str) -> None:
    answer = alice.post(
        f"/videos/{film}/comments",
        content=b'{"content": "x"}',
        headers={"Content-Type": content_type},
    )
    problem(answer, 422)


def test_a_body_above_the_limit(alice: httpx.Client, film: str) -> None:
    body = b'{"content": "' + b"x" * BODY_LIMIT + b'"}'

    def chunked() -> Iterator[bytes]:
        for at in range(0, len(body), 8192):
            yield body[at : at + 8192]

    for path in (f"/videos/{film}/comments", f"/uploads/{UNKNOWN}/complete", "/uploads"):
        problem(alice.post(path, content=body), 413, "too-large")
        problem(alice.post(path, content=chunked()), 413, "too-large")


# Uploads


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("sizeBytes", size) for size in (-1, 0, 2**63, 10**400, 1.5, "10", True, None)],
        *[("title", title) for title in ("", "   ", "x" * 201, "\x00", None, 7)],
        *[("filename", name) for name in ("", " ", "x" * 256, "a\x00b")],
        *[("contentType", kind) for kind in ("", "text/html", "video/", "video/mp4\r\nX: y")],
        *[("category", category) for category in ("", " ", "x" * 51, "\x00")],
        *[("description", description) for description in ("x" * 5_001, "\x00", 3)],
    ],
    ids=lambda value: repr(value)[:24],
)
def test_an_upload_of_nothing_sensible(alice: httpx.Client, field: str, value: object) -> None:
    body = {"title": "T", "filename": "f.mp4", "contentType": "video/mp4", "sizeBytes": 10}
    found = problem(alice.post("/uploads", json={**body, field: value}), 422)
    assert field in found["detail"]


@pytest.mark.parametrize(
    "numbers",
    [[], [0], [-1], [4], [10_001], [1, 2, 3, 4], [2**70], ["1"], [1.5], [None], "1", None],
)
def test_part_numbers_out_of_range(alice: httpx.Client, numbers: object) -> None:
    path = f"/uploads/{start(alice)['uploadId']}"
    problem(alice.post(f"{path}/part-urls", json={"numbers": numbers}), 422)


def test_parts_that_are_not_those_that_arrived(alice: httpx.Client) -> None:
    started = start(alice)
    path = f"/uploads/{started['uploadId']}/complete"
    parts = send_parts(started)

    def named(*etags: str) -> httpx.Response:
        listed = [{"number": number, "etag": etag} for number, etag in enumerate(etags, start=1)]
        return alice.post(path, json={"parts": listed})

    etags = [part["etag"] for part in parts]
    assert problem(named(etags[0], "0" * 32, etags[2]), 422, "parts-mismatch")["wrong"] == [2]
    assert problem(named(etags[0], etags[1]), 422, "parts-mismatch")["missing"] == [3]
    assert problem(named(*etags, etags[0]), 422, "parts-mismatch")["wrong"] == [4]
    swapped = problem(named(etags[1], etags[0], etags[2]), 422, "parts-mismatch")
    assert swapped["wrong"] == [1, 2]
    for junk in ("", "x" * 257, "\x00", "'; --", "🎬"):
        problem(named(etags[0], junk, etags[2]), 422)
    twice = [parts[0], parts[0], parts[1], parts[2]]
    problem(alice.post(path, json={"parts": twice}), 422)
    for odd in ({"number": 0, "etag": etags[0]}, {"number": "1", "etag": etags[0]}, {}, None):
        problem(alice.post(path, json={"parts": [odd]}), 422)
    assert read(alice.post(path, json={"parts": parts}))["status"] == "completed"


def test_a_part_that_is_not_what_was_signed(alice: httpx.Client) -> None:
    started = start(alice)
    first, second = started["parts"][:2]
    piece = pieces(MP4, started)[0]
    with plain.client() as sender:
        problem(sender.put(first["url"], content=piece[:-1]), 422, "part-too-short")
        problem(sender.put(first["url"], content=piece + b"x"), 413, "part-too-large")
        problem(sender.put(first["url"], content=iter([piece, b"x"])), 413, "part-too-large")
        problem(sender.put(first["url"], content=iter([piece[:9]])), 422, "part-too-short")
        wrong = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
        problem(sender.put(first["url"], content=piece, headers=wrong), 422, "checksum-mismatch")
        problem(sender.put(first["url"], content=piece, headers={"Content-MD5": "?"}), 400)
        for old, new in (
            ("partNumber=1", "partNumber=2"),
            ("size=16384", "size=16385"),
            (started["uploadId"], UNKNOWN),
            ("signature=", "signature=0"),
            ("expires=", "expires=9"),
        ):
            assert old in first["url"]
            tampered = first["url"].replace(old, new)
            problem(sender.put(tampered, content=piece), 403, "url-signature-wrong")
        problem(sender.put(first["url"].replace("expires=", "expires=x"), content=piece), 422)
        problem(sender.get(second["url"]), 403)
    assert read(alice.get(f"/uploads/{started['uploadId']}"))["parts"] == []


def test_an_upload_of_somebody_else(alice: httpx.Client, bob: httpx.Client) -> None:
    started = start(alice)
    path = f"/uploads/{started['uploadId']}"
    parts = send_parts(started)
    assert read(alice.get(path))["status"] == "started"
    problem(bob.get(path), 403, "forbidden")
    problem(bob.post(f"{path}/part-urls", json={"numbers": [1]}), 403, "forbidden")
    problem(bob.post(f"{path}/complete", json={"parts": parts}), 403, "forbidden")
    problem(bob.delete(path), 403, "forbidden")
    assert read(alice.post(f"{path}/complete", json={"parts": parts}))["status"] == "completed"
    problem(alice.delete(path), 409, "conflict")


# Queries


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "101"},
        {"limit": "many"},
        {"limit": "9" * 400},
        {"cursor": ""},
        {"cursor": "nonsense"},
        {"cursor": "🎬"},
        {"cursor": "x" * 5_000},
        {"cursor": "bGlrZWQ6MQ"},
        {"cursor": "dmlkZW9zOi0x"},
        {"cursor": "dmlkZW9zOjk5OTk5OTk5OTk5OTk5OTk5OTk5"},
        {"cursor": "bGlrZWQ6MTE", "limit": "x"},
        {"owner": ""},
        {"owner": "x" * 129},
        {"owner": "\x00"},
        {"category": "\x00"},
        {"category": "x" * 51},
    ],
    ids=lambda params: repr(params)[:40],
)
def test_a_list_asked_for_wrongly(nobody: httpx.Client, params: dict[str, str]) -> None:
    problem(nobody.get("/videos", params=params), 422)


def test_a_cursor_of_another_list(server: Program, alice: httpx.Client, film: str) -> None:
    for _ in range(2):
        see(alice, alice.post(f"/videos/{film}/comments", json={"content": "x"}))
    comments = everything(alice, f"/videos/{film}/comments")
    assert len(comments) >= 2
    page = read(alice.get(f"/videos/{film}/comments", params={"limit": 1}))
    for path in ("/videos", "/videos/liked"):
        answer = alice.get(path, params={"cursor": page["nextCursor"]})
        problem(answer, 422, "cursor-invalid")


def test_bytes_in_a_query_that_are_no_text(nobody: httpx.Client) -> None:
    answer = nobody.get("/videos?owner=%ff%fe&category=%c3%28")
    assert answer.status_code == 200
    assert read(answer)["items"] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Backlot-Min-Position", ""),
        ("Backlot-Min-Position", "nonsense"),
        ("Backlot-Min-Position", "\xe9"),
        ("Backlot-Min-Position", "x" * 5_000),
        ("Backlot-Min-Position", "YmFja2xvdDotMQ"),
        ("Backlot-Min-Position", "b3RoZXI6MQ"),
        ("Backlot-Min-Position", "YmFja2xvdDo5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"),
        ("Backlot-Timeout-Ms", "-1"),
        ("Backlot-Timeout-Ms", "soon"),
        ("Backlot-Timeout-Ms", "1e3"),
    ],
)
def test_a_wrong_freshness(nobody: httpx.Client, name: str, text: str) -> None:
    problem(nobody.get("/videos", headers={name.encode(): text.encode("latin-1")}), 422)


# What commands carry beside their bodies


@pytest.mark.parametrize("key", ["", "x" * 256, "\xe9", "a\tb"])
def test_a_wrong_idempotency_key(alice: httpx.Client, film: str, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode("latin-1")}
    path = f"/videos/{film}/comments"
    problem(alice.post(path, json={"content": "x"}, headers=headers), 422, "invalid")


@pytest.mark.parametrize(
    "seconds", ["-1", "0", "NaN", "Infinity", "1e999", "86401", '"1"', "true", "null", "[]"]
)
def test_an_impossible_watch_time(alice: httpx.Client, film: str, seconds: str) -> None:
    body = f'{{"sessionId": "{uuid4()}", "seconds": {seconds}}}'
    answer = alice.post(
        f"/videos/{film}/watch-time",
        content=body,
        headers={"Content-Type": "application/json"},
    )
    problem(answer, 422)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "watch-time", {"sessionId": "x", "seconds": 1}),
        ("POST", "watch-time", {"seconds": 1}),
        ("POST", "share", {"channel": ""}),
        ("POST", "share", {"channel": "x" * 51}),
        ("POST", "share", {"channel": "\x00"}),
        ("PATCH", "", {"title": ""}),
        ("PATCH", "", {"title": " "}),
        ("PATCH", "", {"title": "\x00"}),
        ("PATCH", "", {"category": ""}),
        ("PATCH", "", {"description": "x" * 5_001}),
    ],
)
def test_a_wrong_detail(
    alice: httpx.Client, film: str, method: str, path: str, body: dict[str, object]
) -> None:
    problem(alice.request(method, f"/videos/{film}/{path}".rstrip("/"), json=body), 422)


def test_what_one_client_sends_wrongly_fails_nobody_else(server: Program, film: str) -> None:
    share, watch = f"/videos/{film}/share", f"/videos/{film}/watch"
    bad = [Request("vandal", "POST", share, {"channel": "a\x00b"}) for _ in range(40)]
    good = [Request(f"guest-{number}", "POST", watch) for number in range(40)]
    mixed = [request for pair in zip(bad, good, strict=True) for request in pair]
    answers = together(server, mixed, connections=80)
    assert {answer.status_code for answer in answers[0::2]} == {422}
    assert {answer.status_code for answer in answers[1::2]} == {200}
