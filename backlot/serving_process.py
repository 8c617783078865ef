"""A process that serves beside the first one; see `backlot.processes`, which starts it."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from threading import Thread

import structlog

from backlot.app import make_app, open_parts
from backlot.health import check
from backlot.processes import READY, Assignment
from backlot.signals import STOPS, Stop
from backlot.up import Server, bound, calm_garbage_collector, connection_limits, serving
from infra.errors import ExitCode, OperatorError
from infra.logging import configure_logging
from infra.metric_pages import ask_page, pages_at, socket_at
from infra.metrics import own_page

log = structlog.get_logger(__name__)


def run(first: Connection) -> int:
    """Serve as the first process says, until that ends or tells to stop; return the exit code."""
    try:
        assignment: Assignment = first.recv()
    except (EOFError, OSError):
        return ExitCode.DONE
    Thread(target=_end_with, args=(first,), name="first process", daemon=True).start()
    configure_logging(assignment.settings.logs)
    try:
        return _serve(assignment, first)
    except OperatorError as error:
        log.error("process_not_started", reason=str(error))
        return error.exit_code


def _serve(assignment: Assignment, first: Connection) -> int:
    settings = assignment.settings

    async def announce() -> None:
        first.send(READY)

    with Stop(numbers=STOPS) as stop, ExitStack() as stack:
        parts = open_parts(settings, stack, shared=assignment.shared)
        parts = replace(parts, page=partial(ask_page, assignment.sum_socket))
        listeners = [stack.enter_context(each) for each in bound(settings.server)]
        calm_garbage_collector()
        told = partial(pages_at, socket_at(assignment.sockets, os.getpid()), own_page)
        config = serving(make_app(parts), connection_limits(settings.server))
        ask = partial(check, parts)
        server = Server(config, ask, stop, endings=parts.endings, announce=announce, beside=told)
        server.run(sockets=listeners)
        return ExitCode.DONE if server.started else ExitCode.FAILED


def _end_with(first: Connection) -> None:
    """End at once where the first process did: nobody may be left at its port and its data."""
    try:
        first.recv()
    except (EOFError, OSError):
        os._exit(ExitCode.FAILED)


if __name__ == "__main__":
    sys.exit(run(Connection(int(sys.argv[1]))))
