"""Ends what still runs when a worker has been asked to stop and its grace is over."""

from __future__ import annotations

import threading

from dramatiq import Broker, Worker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware, Shutdown, raise_thread_exception

# Longer than Dramatiq waits for an interrupted coroutine.
AGAIN_SECONDS = 2.0


def was_interrupted(exception: BaseException | None) -> bool:
    """Return whether the task ended because its process stops, at once or after a slow clean-up."""
    ended = (exception, exception.__cause__ if exception is not None else None)
    return any(isinstance(each, Shutdown) for each in ended)


class GraceThenInterrupt(Middleware):
    """Raises Shutdown in running tasks after a grace; Retries puts those back at once.

    Dramatiq's ShutdownNotifications interrupts at once, or never.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._busy: set[int] = set()
        self._timer: threading.Timer | None = None

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._busy.add(threading.get_ident())

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        self._busy.discard(threading.get_ident())

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        self._busy.discard(threading.get_ident())

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._interrupt_after(self._grace_seconds)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _interrupt_after(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._interrupt)
        self._timer.daemon = True
        self._timer.start()

    def _interrupt(self) -> None:
        for thread_id in tuple(self._busy):
            raise_thread_exception(thread_id, Shutdown)
        # An exception that is raised in the midst of anything may be lost, as in a `__del__`.
        self._interrupt_after(AGAIN_SECONDS)
