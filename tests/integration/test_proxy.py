"""nginx with the real configuration, before servers that tell what has reached them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest

from tests.nginx import Proxy, running_nginx
from tests.support import DEADLINE_SECONDS, unused_port

PROBLEM = "application/problem+json"
SIGNED = f"X-Amz-Signature={'0123456789abcdef' * 4}"


class Told(BaseHTTPRequestHandler):
    """Answers with what was asked, and by whom it is answered."""

    protocol_version = "HTTP/1.1"
    go_on, arrived = Event(), Event()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        if self.path == "/stream":
            return self.stream()
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(min(size, 4))
        self.arrived.set()
        body += self.rfile.read(size - len(body))
        told = {
            "by": cast("ThreadingHTTPServer", self.server).server_port,
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): text for name, text in self.headers.items()},
            "size": len(body),
        }
        text = json.dumps(told).encode()
        self.send_response(200)
        if "X-Send-Type" not in self.headers:
            self.send_header("Content-Type", "application/json")
        if sent := self.headers.get("X-Send-Disposition"):
            self.send_header("Content-Disposition", sent)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("X-Asked", json.dumps([told["by"], told["method"]]))
        if self.path == "/tagged":
            self.send_header("ETag", 'W/"of-this"')
        if self.path == "/page":
            self.send_header("Content-Security-Policy", "default-src 'self'")
            self.send_header("X-Request-Id", "of-the-page")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)
        return None

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Accel-Buffering", "no")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: 1\n\n")
        self.wfile.flush()
        self.go_on.wait(DEADLINE_SECONDS)
        self.wfile.write(b"data: 2\n\n")

    def log_request(self, *_: object) -> None:
        pass


NAMES = ("commands", "queries", "objects", "web", "console")


def telling(stack: ExitStack) -> int:
    """A running server's port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return server.server_port


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        yield {name: telling(stack) for name in NAMES}


@pytest.fixture(scope="module")
def proxy(ports: dict[str, int], short_dir: Path) -> Iterator[Proxy]:
    upstreams = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    with running_nginx(short_dir / "proxy", upstreams) as running:
        yield running


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxy.url, trust_env=False, timeout=DEADLINE_SECONDS) as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_reads_go_to_the_queries_and_all_else_to_the_commands(
    client: httpx.Client, ports: dict[str, int], method: str
) -> None:
    side = "queries" if method in ("GET", "HEAD") else "commands"
    asked = client.request(method, "/videos/1/like").headers["X-Asked"]
    assert json.loads(asked) == [ports[side], method]


@pytest.mark.parametrize("path", ["/", "/studio", "/studio/videos/1", "/login", "/static/a.css"])
def test_pages_come_from_where_pages_are(
    client: httpx.Client, ports: dict[str, int], path: str
) -> None:
    for method in ("GET", "POST"):
        asked = client.request(method, path).headers["X-Asked"]
        assert json.loads(asked) == [ports["web"], method]


def test_the_console_is_at_its_own_port_alone(
    client: httpx.Client, proxy: Proxy, ports: dict[str, int]
) -> None:
    asked = httpx.get(f"{proxy.console_url}/console/log", trust_env=False).headers["X-Asked"]
    assert json.loads(asked) == [ports["console"], "GET"]
    # To whoever comes through the public port it is a call of the API, which has none like it.
    assert json.loads(client.get("/console").headers["X-Asked"]) == [ports["queries"], "GET"]


@pytest.mark.parametrize("method", ["HEAD", "GET", "POST", "PATCH", "DELETE", "OPTIONS"])
def test_all_of_tus_goes_to_the_commands(
    client: httpx.Client, ports: dict[str, int], method: str
) -> None:
    asked = client.request(method, "/tus/uploads/1").headers["X-Asked"]
    assert json.loads(asked) == [ports["commands"], method]


def test_bytes_by_tus_may_be_many_and_pass_as_they_come(client: httpx.Client) -> None:
    size = 9 * 1024 * 1024
    assert client.patch("/tus/uploads/1", content=b"x" * size).json()["size"] == size
    Told.arrived.clear()

    def halves() -> Iterator[bytes]:
        yield b"1234"
        assert Told.arrived.wait(DEADLINE_SECONDS), "the proxy waits for the rest of the body"
        yield b"5678"

    answer = client.patch("/tus/uploads/1", content=halves(), headers={"Content-Length": "8"})
    assert answer.json()["size"] == 8


def test_what_was_asked_arrives_as_it_was(client: httpx.Client) -> None:
    given = {"Authorization": "Bearer a.b.c", "Backlot-Min-Position": "7", "Idempotency-Key": "k"}
    told = client.get("/videos?cursor=a%2Fb&limit=2", headers=given).json()
    assert told["path"] == "/videos?cursor=a%2Fb&limit=2"
    for name, text in given.items():
        assert told["headers"][name.lower()] == text


