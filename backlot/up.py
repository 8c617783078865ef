"""The first process, which runs everything, and those that serve beside it: `backlot up`."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from backlot.app import make_app, open_parts
from backlot.health import Readiness, check
from backlot.processes import PROCESSES, Assignment, ServingProcesses, socket_folder, working
from backlot.signals import STOP_SECONDS, STOPS, Stop
from backlot.web import operators_link, pages_alone
from infra.cancellation import cancel
from infra.data_folder import secret_path
from infra.errors import ExitCode, OperatorError
from infra.http.connections import ConnectionLimits, LeanProtocol, room_for_connections, sweep
from infra.http.keys import read_or_make_secret
from infra.logging import configure_logging
from infra.settings import Role, ServerSettings, Settings
from workers.parts import Parts

GRACE_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
"""Longer than proxies and clients keep a connection that rests (60 s, httpx 5 s).

Whoever closes first must be the client: a request that crosses the server's end gets no answer.
"""
BACKLOG = 2048
LOOK_SECONDS = 0.05
SWEEP_TICKS = 10
"""uvicorn ticks ten times a second."""


def serving(app: ASGIApp, limits: ConnectionLimits | None = None, **options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration for an application; `options` are passed on to uvicorn."""
    protocol: Any = partial(LeanProtocol, limits=limits or ConnectionLimits())
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # BACKLOT_PUBLIC_URL says where clients are sent; nothing else is taken from a proxy.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        **options,
    )


def calm_garbage_collector() -> None:
    """Let the collector run a hundred times less often: it took a third of every like.

    What lives long (aggregates in memory, routes) made each run slow, and cycles are rare.
    """
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)


log = structlog.get_logger(__name__)


class PortTaken(OperatorError):
    """Another program listens where the API should."""


def run_up(settings: Settings) -> int:
    """Start, serve until SIGINT or SIGTERM, and stop everything; return the exit code.

    Ctrl-C reaches only this process, which tells the others.
    """
    configure_logging(settings.logs)
    if settings.server.roles == {Role.WEB}:
        return _show_pages_alone(settings)
    print("starting Backlot …", file=sys.stderr)
    seconds = STOP_SECONDS + settings.tasks.stop_seconds
    processes = ServingProcesses(settings.server.processes - 1)

    def tell() -> None:
        print("stopping …", file=sys.stderr)
        processes.tell_stop()

    with Stop(tell, numbers=STOPS, seconds=seconds) as stop:
        try:
            with ExitStack() as stack:
                # First of all, so that a clash costs nothing.
                listeners = [stack.enter_context(each) for each in _listen(settings.server)]
                stack.enter_context(processes)
                parts = open_parts(settings, stack, gives_up=lambda: stop.asked)
                if stop.asked:
                    return ExitCode.DONE
                calm_garbage_collector()
                server = _first_server(parts, stop, processes, stack)
                server.run(sockets=listeners)
                return ExitCode.DONE if server.started else ExitCode.FAILED
        except (OperatorError, KeyboardInterrupt):
            # A start that is broken off fails somewhere.
            if stop.asked:
                return ExitCode.DONE
            raise


def _show_pages_alone(settings: Settings) -> int:
    """Serve the pages of APIs that run elsewhere: without a database, with nothing to keep."""
    folder = settings.server.data_dir
    with Stop(numbers=STOPS) as stop, ExitStack() as stack:
        listeners = [stack.enter_context(each) for each in _listen(settings.server)]
        app, ask = pages_alone(settings, lambda: read_or_make_secret(secret_path(folder)))

        async def announce() -> None:
            print(f"ready: {settings.server.local_url}", flush=True)

        config = serving(app, connection_limits(settings.server))
        server = Server(config, ask, stop, announce=announce)
        server.run(sockets=listeners)
        return ExitCode.DONE if server.started else ExitCode.FAILED


