"""A process of its own for one operation that takes long, started by `projections/executor.py`."""

from __future__ import annotations

import signal
from contextlib import ExitStack, closing
from threading import Event
from types import FrameType
from uuid import UUID

from backlot.database import database_url
from backlot.wiring import ReadModels, open_counters
from infra.codec import EventMapper
from infra.event_store import open_recorder
from infra.logging import configure_logging
from infra.settings import Settings
from projections.acting import Tools
from projections.children import watch_parent
from projections.connecting import connect
from projections.executor import perform
from projections.replay_progress import tell_nobody


def run_operation(settings: Settings, operation_id: UUID) -> None:
    """Carry it out until it is over, or rests, or the parent is gone."""
    configure_logging(settings)
    stopping = Event()
    watch_parent(stopping)

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    url = database_url(settings)
    recorder = open_recorder(url)
    with (
        ExitStack() as stack,
        closing(recorder.datastore),
        connect(url, "operation") as conn,
    ):
        counters = open_counters(settings, stack)
        models = ReadModels.make().by_name()
        tools = Tools(url, models, EventMapper(), tell_nobody, stopping, counters)
        perform(conn, recorder, tools, operation_id)
