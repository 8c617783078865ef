"""The demo's people, each with an HTTP client that is measured; and a server, if none answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from backlot.calls import CallFailed, Patience, UserClient, persist
from backlot.signals import last_word
from backlot.upload.transfer import UploadApi
from infra.errors import OperatorError
from infra.settings import Settings

PATIENCE = Patience(attempts=4, first=0.2, longest=5.0, longest_told=5.0)
# Longer than the server's default: a busy machine is no reason to fail a demo.
WAIT_MS = "20000"


class DemoFailed(OperatorError):
    """The demo cannot be played; the text says what to do."""


@dataclass
class Meter:
    """What was asked of the server, and how it went; durations in seconds."""

    requests: int = 0
    durations: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def percentile_ms(self, share: float) -> float:
        """Return the duration that `share` (0 to 1) of the API calls did not exceed, in ms."""
        if not self.durations:
            return 0.0
        ordered = sorted(self.durations)
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    async def count(self, _: httpx.Request) -> None:
        """Count a request that goes out."""
        self.requests += 1

    def note(self, failure: CallFailed, _: float | None) -> None:
        """Count a failure."""
        self.errors[str(failure)] += 1


class DemoUser(UserClient):
    """One user of the server, who reads their own writes and is measured."""

    def __init__(self, http: httpx.AsyncClient, meter: Meter, name: str, token: str) -> None:
        super().__init__(http, token, patience=PATIENCE, note=meter.note)
        self.name, self._meter = name, meter
        self.uploads = UploadApi(http, token, patience=PATIENCE, note=meter.note)
        # The server was found before anybody entered.
        self._answered = True

    async def command(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Send a command; a repeat after an outage carries the same key, so it counts once."""
        headers = {"Idempotency-Key": str(uuid4())} if method == "POST" else {}
        return _object(await self.call(method, path, headers, json=body))

    async def query(self, path: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read; the answer shows at least everything that this person has done."""
        fresh = {"Backlot-Min-Position": self.position or "", "Backlot-Timeout-Ms": WAIT_MS}
        headers = fresh if self.position is not None else {}
        return _object(await self.call("GET", path, headers, params=params))

    async def all(self, path: str) -> list[dict[str, Any]]:
        """Return every item of a list, read page by page."""
        items: list[dict[str, Any]] = []
        cursor: dict[str, Any] | None = {}
        while cursor is not None:
            page = await self.query(path, {"limit": 100, **cursor})
            items += page["items"]
            cursor = {"cursor": following} if (following := page.get("nextCursor")) else None
        return items

    async def bytes(self, url: str, byte_range: str) -> httpx.Response:
        """Fetch media: the URL is the permission. Not part of the measured calls."""
        call = f"GET {httpx.URL(url).path}"
        headers = {"Range": byte_range}
        send = partial(self.http.get, url, headers=headers)
        return await persist(call, send, PATIENCE, note=self._meter.note)

    def measure(self, seconds: float) -> None:
        self._meter.durations.append(seconds)


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError as error:
        raise CallFailed(answer.request.url.path, "the answer is not JSON") from error
    if not isinstance(found, dict):
        raise CallFailed(answer.request.url.path, "the answer is not a JSON object")
    return found


class Lanes(httpx.AsyncBaseTransport):
    """Sends each request through the next of `count` pools."""

    def __init__(self, count: int) -> None:
        context = httpx.create_ssl_context(trust_env=False)
        self._pools = [httpx.AsyncHTTPTransport(verify=context) for _ in range(count)]
        self._turns = cycle(self._pools)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await next(self._turns).handle_async_request(request)

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()


START_SECONDS = 120.0
STOP_SECONDS = 60.0


class ServerNotStarted(OperatorError):
    """The server for the demo did not come up; its own lines above say why."""


@contextmanager
def running_server(settings: Settings) -> Iterator[Settings]:
    """Settings of a server that answers: the running one, or one that lives for the block.

    A server of our own uses the configured data folder, or a temporary one when none is set.
    """
    if _answers(settings.server.local_url):
        yield settings
        return
    with ExitStack() as stack:
        changes: dict[str, object] = {"port": _free_port(settings.server.port), "host": "127.0.0.1"}
        if "data_dir" not in settings.server.model_fields_set:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="backlot-demo-"))
            changes["data_dir"] = Path(folder, "data")
        server = settings.server.model_copy(update=changes)
        own = settings.model_copy(update={"server": server})
        stack.enter_context(_started(own))
        yield own


@contextmanager
def _started(settings: Settings) -> Iterator[None]:
    environment = {
        "LOG_LEVEL": "warning",
        # One is ready sooner, and has as much as the demo asks.
        "BACKLOT_PROCESSES": "1",
        **os.environ,
        "BACKLOT_HOST": settings.server.host,
        "BACKLOT_PORT": str(settings.server.port),
        "BACKLOT_DATA_DIR": str(settings.server.data_dir),
    }
    # Its own session: Ctrl-C ends the demo first, and the server is then stopped from here.
    process = subprocess.Popen(
        [sys.executable, "-m", "backlot", "up"],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with last_word(process.terminate):
            _await_ready(process, settings.server.local_url)
            yield
    finally:
        stop(process)


def _await_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None:
            raise ServerNotStarted(f"the demo's server ended at its start ({process.returncode})")
        if time.monotonic() > deadline:
            raise ServerNotStarted(f"the demo's server was not ready in {START_SECONDS:.0f} s")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> None:
    """Ask a server that we started to end; kill it when that takes longer than `seconds`."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        # As the server itself binds: a port that only lingers counts as free.
        with suppress(OSError), socket.create_server(("127.0.0.1", port)) as probe:
            return int(probe.getsockname()[1])
    raise ServerNotStarted("no TCP port is free")
