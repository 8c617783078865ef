"""A Dramatiq worker inside this process, as `make up` runs it."""

from __future__ import annotations

from dramatiq import Broker, Worker

from infra.settings.adapters import TaskSettings

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
        """Take tasks from now on. Raises ResourcesUnavailable."""
        self._broker.emit_after("process_boot")
        self._worker.start()

    def stop(self) -> None:
        """Take no more, let the running ones end within the grace, and give back the rest."""
        self._worker.stop(timeout=round(self._stop_seconds * 1000))
        self._broker.close()
