"""A Dramatiq worker, inside this process or in one of its own."""

from __future__ import annotations

from typing import Any
from wsgiref.simple_server import WSGIServer

import dramatiq
import structlog
from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware
from prometheus_client import start_http_server

from infra.logging import configure_logging
from infra.metrics import REGISTRY
from infra.settings import Settings
from infra.settings.adapters import TaskSettings
from infra.tasks.broker import make_broker
from infra.tasks.middleware import Resources
from infra.tasks.queues import OnDead

log = structlog.get_logger(__name__)

# Beyond the grace: for interrupted tasks to clean up, and to be put back.
MARGIN_SECONDS = 5.0


class TaskWorker:
    """One for each process and broker; start and stop block, so call them in a thread.

    Actors are declared before it starts.
    """

    def __init__(self, broker: Broker, settings: TaskSettings) -> None:
        self._broker = broker
        self._worker = Worker(broker, worker_threads=settings.threads)
        self._stop_seconds = settings.stop_seconds + MARGIN_SECONDS

    def start(self) -> None:
        """Take tasks from now on. Raise ResourcesUnavailable."""
        self._broker.emit_after("process_boot")
        self._worker.start()

    def stop(self) -> None:
        """Take no more, let the running ones end within the grace, and give back the rest."""
        self._worker.stop(timeout=round(self._stop_seconds * 1000))
        self._broker.close()


def configure(
    settings: Settings, *, on_dead: OnDead | None = None, resources: Resources[Any] | None = None
) -> Broker:
    """Return the broker that `dramatiq` finds; set up logs, and metrics at the setting's port."""
    configure_logging(settings.logs)
    broker = make_broker(settings.tasks, on_dead=on_dead, resources=resources)
    broker.add_middleware(MetricsPage(settings.server.host, settings.server.port))
    dramatiq.set_broker(broker)
    return broker


class MetricsPage(Middleware):
    """Serves the metrics of the first worker process; run one process per container."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._server: WSGIServer | None = None

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        try:
            self._server, _ = start_http_server(self._port, self._host, REGISTRY)
        except OSError as error:
            log.warning("metrics_not_served", port=self._port, error=str(error))

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
