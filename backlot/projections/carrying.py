"""A process of its own for one operation that takes long; started by the operations executor."""

from __future__ import annotations

from contextlib import ExitStack, closing
from threading import Event
from uuid import UUID

import structlog
from eventsourcing.persistence import PersistenceError

from backlot.database import database_url
from backlot.signals import STOPS, Stop
from backlot.wiring import ReadModels, analytics_means, open_counters
from engine.connections import connect, is_outage
from infra.errors import describe
from infra.event_store import open_recorder
from infra.logging import configure_logging
from infra.settings import Settings
from projections.operating.acting import Tools
from projections.operating.children import watch_parent
from projections.operating.executor import perform
from projections.replaying.progress import tell_nobody

log = structlog.get_logger(__name__)


def run_operation(settings: Settings, operation_id: UUID) -> None:
    """Carry it out until it is over, or rests, or the parent is gone, or the database is away."""
    configure_logging(settings.logs)
    stopping = Event()
    watch_parent(stopping)
    try:
        with Stop(stopping.set, numbers=STOPS):
            _perform(settings, operation_id, stopping)
    except Exception as error:
        if not (is_outage(error) or isinstance(error, PersistenceError)):
            raise
        # It goes on where it stands, in another process, once the database is back.
        log.warning("operation_interrupted", id=str(operation_id), error=describe(error))


def _perform(settings: Settings, operation_id: UUID, stopping: Event) -> None:
    url = database_url(settings)
    recorder = open_recorder(url)
    with (
        ExitStack() as stack,
        closing(recorder.datastore),
        connect(url, "operation") as conn,
    ):
        counters = open_counters(settings, stack)
        models = ReadModels.make().by_name()
        analytics = analytics_means(settings, url)
        tools = Tools(url, models, tell_nobody, stopping, counters, analytics)
        perform(conn, recorder, tools, operation_id)
