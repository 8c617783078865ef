"""The roles that follow what was recorded and act on it: relay, consumers, tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from backlot.features import FEATURES
from engine.codec import MAPPER
from engine.command_bus import CommandBus
from engine.schedule import Job, run_job
from engine.subscription import Subscription
from infra.cancellation import END_SECONDS, cancel
from infra.metrics import counter
from infra.settings import Role
from infra.tasks.broker import make_broker
from infra.tasks.queues import FailedTask
from infra.tasks.worker import Resources, TaskWorker
from workers.parts import Parts
from workers.recommendations import open_preparing
from workers.relay import subscribe_relay
from workers.speech import media_urls, open_speech
from workers.tasks import TaskMeans, Tasks, declare, give_up
from workers.translation import open_translation

log = structlog.get_logger(__name__)

JOBS_BROKEN = counter(
    "backlot_jobs_broken",
    "Background jobs that ended by an error of their own, and run no more until a restart.",
)


async def start_working(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> None:
    """Start what the roles of this process are; `stack` ends it, and loses nothing by that."""
    roles = parts.settings.server.roles
    if Role.RELAY in roles and parts.settings.kafka.configured:
        in_background(_relay(parts).run(), stack)
    if roles & {Role.CONSUMERS, Role.TASKS}:
        tasks = await _tasks(parts, bus, stack)
        if Role.CONSUMERS in roles:
            _consume(parts, tasks, stack)


def start_job(job: Job, stack: AsyncExitStack) -> None:
    """Run a scheduled job until `stack` is closed."""
    in_background(run_job(job), stack, name=job.name)


def in_background(
    work: Coroutine[Any, Any, None],
    stack: AsyncExitStack,
    *,
    name: str | None = None,
    seconds: float = END_SECONDS,
) -> None:
    """Run work without an end until `stack` is closed; if it breaks, that is logged at once."""
    task = asyncio.create_task(work, name=name or getattr(work, "__qualname__", None))
    task.add_done_callback(_tell_broken)
    stack.push_async_callback(cancel, task, seconds=seconds)


def _tell_broken(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        JOBS_BROKEN.inc()
        log.error("job_broke", job=task.get_name(), exc_info=error)


async def _tasks(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> Tasks:
    """The tasks, to be sent; and a worker where this process runs them."""
    settings = parts.settings

    @asynccontextmanager
    async def open_means() -> AsyncIterator[TaskMeans]:
        with media_urls(settings.objects, parts.objects, settings.server.local_url) as media_url:
            async with (
                open_translation(
                    settings.translation, settings.llm, bus, parts.redis
                ) as translation,
                open_preparing(settings, parts.database_url, parts.redis) as recommendations,
            ):
                yield TaskMeans(
                    translation, open_speech(settings.speech, bus, media_url), recommendations
                )

    async def on_dead(failed: FailedTask) -> None:
        await give_up(resources.get(), failed)

    resources = Resources(open_means)
    loop = asyncio.get_running_loop()
    broker = make_broker(settings.tasks, on_dead=on_dead, resources=resources, loop=loop)
    tasks = declare(broker, resources.get)
    if Role.TASKS in settings.server.roles:
        worker = TaskWorker(broker, settings.tasks)
        await asyncio.to_thread(worker.start)
        stack.push_async_callback(asyncio.to_thread, worker.stop)
    else:
        stack.push_async_callback(asyncio.to_thread, broker.close)
    return tasks


def _relay(parts: Parts) -> Subscription[Any]:
    settings = parts.settings
    return subscribe_relay(
        parts.database_url,
        settings.kafka,
        notifications=parts.notifications,
        mapper=MAPPER,
        batch_events=settings.kafka.relay_batch_events,
        poll_seconds=settings.projections.poll_seconds,
    )


def _consume(parts: Parts, tasks: Tasks, stack: AsyncExitStack) -> None:
    """Follow what the features consume, and send tasks for what was missed."""
    for feature in FEATURES:
        for subscription in feature.subscriptions(parts, tasks):
            in_background(subscription.run(), stack)
        for job in feature.sweeps(parts, tasks):
            start_job(job, stack)
