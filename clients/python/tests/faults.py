"""What goes wrong between a client and the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock

import httpx

Fault = Callable[[httpx.Request], bool]


class Faults(httpx.BaseTransport):
    """A real connection that loses answers, breaks streams and meets proxies that say 503.

    Each list holds which requests that happens to: what is in it is used up, one by one. What is
    sent while the network is down does not arrive.
    """

    def __init__(self) -> None:
        self._real = httpx.HTTPTransport()
        self._lock = Lock()
        self.sent: list[httpx.Request] = []
        self.lose_answer: list[Fault] = []
        self.busy: list[tuple[Fault, dict[str, str]]] = []
        self.down: Fault = lambda _: False
        self.break_stream_after = -1

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if "Backlot-Timeout-Ms" in request.headers:
            # However busy the machine is.
            request.headers["Backlot-Timeout-Ms"] = "30000"
        with self._lock:
            # As it is now: it is completed further when it is sent again.
            headers = request.headers.copy()
            self.sent.append(httpx.Request(request.method, request.url, headers=headers))
            if self.down(request):
                raise httpx.ConnectError("network unreachable", request=request)
            busy = next((each for each in self.busy if each[0](request)), None)
            lost = next((each for each in self.lose_answer if each(request)), None)
            if busy is not None:
                self.busy.remove(busy)
                return httpx.Response(503, headers=busy[1], html="<h1>Busy</h1>")
            if lost is not None:
                self.lose_answer.remove(lost)
        response = self._real.handle_request(request)
        if lost is not None:
            response.read()
            raise httpx.ReadError("connection reset", request=request)
        if self.break_stream_after >= 0 and request.headers["Accept"] == "text/event-stream":
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = Breaking(response.stream, self.break_stream_after)
            self.break_stream_after = -1
        return response

    def sent_to(self, method: str, end_of_path: str) -> list[httpx.Request]:
        """The requests of a method to such a path."""
        return [
            each
            for each in self.sent
            if each.method == method and each.url.path.endswith(end_of_path)
        ]

    def close(self) -> None:
        self._real.close()


class Breaking(httpx.SyncByteStream):
    """A stream that breaks off behind so many events, in the middle of the next line."""

    def __init__(self, stream: httpx.SyncByteStream, events: int) -> None:
        self._stream = stream
        self._events = events

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            yield chunk
            self._events -= chunk.count(b"data: ")
            if self._events <= 0:
                yield b"event: comm"
                raise httpx.ReadError("connection reset")

    def close(self) -> None:
        self._stream.close()
