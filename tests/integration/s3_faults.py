"""A way to S3 on which the answers to completions are lost, or turn out to be errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from tests.support import DEADLINE_SECONDS

Answer = tuple[int, list[tuple[str, str]], bytes]

ERROR: Answer = (200, [], b"<Error><Code>InternalError</Code><Message>Sorry.</Message></Error>")
NO_UPLOAD: Answer = (404, [], b"<Error><Code>NoSuchUpload</Code><Message>No.</Message></Error>")


class Fault(Enum):
    """What happens to one completion."""

    LOST = "done, but the connection ends before the answer"
    REFUSED = "not done, and the answer is 200 with an error in its body"
    BROKEN = "done, but the answer is 200 with an error in its body"
    GONE = "not done, for the store forgets uploads that are completed, as MinIO does"


INSTEAD = {Fault.REFUSED: ERROR, Fault.GONE: NO_UPLOAD}


class Passage(ThreadingHTTPServer):
    """Hands every request on to `upstream`; each completion meets the next of `faults`."""

    daemon_threads = True

    def __init__(self, upstream: str, faults: list[Fault]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.faults = faults
        self.completions = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Passage

    def _pass(self) -> None:
        is_completion = self.command == "POST" and "uploadId=" in self.path
        fault = None
        if is_completion:
            self.server.completions += 1
            fault = self.server.faults.pop(0) if self.server.faults else None
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = INSTEAD[fault] if fault in INSTEAD else self._forward(body)
        if fault is Fault.LOST:
            self.close_connection = True
        else:
            self._answer(*(ERROR if fault is Fault.BROKEN else answer))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _pass  # noqa: N815 - the base's names

    def _forward(self, body: bytes) -> Answer:
        connection = HTTPConnection(self.server.upstream, timeout=DEADLINE_SECONDS)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        found = (answer.status, answer.getheaders(), answer.read())
        connection.close()
        return found

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        lengths = [text for name, text in headers if name.lower() == "content-length"]
        for name, text in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, text)
        self.send_header("Content-Length", (lengths or [str(len(body))])[0])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@contextmanager
def passage(upstream: str, *faults: Fault) -> Iterator[Passage]:
    """Serve from threads of this process, on a free port."""
    server = Passage(upstream, list(faults))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
