"""Workers with toy actors, for tests of what every broker must do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from dramatiq import Actor

from infra.settings import load_settings
from infra.settings.adapters import TaskSettings
from infra.tasks.broker import make_broker
from infra.tasks.middleware import Resources
from infra.tasks.queues import TRANSLATION, FailedTask, OnDead, enqueue
from infra.tasks.worker import TaskWorker

WAIT_SECONDS = 180.0
QUICK = {
    "TASK_THREADS": "2",
    "TASK_MAX_RETRIES": "2",
    "TASK_MIN_BACKOFF_SECONDS": "0.2",
    "TASK_MAX_BACKOFF_SECONDS": "0.5",
    "TASK_TIME_LIMIT_SECONDS": "30",
    "TASK_STOP_SECONDS": "10",
    "TASK_HEARTBEAT_SECONDS": "2",
}

Work = Callable[..., Awaitable[None]]


def quick_settings(url: str | None, **changed: str) -> TaskSettings:
    """Short pauses and few threads; without a URL the broker is in this process."""
    where = {} if url is None else {"TASK_BROKER_URL": url}
    return load_settings({**QUICK, **where, **changed}).tasks


class Toy:
    """A worker with actors in the queue of translations; `dead` is what it was told to give up."""

    def __init__(
        self,
        settings: TaskSettings,
        *,
        resources: Resources[Any] | None = None,
        on_dead: OnDead | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        alone: bool = True,
    ) -> None:
        self.dead: list[FailedTask] = []
        self.broker = make_broker(
            settings,
            on_dead=on_dead or self._remember,
            resources=resources,
            loop=loop,
            alone=alone,
        )
        self.worker = TaskWorker(self.broker, settings)
        self._actors: dict[str, Actor[..., Any]] = {}

    async def _remember(self, failed: FailedTask) -> None:
        self.dead.append(failed)

    def actor(self, work: Work, **options: Any) -> None:
        """Declare it under its function's name."""
        declared = dramatiq.actor(broker=self.broker, queue_name=TRANSLATION, **options)(work)
        self._actors[declared.actor_name] = declared

    def send(self, name: str, *args: object) -> str:
        return enqueue(self._actors[name], *args, correlation_id="req-1", causation_id="event-1")

    @contextmanager
    def working(self) -> Iterator[None]:
        self.worker.start()
        try:
            yield
        finally:
            self.worker.stop()