def _first_server(
    parts: Parts, stop: Stop, processes: ServingProcesses, stack: ExitStack
) -> Server:
    settings = parts.settings

    async def announce() -> None:
        while not processes.ready:  # noqa: ASYNC110 - threads see it
            await asyncio.sleep(LOOK_SECONDS)
        print(f"ready: {settings.server.local_url}", flush=True)
        if (link := operators_link(settings, parts.secret)) is not None:
            print(f"log in (once, within ten minutes): {link}", flush=True)

    limits, ask = connection_limits(settings.server), partial(check, parts)
    told: dict[str, Any] = {"endings": parts.endings, "announce": announce}
    if settings.server.processes == 1:
        return Server(serving(make_app(parts), limits), ask, stop, **told)
    sockets = stack.enter_context(socket_folder(settings.server.data_dir))
    parts = replace(parts, page=partial(processes.pages.whole, sockets))
    beside = partial(working, processes, Assignment.of(settings, parts.database_url, sockets))
    app = make_app(parts)
    return Server(serving(app, limits), ask, stop, beside=beside, **told)


class Server(uvicorn.Server):
    """Calls `announce` once `ask` says that every part answers; is inside of `beside` meanwhile.

    It runs until `stop` is asked for: uvicorn's own handlers would wait again for whoever presses
    Ctrl-C twice.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ask: Callable[[], Awaitable[Readiness]],
        stop: Stop,
        *,
        endings: Sequence[Callable[[], Awaitable[None]]] = (),
        announce: Callable[[], Awaitable[None]],
        beside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__(config)
        self._tell_ready = announce
        self._beside = beside
        self._ask = ask
        self._endings = endings
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            async with self._beside():
                await super().serve(sockets)
        finally:
            # `asyncio.run` would cancel them once, and wait for ever.
            await cancel(*asyncio.all_tasks() - {asyncio.current_task()})

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            sweep(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter) or self._stop.asked

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for end in self._endings:
            await end()
        await super().shutdown(sockets)

    async def _wait_tasks_to_complete(self) -> None:
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await super()._wait_tasks_to_complete()
        except TimeoutError:
            log.warning("requests_cut_off", requests=len(self.server_state.tasks))
            await cancel(*self.server_state.tasks)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announcement = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        told: set[str] = set()
        try:
            while not (readiness := await self._ask()).ready:
                for name, state in readiness.parts.items():
                    if not state["ok"] and name not in told:
                        told.add(name)
                        log.info("waiting_for_part", part=name, state=state)
                await asyncio.sleep(LOOK_SECONDS)
            PROCESSES.set(1)
            await self._tell_ready()
        except Exception:
            log.exception("readiness_check_broke")
            raise


def connection_limits(settings: ServerSettings) -> ConnectionLimits:
    """Return what one connection may take, and how many there may be in this process."""
    most = room_for_connections(settings.max_connections)
    return ConnectionLimits(settings.head_seconds, settings.body_seconds, most)


def _listen(settings: ServerSettings) -> Iterator[socket.socket]:
    """Yield the sockets of all ports that are served; raise PortTaken."""
    several = settings.processes > 1
    for host, port, variables in _addresses(settings):
        try:
            if several:
                # A port that is shared can be taken by whoever shares it too.
                socket.create_server((host, port), family=_family(host)).close()
            yield socket.create_server(
                (host, port), family=_family(host), backlog=BACKLOG, reuse_port=several
            )
        except OSError as error:
            raise PortTaken(
                f"can't listen on {host}:{port} ({error.strerror}): "
                f"stop what runs there, or set {variables} to another one"
            ) from error


def bound(settings: ServerSettings) -> Iterator[socket.socket]:
    """Yield a socket at each port that the first process shares; no client is sent to it yet.

    The kernel gives each new connection to one of those that listen, by its addresses.
    """
    for host, port, _ in _addresses(settings):
        sock = socket.socket(_family(host))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        yield sock


def _addresses(settings: ServerSettings) -> Iterator[tuple[str, int, str]]:
    """Yield host and port of all that is served, and the settings that they come from."""
    yield settings.host, settings.port, "BACKLOT_PORT (or BACKLOT_HOST)"
    if settings.admin_port is not None:
        yield settings.admin_host, settings.admin_port, "ADMIN_PORT (or ADMIN_HOST)"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
