"""Tokens that prove nothing, and requests that are hardly HTTP."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
import jwt
import pytest

from infra.data_folder import secret_path
from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import problem, read
from tests.e2e.wire import Wire
from tests.real_inputs import RealInput, each
from tests.support import claims_at


def claims(**changes: Any) -> dict[str, Any]:
    made = {"sub": "mallory", "exp": int(time.time()) + 600, "roles": ["admin"], **changes}
    return {name: value for name, value in made.items() if value is not ...}


def signed(server: Program, **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret_path(server.data).read_text().strip(), "HS256")


def unsigned(algorithm: str) -> str:
    parts = ({"alg": algorithm, "typ": "JWT"}, claims())
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*encoded, b""]).decode()


def tampered(server: Program) -> str:
    head, _, signature = signed(server).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(sub="root")).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


def wrong_tokens(server: Program) -> dict[str, str]:
    """Authorization headers that must not let anybody in."""
    return {
        "no scheme": signed(server),
        "another scheme": f"Basic {signed(server)}",
        "no token": "Bearer",
        "nonsense": "Bearer nonsense",
        "dots": "Bearer ...",
        "not ASCII": "Bearer \xe9\xe9.\xe9.\xe9",
        "another secret": f"Bearer {jwt.encode(claims(), 'x' * 40, 'HS256')}",
        "alg none": f"Bearer {unsigned('none')}",
        "alg HS256 unsigned": f"Bearer {unsigned('HS256')}",
        "alg HS512": f"Bearer {jwt.encode(claims(), _secret(server), 'HS512')}",
        "expired": f"Bearer {signed(server, exp=int(time.time()) - 1)}",
        "no exp": f"Bearer {signed(server, exp=...)}",
        "exp as text": f"Bearer {signed(server, exp='tomorrow')}",
        "not yet": f"Bearer {signed(server, nbf=int(time.time()) + 600)}",
        "no sub": f"Bearer {signed(server, sub=...)}",
        "empty sub": f"Bearer {signed(server, sub='')}",
        "long sub": f"Bearer {signed(server, sub='x' * 129)}",
        "NUL in sub": f"Bearer {signed(server, sub='a' + chr(0))}",
        "roles as text": f"Bearer {signed(server, roles='admin')}",
        "tampered": f"Bearer {tampered(server)}",
        "huge": f"Bearer {'x' * 9_000}.x.x",
    }


@each("token_times")
def test_a_token_is_valid_by_its_times(
    server: Program, nobody: httpx.Client, real: RealInput
) -> None:
    token = signed(server, **claims_at(real.text, time.time()))
    answer = nobody.get("/videos/liked", headers={"Authorization": f"Bearer {token}"})
    if real.right == "accepted":
        assert read(answer)["items"] == []
    else:
        problem(answer, 401, "unauthenticated")


@each("user_ids")
def test_a_user_id_can_be_seen_and_misleads_nobody(
    server: Program, nobody: httpx.Client, film: str, real: RealInput
) -> None:
    headers = {"Authorization": f"Bearer {signed(server, sub=real.text)}"}
    posted = nobody.post(f"/videos/{film}/comments", json={"content": "x"}, headers=headers)
    if real.right == "accepted":
        assert read(posted)["userId"] == real.text
    else:
        problem(posted, 401, "unauthenticated")


FILM = {"title": "x", "filename": "x", "contentType": "video/mp4", "sizeBytes": 1}


def _secret(server: Program) -> str:
    return secret_path(server.data).read_text().strip()


def test_no_wrong_token_lets_anybody_in(server: Program, nobody: httpx.Client, film: str) -> None:
    for name, header in wrong_tokens(server).items():
        headers = {b"Authorization": header.encode("latin-1")}
        for method, path in (
            ("POST", f"/videos/{film}/like"),
            ("POST", "/uploads"),
            ("GET", "/videos/liked"),
            ("GET", f"/videos/{film}"),
            ("GET", "/projections"),
        ):
            body = FILM if path == "/uploads" else None
            answer = nobody.request(method, path, headers=headers, json=body)
            assert answer.status_code == 401, f"{name}: {method} {path}: {answer.text}"
            problem(answer, 401, "unauthenticated")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            if "." in header:
                assert header.rpartition(" ")[2] not in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/uploads"),
        ("POST", "/uploads/{id}/complete"),
        ("POST", "/uploads/{id}/part-urls"),
        ("GET", "/uploads/{id}"),
        ("DELETE", "/uploads/{id}"),
        ("PATCH", "/videos/{id}"),
        ("DELETE", "/videos/{id}"),
        ("POST", "/videos/{id}/watch"),
        ("POST", "/videos/{id}/watch-time"),
        ("POST", "/videos/{id}/share"),
        ("POST", "/videos/{id}/like"),
        ("PUT", "/videos/{id}/like"),
        ("DELETE", "/videos/{id}/like"),
        ("POST", "/videos/{id}/comments"),
        ("PATCH", "/comments/{id}"),
        ("DELETE", "/comments/{id}"),
        ("GET", "/videos/liked"),
        ("GET", "/projections"),
    ],
)
def test_nobody_is_let_in_without_a_token(
    nobody: httpx.Client, film: str, method: str, path: str
) -> None:
    body: dict[str, Any] = {
        **FILM,
        "content": "x",
        "numbers": [1],
        "parts": [],
        "sessionId": film,
        "seconds": 1,
    }
    options: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": body}
    problem(nobody.request(method, path.format(id=film), **options), 401, "unauthenticated")


def test_operators_only(alice: httpx.Client, server: Program) -> None:
    problem(alice.get("/projections"), 403, "forbidden")
    assert read(server.client("root", admin=True).get("/projections"))["items"]


def test_a_body_that_ends_too_soon_records_nothing(server: Program, film: str) -> None:
    token = server.token("cut-off")
    with Wire(server) as wire:
        wire.send(
            [
                f"POST /videos/{film}/comments HTTP/1.1",
                f"Authorization: Bearer {token}",
                "Content-Type: application/json",
                "Content-Length: 100",
            ],
            b'{"content": "only the beginning of',
        )
        wire.hang_up()
        assert wire.is_silent()
    reader = server.client("cut-off")
    listed = read(reader.get(f"/videos/{film}/comments"))["items"]
    assert "cut-off" not in [item["userId"] for item in listed]


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 2", "Content-Length: 3"],
        ["Content-Length: -1"],
        ["Content-Length: ten"],
        ["Content-Length: 99999999999999999999999999"],
        ["Transfer-Encoding: chunked", "Content-Length: 2"],
        ["Transfer-Encoding: nonsense"],
        ["No colon here"],
        ["Bad Name: x"],
    ],
)
def test_hardly_http(server: Program, film: str, headers: list[str]) -> None:
    with Wire(server) as wire:
        wire.send(
            [
                f"POST /videos/{film}/comments HTTP/1.1",
                f"Authorization: Bearer {server.token('odd')}",
                *headers,
            ],
            b"{}",
        )
        status, _, _ = wire.answer()
    assert 400 <= status < 500
    assert server.process.poll() is None


@pytest.mark.parametrize(
    ("twice", "status"),
    [
        (["Authorization: Bearer {token}", "Authorization: Bearer {other}"], 200),
        (["Authorization: Bearer {token}", "Authorization: Bearer nonsense"], 200),
        (["Authorization: Bearer nonsense", "Authorization: Bearer {token}"], 401),
        (["Authorization: Bearer {token}", "X-Request-Id: a", "X-Request-Id: b"], 200),
        (["Authorization: Bearer {token}", "Idempotency-Key: a", "Idempotency-Key: b"], 200),
        (["Authorization: Bearer {token}", "Cookie: a", "Cookie: b", "Expect: x"], 200),
    ],
)
def test_headers_that_come_twice(server: Program, film: str, twice: list[str], status: int) -> None:
    tokens = {"token": server.token("double"), "other": server.token("other")}
    lines = [line.format(**tokens) for line in twice]
    with Wire(server) as wire:
        wire.send([f"PUT /videos/{film}/like HTTP/1.1", *lines])
        answered, headers, body = wire.answer()
    assert answered == status, body
    assert headers["x-request-id"]


def test_two_positions(server: Program) -> None:
    with Wire(server) as wire:
        wire.send(["GET /videos HTTP/1.1", "Backlot-Min-Position: x", "Backlot-Min-Position: y"])
        status, headers, body = wire.answer()
    assert (status, headers["content-type"]) == (422, "application/problem+json")
    assert json.loads(body)["requestId"] == headers["x-request-id"]


@pytest.mark.parametrize("request_id", ["", "x" * 129, "\xe9", "a\tb"])
def test_a_request_id_that_cannot_be_taken(server: Program, request_id: str) -> None:
    with Wire(server) as wire:
        wire.send(["GET /videos HTTP/1.1", f"X-Request-Id: {request_id}"])
        status, headers, _ = wire.answer()
    assert status == 200
    assert headers["x-request-id"] not in ("", request_id)


def test_a_line_or_a_header_that_never_ends(server: Program) -> None:
    for head in (
        ["GET /videos?owner=" + "x" * 200_000 + " HTTP/1.1"],
        ["GET /videos HTTP/1.1", "X-Long: " + "x" * 200_000],
    ):
        with Wire(server) as wire:
            try:
                wire.send(head)
                status, _, _ = wire.answer()
            except ConnectionError:
                continue
            assert status < 500
    assert plain.get(f"{server.url}/healthz").status_code == 200
