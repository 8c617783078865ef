"""Connections of the HTTP server: what leaves in one write, and which of them may not stay.

A connection may not dawdle: a head has to be whole within a time, and a body has to come at a rate
that the slowest honest client reaches (the defaults of Apache's mod_reqtimeout are as large). Above
the most connections, those that have waited longest for their client give way to a new one, as
nginx has it.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infra.http.problems import PROBLEM_JSON, TITLES
from infra.metrics import counter

log = structlog.get_logger(__name__)

FLUSH_BYTES = 64 * 1024
PAUSE_BYTES = 1048576
# A head that is not whole by then is of nobody who would get another answer than 414 or 431.
MOST_HEAD_BYTES = 48 * 1024
LEAST_BYTES_PER_SECOND = 500
# So many connections' worth of files are for databases, objects and logs.
OTHER_FILES = 256
MOST_FILES = 65_536
# What gives way at once, so that a flood does not look for one victim after the other.
SHED_SHARE = 0.1

CONNECTIONS_CLOSED = counter(
    "backlot_connections_closed",
    "Connections that were closed on their clients (slow-head, slow-body, long-head, crowded).",
    ("reason",),
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds until a head is whole, seconds without a body's bytes, and the most connections."""

    head_seconds: float = 20.0
    body_seconds: float = 60.0
    most: int = 10_000


class Phase(IntEnum):
    """What a connection waits for: the rest of a head or a body, or its answer or next request."""

    HEAD = 0
    BODY = 1
    REST = 2


class OneWrite:
    """A transport that sends what is written in one turn of the event loop together.

    uvicorn writes an answer's head and body apart: two system calls, and two packets that wake
    the client twice. All else is the transport's own.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._size += len(data)
        if self._size > FLUSH_BYTES:
            # Only what reached the transport makes it ask for a pause.
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LeanProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1: answers leave with one write, and nobody holds a connection for nothing.

    Bodies are read in larger pieces. `sweep` has to be called now and then.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self.phase = Phase.HEAD
        self.since = self.loop.time()
        self._bytes = 0
        self._heads = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > self._limits.most:
            _make_room(self, self.connections)

    def data_received(self, data: bytes) -> None:
        heads = self._heads
        super().data_received(data)
        # What came with the end of a request before is not counted: it is one read at most.
        if self.phase is not Phase.HEAD or self._heads != heads:
            return
        self._bytes += len(data)
        if self._bytes > MOST_HEAD_BYTES:
            self.refuse(414 if not self.headers else 431, "long-head")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heads += 1
        self._enter(Phase.HEAD)

    def on_headers_complete(self) -> None:
        self._enter(Phase.BODY)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes += len(body)
        # uvicorn pauses after 64 KiB, which is after every read of a large part.
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > PAUSE_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._enter(Phase.REST)
        super().on_message_complete()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since = self.loop.time()
        self._bytes = 0

    @property
    def is_answering(self) -> bool:
        """Whether a request is whole, and its answer not."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def check(self, now: float) -> None:
        """Close the connection if its client takes too long for what it sends."""
        waited = now - self.since
        if self.phase is Phase.HEAD and not self.is_answering:
            if waited > self._limits.head_seconds:
                self.refuse(408, "slow-head")
        elif self.phase is Phase.BODY and not self.flow.read_paused:
            allowed = self._limits.body_seconds + self._bytes / LEAST_BYTES_PER_SECOND
            if waited > allowed:
                self.refuse(408, "slow-body")

    def refuse(self, status: int, reason: str) -> None:
        """Close the connection; tell why, where no answer has begun and something was asked."""
        silent = status == 408 and not self._heads
        if self.phase is not Phase.HEAD:
            silent = silent or self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not silent:
            self.transport.write(_plain_problem(status))
        self.leave(reason)

    def leave(self, reason: str) -> None:
        """Close the connection without a word; it counts no more from now on."""
        CONNECTIONS_CLOSED.labels(reason).inc()
        self.connections.discard(self)
        self.transport.close()


def _plain_problem(status: int) -> bytes:
    """Return a whole answer, for requests that no application gets to see."""
    slug, title = TITLES[status]
    body = json.dumps({"type": slug, "title": title, "status": status, "detail": f"{title}."})
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {PROBLEM_JSON}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return (head + body).encode()


def _make_room(newest: LeanProtocol, connections: Iterable[Any]) -> None:
    """Close those that have waited longest for a request; where none waits, the newest."""
    waiting = [
        each
        for each in connections
        if isinstance(each, LeanProtocol)
        and each is not newest
        and each.phase is not Phase.BODY
        and not each.is_answering
    ]
    if not waiting:
        newest.refuse(503, "crowded")
        return
    waiting.sort(key=lambda each: (each.phase, each.since))
    for each in waiting[: max(1, int(len(waiting) * SHED_SHARE))]:
        each.leave("crowded")


def sweep(connections: Iterable[Any], now: float) -> None:
    """Close the connections whose clients take too long; `now` is the loop's time."""
    for each in list(connections):
        if isinstance(each, LeanProtocol):
            each.check(now)


def room_for_connections(most: int) -> int:
    """Return how many connections this process may have; raise its limit of files for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(max(soft, most + OTHER_FILES), MOST_FILES if hard < 0 else hard)
    if wanted > soft >= 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.warning("files_limited", limit=soft, error=str(error))
            wanted = soft
    room = max(16, min(most, wanted - OTHER_FILES))
    if room < most:
        log.warning("connections_limited", connections=room, wanted=most, files=wanted)
    return room
