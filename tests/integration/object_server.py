"""A server with only the object routes, in a process of its own that tests may kill.

Run as `python object_server.py ROOT PORT [IDLE_SECONDS] [FILE_LIMIT_BYTES]`.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from commands import objects as writing
from infra.http import Problem
from infra.objects import FolderStore
from readapi import objects as reading

SECRET = b"signs the URLs of object tests"


def folder_store(root: Path, at: datetime | None = None) -> FolderStore:
    """A store whose URLs the test server accepts; `at` stops its clock."""
    return FolderStore(root, SECRET, timedelta(hours=1), lambda: at or datetime.now(UTC))


def application(store: FolderStore, idle_seconds: float) -> FastAPI:
    """Both object routers; the store recovers at the start, as in the real program."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await store.recover()
        yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(writing.router(store, idle_seconds))
    app.include_router(reading.router(store))

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        body = {"type": error.slug, "detail": error.detail, **error.extra}
        return JSONResponse(body, error.status, error.headers, "application/problem+json")

    return app


def main(root: str, port: str, idle_seconds: str = "60", file_limit: str = "0") -> None:
    """Serve until killed."""
    if int(file_limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_limit), int(file_limit)))
    app = application(folder_store(Path(root)), float(idle_seconds))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
