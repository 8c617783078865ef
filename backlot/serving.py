"""How uvicorn serves Backlot: one place for the program and for what it is measured against."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

GRACE_SECONDS = 10
FLUSH_BYTES = 64 * 1024
PAUSE_BYTES = 1048576


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
    """uvicorn's HTTP/1.1: answers leave with one write, bodies are read in larger pieces."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        # uvicorn pauses after 64 KiB, which is after every read of a large part.
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > PAUSE_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()


def serving(app: FastAPI, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for an application; `options` are further ones of uvicorn's."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=LeanProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # BACKLOT_PUBLIC_URL says where clients are sent; nothing else is taken from a proxy.
        proxy_headers=False,
        **options,
    )


def calm_garbage_collector() -> None:
    """Let the collector run a hundred times less often: it took a third of every like.

    What lives long (aggregates in memory, routes) made each run slow, and cycles are rare.
    """
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