def test_a_request_id_is_passed_on_or_made(client: httpx.Client, proxy: Proxy) -> None:
    told = client.get("/videos", headers={"X-Request-Id": "mine-1"}).json()
    assert told["headers"]["x-request-id"] == "mine-1"
    made = client.get("/videos").json()["headers"]["x-request-id"]
    assert len(made) == 32
    lines = [json.loads(line) for line in proxy.log.splitlines() if line.startswith("{")]
    assert {"mine-1", made} <= {line["request_id"] for line in lines}
    assert all(line["path"] == "/videos" for line in lines if line["request_id"] == made)


@pytest.mark.parametrize("path", ["metrics", "readyz", "docs", "docs/static/x.js", "openapi.json"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_for_operators_stays_inside(client: httpx.Client, path: str, method: str) -> None:
    answer = client.request(method, f"/{path}", headers={"X-Request-Id": "mine-2"})
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == PROBLEM
    assert answer.headers["X-Request-Id"] == answer.json()["requestId"] == "mine-2"
    assert client.get("/healthz").status_code == 200


def test_an_id_cannot_break_out_of_the_proxy_s_own_json(client: httpx.Client) -> None:
    answer = client.get("/metrics", headers={"X-Request-Id": 'a","type":"x'})
    assert answer.json()["type"] == "not-found"
    assert answer.json()["requestId"] == answer.headers["X-Request-Id"]


def test_a_body_that_no_call_takes_is_a_problem(client: httpx.Client) -> None:
    assert client.post("/uploads", content=b"x" * 1024 * 1024).json()["size"] == 1024 * 1024
    answer = client.post("/uploads", content=b"x" * (2 * 1024 * 1024 + 1))
    assert (answer.status_code, answer.json()["type"]) == (413, "too-large")
    assert answer.headers["Content-Type"] == PROBLEM


def test_json_is_compressed_for_whoever_takes_that(client: httpx.Client) -> None:
    plainly = {"Accept-Encoding": "identity"}
    zipped, plain = client.get("/tagged"), client.get("/tagged", headers=plainly)
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert zipped.json()["path"] == plain.json()["path"] == "/tagged"
    for answer in (zipped, plain):
        # So that a shared cache hands each form to whom it is for, and asks with the same tag.
        assert "Accept-Encoding" in answer.headers["Vary"]
        assert answer.headers["ETag"] == 'W/"of-this"'


def test_live_events_arrive_as_they_are_written(client: httpx.Client) -> None:
    Told.go_on.clear()
    with client.stream("GET", "/stream") as answer:
        assert "Content-Encoding" not in answer.headers
        pieces = answer.iter_raw()
        assert next(pieces) == b"data: 1\n\n"
        Told.go_on.set()
        assert next(pieces) == b"data: 2\n\n"


def test_the_object_store_sees_the_host_that_was_signed(
    proxy: Proxy, ports: dict[str, int]
) -> None:
    with httpx.Client(base_url=proxy.media_url, trust_env=False) as media:
        url = f"/media/videos/1?uploadId=a%2Fb&{SIGNED}"
        part = media.put(url, content=b"x" * 9 * 1024 * 1024)
        assert part.json()["size"] == 9 * 1024 * 1024
        assert part.json()["path"] == url
        assert part.json()["headers"]["host"] == proxy.media_url.removeprefix("http://")
        assert part.json()["by"] == ports["objects"]
        ranged = media.get(f"/media/videos/1?{SIGNED}", headers={"Range": "bytes=2-5"}).json()
        assert ranged["headers"]["range"] == "bytes=2-5"


@pytest.mark.parametrize("side", ["api", "media"])
def test_a_body_is_handed_on_as_it_comes(proxy: Proxy, side: str) -> None:
    """Spooled first, it would fill the memory that is this container's /tmp."""
    url, path = (
        (proxy.url, "/uploads") if side == "api" else (proxy.media_url, f"/media/v?{SIGNED}")
    )
    Told.arrived.clear()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as sending:
        sending.settimeout(DEADLINE_SECONDS)
        head = f"PUT {path} HTTP/1.1\r\nHost: here\r\nContent-Length: 8\r\n\r\n"
        sending.sendall(head.encode() + b"half")
        assert Told.arrived.wait(DEADLINE_SECONDS), "the server heard nothing before the end"
        sending.sendall(b"rest")
        assert b" 200 " in sending.recv(4096)


def test_answers_say_what_browsers_must_not_do(client: httpx.Client) -> None:
    for answer in (client.get("/videos"), client.get("/metrics")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    # A page's own words stand.
    own = client.get("/page").headers
    assert own.get_list("Content-Security-Policy") == ["default-src 'self'"]
    assert own.get_list("X-Request-Id") == ["of-the-page"]


@pytest.fixture
def strict(ports: dict[str, int], short_dir: Path) -> Iterator[Proxy]:
    """The same limits, reached sooner; one of each test's own, since each spends of them."""
    upstreams = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    changes = {
        "set_real_ip_from 10.0.0.0/8": "set_real_ip_from 127.0.0.1",
        "rate=200r/s": "rate=1r/m",
        "burst=1000": "burst=2",
        "limit_conn connections 256": "limit_conn connections 2",
        "client_header_timeout 10s": "client_header_timeout 1s",
        "client_body_timeout 30s": "client_body_timeout 1s",
    }
    with running_nginx(short_dir / f"strict-{uuid4().hex[:8]}", upstreams, changes) as running:
        yield running


@pytest.mark.parametrize("side", ["api", "media"])
def test_one_address_gets_a_share_only(strict: Proxy, side: str) -> None:
    url = f"{strict.url}/videos" if side == "api" else f"{strict.media_url}/media/videos/1?{SIGNED}"
    with httpx.Client(trust_env=False) as client:
        answers = [client.get(url) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["Retry-After"] == "1"
    if side == "api":
        assert answers[-1].headers["Content-Type"] == PROBLEM
        assert answers[-1].json()["type"] == "rate-limited"


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\nHost: he", b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"],
)
def test_who_sends_no_more_is_cut_off(strict: Proxy, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(strict.url.rpartition(":")[2]))) as idle:
        idle.settimeout(DEADLINE_SECONDS)
        idle.sendall(sent)
        with suppress(ConnectionResetError):
            while idle.recv(4096):
                pass


def test_what_a_client_says_of_its_address_is_not_believed(client: httpx.Client) -> None:
    told = client.get("/videos", headers={"X-Forwarded-For": "198.51.100.7"}).json()
    assert told["headers"]["x-forwarded-for"] == "127.0.0.1"


def test_a_side_that_is_down_is_a_problem_and_leaves_the_other_alone(short_dir: Path) -> None:
    with ExitStack() as stack:
        upstreams = {
            "commands": f"127.0.0.1:{telling(stack)}",
            "queries": f"127.0.0.1:{unused_port()}",
            "objects": f"127.0.0.1:{unused_port()}",
        }
        proxy = stack.enter_context(running_nginx(short_dir / "half-down", upstreams))
        client = stack.enter_context(httpx.Client(base_url=proxy.url, trust_env=False))
        answer = client.get("/videos", headers={"X-Request-Id": "mine-3"})
        assert (answer.status_code, answer.json()["type"]) == (503, "unavailable")
        assert answer.headers["Content-Type"] == PROBLEM
        assert answer.headers["Retry-After"] == "5"
        assert answer.headers["X-Request-Id"] == answer.json()["requestId"] == "mine-3"
        assert client.post("/videos/1/like").status_code == 200


def test_what_ends_tls_before_it_is_believed(strict: Proxy) -> None:
    """Each client behind that has a share of its own."""
    with httpx.Client(base_url=strict.url, trust_env=False) as client:
        for number in range(8):
            address = f"198.51.100.{number}"
            said = {"X-Forwarded-For": f"203.0.113.9, {address}"}
            answer = client.get("/videos", headers=said)
            assert answer.json()["headers"]["x-forwarded-for"] == address


@pytest.mark.parametrize(
    ("asked", "sent", "told"),
    [
        ("inline%3B%20filename%2A%3DUTF-8%27%27clip.mp4", "", "inline; filename*=UTF-8''clip.mp4"),
        ("inline%3B%20filename%2A%3DUTF-8%27%27D%25C3%25A9j%25C3%25A0.mp4", "", "inline"),
        (
            "attachment%3B%20filename%2A%3DUTF-8%27%27a.html",
            "",
            "attachment; filename*=UTF-8''a.html",
        ),
        ("attachment%3B%20filename%2A%3DUTF-8%27%27%25C3.html", "", "attachment"),
        ("inline%3B%20filename%2A%3DUTF-8%27%27clip.mp4", "its own", "its own"),
    ],
)
def test_a_range_has_the_type_and_the_name_that_were_signed(
    proxy: Proxy, asked: str, sent: str, told: str
) -> None:
    """Garage leaves them out of ranges."""
    asking = f"response-content-disposition={asked}&response-content-type=video%2Fmp4"
    headers = {"X-Send-Disposition": sent, "X-Send-Type": "no"}
    url = f"{proxy.media_url}/media/videos/1?{asking}&{SIGNED}"
    answer = httpx.get(url, headers=headers, trust_env=False)
    assert answer.headers.get_list("Content-Disposition") == [told]
    assert answer.headers.get_list("Content-Type") == ["video/mp4"]
    plain = httpx.get(f"{proxy.media_url}/media/videos/1?{SIGNED}", headers=headers)
    assert plain.headers["Content-Type"] == "application/octet-stream"
