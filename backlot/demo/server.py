"""A server for the demo when none answers: started, awaited, and stopped again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from backlot.signals import last_word
from infra.errors import OperatorError
from infra.settings import Settings

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
    """End a server that we started: asked first, killed when it takes longer than `seconds`."""
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
        with socket.socket() as probe:
            # As the server itself binds: a port that only lingers counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise ServerNotStarted("no TCP port is free")
