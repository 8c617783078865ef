"""Ends what still runs when a worker has been asked to stop and its grace is over."""

from __future__ import annotations

import threading

from dramatiq import Broker, Worker
from dramatiq.middleware import ShutdownNotifications


class GraceThenInterrupt(ShutdownNotifications):
    """Raises Shutdown in running tasks after a grace; Retries puts those back at once.

    The stock one interrupts at once, or never.
    """

    def __init__(self, grace_seconds: float) -> None:
        super().__init__(notify_shutdown=True)
        self._grace_seconds = grace_seconds
        self._timer: threading.Timer | None = None

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._timer = threading.Timer(self._grace_seconds, self.manager.shutdown)
        self._timer.daemon = True
        self._timer.start()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._timer is not None:
            self._timer.cancel()
