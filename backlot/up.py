"""Everything in one process: `backlot up`."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

import structlog
import uvicorn

from backlot.app import make_app
from backlot.health import check
from backlot.serving import calm_garbage_collector, serving
from backlot.wiring import Parts, open_parts
from infra.errors import ExitCode, OperatorError
from infra.logging import configure_logging
from infra.settings import Settings

log = structlog.get_logger(__name__)

Handler = Callable[[int, FrameType | None], None] | signal.Handlers


class PortTaken(OperatorError):
    """Another program listens where the API should."""


def run_up(settings: Settings) -> int:
    """Start, serve until SIGINT or SIGTERM, and stop everything; returns the exit code."""
    configure_logging(settings)
    print("starting Backlot …", file=sys.stderr)
    with ExitStack() as stack:
        _on_signals(_stop)
        try:
            return _serve(settings, stack)
        except Stopped:
            return ExitCode.DONE
        finally:
            # From here on everything is stopped anyway; a second Ctrl-C must not cut it short.
            _on_signals(signal.SIG_IGN)


def _serve(settings: Settings, stack: ExitStack) -> int:
    listener = stack.enter_context(_listen(settings))
    parts = open_parts(settings, stack)
    calm_garbage_collector()
    config = serving(make_app(parts))
    server = Server(config, parts)
    server.run(sockets=[listener])
    return ExitCode.DONE if server.started else ExitCode.FAILED


class Stopped(BaseException):
    """SIGINT or SIGTERM came; everything that was started is stopped on the way out."""


def _stop(number: int, frame: FrameType | None) -> None:
    # While it serves, uvicorn takes the signals, and raises them again when it has ended.
    raise Stopped


def _on_signals(handler: Handler) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


class Server(uvicorn.Server):
    """Says on standard output that it is ready, once every part has answered."""

    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        super().__init__(config)
        self._parts = parts

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        print("stopping …", file=sys.stderr)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for end in self._parts.endings:
            await end()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announcement = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        told: set[str] = set()
        try:
            while not (readiness := await check(self._parts)).ready:
                for name, state in readiness.parts.items():
                    if not state["ok"] and name not in told:
                        told.add(name)
                        log.info("waiting_for_part", part=name, state=state)
                await asyncio.sleep(0.05)
        except Exception:
            log.exception("readiness_check_broke")
            raise
        print(f"ready: {self._parts.settings.local_url}", flush=True)


def _listen(settings: Settings) -> socket.socket:
    """The listening socket; taken before anything is started, so that a clash costs nothing."""
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=2048,
        )
    except OSError as error:
        raise PortTaken(
            f"can't listen on {settings.host}:{settings.port} ({error.strerror}): "
            "stop what runs there, or set BACKLOT_PORT (or BACKLOT_HOST) to another one"
        ) from error
