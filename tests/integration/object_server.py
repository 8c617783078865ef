"""A server with only the object routes, in a process of its own that tests may kill."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI

from infra.http.app import HttpApp
from infra.http.auth import Authenticator
from infra.http.keys import OneKey
from infra.objects.folder import FolderStore
from infra.objects.routes import object_router, part_router
from tests.fork_server import ForkedProcess
from tests.support import DEADLINE_SECONDS, PROJECT, eventually

SECRET = b"signs the URLs of object tests"


def folder_store(root: Path, at: datetime | None = None) -> FolderStore:
    """A store whose URLs the test server accepts; `at` stops its clock."""
    return FolderStore(root, SECRET, timedelta(hours=1), lambda: at or datetime.now(UTC))


@dataclass(frozen=True)
class ObjectServer:
    """The running server; `process` is the one that answers at `url`."""

    url: str
    process: ForkedProcess

    def connect(self) -> socket.socket:
        """A bare connection, for what no HTTP client would send."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS)

    def peak_memory(self) -> int:
        """The largest resident size so far, in bytes (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def object_server(
    root: Path, *, idle_seconds: float = 60, file_limit: int = 0
) -> Iterator[ObjectServer]:
    """Serve the folder from a new process; `file_limit` bounds each file's size in bytes."""
    with TemporaryDirectory(prefix="backlot-objects-") as folder:
        said = Path(folder, "out")
        process = ForkedProcess(
            "tests.integration.object_server",
            [str(root), str(idle_seconds), str(file_limit)],
            cwd=PROJECT,
            env=os.environ,
            stdout=said,
            stderr=Path(folder, "err"),
        )
        try:
            eventually(lambda: said.exists() and "\n" in said.read_text())
            yield ObjectServer(f"http://127.0.0.1:{said.read_text().strip()}", process)
        finally:
            process.kill()
            process.wait()


def _application(store: FolderStore, idle_seconds: float) -> FastAPI:
    @asynccontextmanager
    async def recovered(_: FastAPI) -> AsyncIterator[None]:
        await store.recover()
        yield

    app = HttpApp(
        title="objects",
        authenticator=Authenticator(OneKey(SECRET, ["HS256"])),
        body_limit=1024,
        translate={},
        unlimited=("/objects/",),
        lifespan=recovered,
    )
    app.include_router(part_router(store, idle_seconds))
    app.include_router(object_router(store))
    return app


def _main(root: str, idle_seconds: str, file_limit: str) -> None:
    if int(file_limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_limit), int(file_limit)))
    app = _application(folder_store(Path(root)), float(idle_seconds))
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    _main(*sys.argv[1:])
