"""A gate between a client and the program: counts parts, holds them back, turns some away."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from urllib.parse import parse_qs, urlsplit

PATIENCE_SECONDS = 180.0
PASSED_ON = ("Authorization", "Content-Type", "Content-MD5", "Host", "Idempotency-Key")
TURNED_AWAY = b'{"type": "unavailable", "detail": "turned away"}'


@dataclass
class Gate:
    """`arrived` are the parts that the program took, in that order, since `forget`.

    After `most` of them the next ones wait until `open`, or end unanswered with `drop`.
    `refusals` are the statuses that the next calls get, by the last word of their path or `PUT`.
    """

    port: int
    url: str = ""
    arrived: list[int] = field(default_factory=list)
    failures: int = 0
    most: int | None = None
    refusals: dict[str, deque[int]] = field(default_factory=dict)
    _let_in: int = 0
    _waiting: int = 0
    _round: int = 0
    _moved: Condition = field(default_factory=Condition)

    def hold_after(self, parts: int) -> None:
        """Let so many parts through, and hold those that come then."""
        with self._moved:
            self.most, self._let_in = parts, 0

    def wait_until_full(self) -> None:
        """Return when as many parts as may have arrived, and another one is held."""
        with self._moved:
            assert self._moved.wait_for(self._is_full, PATIENCE_SECONDS), "it was not reached"

    def open(self) -> None:
        """Let everything through that waits or comes."""
        with self._moved:
            self.most = None
            self._moved.notify_all()

    def drop(self) -> None:
        """Let nothing through that waits, but whatever comes."""
        with self._moved:
            self._round += 1
            self.open()

    def forget(self) -> list[int]:
        """The parts that have arrived until now, in order of number."""
        with self._moved:
            arrived, self.arrived = sorted(self.arrived), []
            return arrived

    def _is_full(self) -> bool:
        return len(self.arrived) == self.most and self._waiting > 0

    def admit(self) -> bool:
        """Whether a part may go on, once that is known."""
        with self._moved:
            came_in = self._round
            self._waiting += 1
            self._moved.notify_all()
            self._moved.wait_for(self._is_open, PATIENCE_SECONDS)
            self._waiting -= 1
            self._let_in += 1
            return came_in == self._round

    def _is_open(self) -> bool:
        return self.most is None or self._let_in < self.most

    def note(self, part: int | None) -> None:
        """A part has arrived, or else a call has failed."""
        with self._moved:
            if part is None:
                self.failures += 1
            else:
                self.arrived.append(part)
            self._moved.notify_all()

    def refusal(self, call: str) -> int | None:
        """The status that this call gets without being passed on, if any."""
        with self._moved:
            waiting = self.refusals.get(call)
            return waiting.popleft() if waiting else None


@contextmanager
def gate_to(port: int) -> Iterator[Gate]:
    """A gate before the program on `port`, whether that runs or not."""
    gate = Gate(port)

    class Handler(Passing):
        passing = gate

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        gate.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield gate
        gate.drop()
        server.shutdown()
        thread.join()


class Passing(BaseHTTPRequestHandler):
    """Passes a call on as it is; a client whose call can't be passed on gets no answer."""

    protocol_version = "HTTP/1.1"
    passing: Gate

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        target = urlsplit(self.path)
        part = parse_qs(target.query).get("partNumber")
        status = self.passing.refusal("PUT" if part else target.path.rpartition("/")[2])
        if status is not None:
            self._tell(status, TURNED_AWAY, {"Retry-After": "0"})
            return
        if part and not self.passing.admit():
            self.close_connection = True
            return
        try:
            answer, content = self._ask(body)
        except (OSError, HTTPException):
            self.passing.note(None)
            self.close_connection = True
            return
        if part and answer.status == 200:
            self.passing.note(int(part[0]))
        self._tell(answer.status, content, dict(answer.getheaders()))

    do_GET = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815 - named by the base class

    def _ask(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.passing.port, timeout=PATIENCE_SECONDS)
        try:
            headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _tell(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name in headers.keys() - {"content-length", "Content-Length", "connection", "date"}:
            self.send_header(name, headers[name])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
