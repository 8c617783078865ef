"""Whatever a client sends, the answer is the documented problem, never a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.load import Request, together
from tests.e2e.program import Program
from tests.e2e.videos import problem, read
from tests.real_inputs import RealInput, each

UNKNOWN = "00000000-0000-4000-8000-000000000000"
BODY_LIMIT = 1024 * 1024


@pytest.fixture(scope="module")
def commented(server: Program, film: str) -> str:
    """The id of a comment of Alice's."""
    posted = server.client("alice").post(f"/videos/{film}/comments", json={"content": "first"})
    return str(read(posted)["commentId"])


BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("PATCH", "/videos/{id}"): {"title": "x"},
    ("POST", "/videos/{id}/comments"): {"content": "x"},
    ("POST", "/videos/{id}/watch"): {},
    ("POST", "/videos/{id}/watch-time"): {"sessionId": UNKNOWN, "seconds": 1},
    ("POST", "/videos/{id}/share"): {"channel": "x"},
    ("PATCH", "/comments/{id}"): {"content": "x"},
    ("POST", "/uploads/{id}/part-urls"): {"numbers": [1]},
}


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
    body = BODIES.get((method, path))
    options: dict[str, Any] = {} if body is None else {"json": body}
    problem(alice.request(method, path.format(id=UNKNOWN), **options), 404, "not-found")
    for wrong in ("not-a-uuid", "1", UNKNOWN + "0", "%00", "%FF"):
        problem(alice.request(method, path.format(id=wrong), **options), 422, "invalid")


def test_an_id_of_something_else(alice: httpx.Client, film: str) -> None:
    comment = read(alice.post(f"/videos/{film}/comments", json={"content": "x"}))["commentId"]
    problem(alice.post(f"/videos/{comment}/like"), 404)
    problem(alice.delete(f"/comments/{film}"), 404)
    problem(alice.delete(f"/uploads/{comment}"), 404)
    assert alice.get(f"/videos/{film}").status_code == 200


@pytest.mark.parametrize("path", ["/video", "/docs/../etc", "/%2e%2e/%2e%2e/etc"])
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


@pytest.mark.parametrize(
    "content",
    ["", " \n\t ", "x" * 10_001, "\x00", "before\x00after", None, 1, ["x"], {"text": "x"}, True],
    ids=repr,
)
def test_a_comment_that_is_none(alice: httpx.Client, film: str, content: object) -> None:
    found = problem(alice.post(f"/videos/{film}/comments", json={"content": content}), 422)
    assert "content" in found["detail"]
    assert len(found["detail"]) < 500


@pytest.mark.parametrize("content", ["🎬" * 10_000, "\u202e\ufeff\u0007x", "\\u0000", "'; --"])
def test_a_comment_that_is_odd_but_one(alice: httpx.Client, film: str, content: str) -> None:
    posted = alice.post(f"/videos/{film}/comments", json={"content": content})
    assert posted.status_code == 201
    headers = {"Backlot-Min-Position": posted.headers["Backlot-Position"]}
    listed = read(alice.get(f"/videos/{film}/comments", params={"limit": 1}, headers=headers))
    assert listed["items"][0]["content"] == content


@each("texts", always=4)
def test_a_comment_has_to_show_something(
    alice: httpx.Client, film: str, commented: str, real: RealInput
) -> None:
    body = {"content": real.text}
    posted = alice.post(f"/videos/{film}/comments", json=body)
    edited = alice.patch(f"/comments/{commented}", json=body)
    if real.right == "nothing":
        assert "content" in problem(posted, 422, "invalid")["detail"]
        assert "content" in problem(edited, 422, "invalid")["detail"]
    else:
        assert (posted.status_code, posted.json()["content"]) == (201, real.text)
        assert (edited.status_code, edited.json()["content"]) == (200, real.text)


@each("texts", "nothing", always=4)
def test_details_that_show_nothing(
    alice: httpx.Client, server: Program, film: str, real: RealInput
) -> None:
    upload = {"title": "T", "filename": "f.mp4", "contentType": "video/mp4", "sizeBytes": 10}
    for field in ("title", "category", "filename"):
        problem(alice.post("/uploads", json={**upload, field: real.text}), 422, "invalid")
    for field in ("title", "category"):
        problem(alice.patch(f"/videos/{film}", json={field: real.text}), 422, "invalid")
    problem(alice.post(f"/videos/{film}/share", json={"channel": real.text}), 422, "invalid")
    root = server.client("root", admin=True)
    problem(root.post("/projections/likes/resume", json={"reason": real.text}), 422, "invalid")


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
        ("POST", "watch-time", {"sessionId": UNKNOWN, "seconds": 1, "position": -0.5}),
        ("POST", "watch-time", {"sessionId": UNKNOWN, "seconds": 1, "position": 86_401}),
        ("POST", "watch-time", {"sessionId": UNKNOWN, "seconds": 1, "position": "1"}),
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
