"""What a module that `dramatiq` is started with needs: a broker, logs, and a page of metrics."""

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
from infra.tasks.broker import make_broker
from infra.tasks.failed import OnDead
from infra.tasks.resources import Resources

log = structlog.get_logger(__name__)


def configure(
    settings: Settings,
    *,
    on_dead: OnDead | None = None,
    resources: Resources[Any] | None = None,
) -> Broker:
    """Logs as everywhere, and the broker that `dramatiq` finds; metrics at the setting's port."""
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
