"""The roles that follow what was recorded and act on it: relay, consumers, tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import structlog

from backlot.wiring import Parts
from commands.bus import CommandBus
from engine.schedule import Job, run_job
from infra.cancellation import cancel
from infra.codec import MAPPER
from infra.kafka import KafkaOptions
from infra.metrics import counter
from infra.settings import Role
from infra.tasks import FailedTask, Resources, TaskWorker, make_broker, task_queues
from projections.analytics.trending_cache import TrendingInvalidation
from projections.recommendations.cache import RecommendationInvalidation
from projections.recommendations.weighing import Weighing
from workers.analytics import uploads
from workers.analytics.keeper import Analytics, AnalyticsVideos
from workers.consuming.kafka import KafkaSource
from workers.consuming.keeping import BEHIND_EVENTS, KeeperRunner
from workers.consuming.log import BATCH_EVENTS, LogSource
from workers.consuming.messages import Consumer, Keeper, Source
from workers.consuming.runner import ConsumerRunner
from workers.recommendations.keeper import EngagementKeeper
from workers.recommendations.opening import open_preparing
from workers.recommendations.preparing import Preparation, preparation_job
from workers.relay import Relay
from workers.speech.consumer import SpeechConsumer
from workers.speech.opening import media_urls, open_speech, wanted
from workers.tasks import TaskMeans, Tasks, declare, give_up
from workers.translation.consumer import TranslationConsumer
from workers.translation.opening import open_translation
from workers.translation.sweep import Sweep, sweep_job
from workers.waking import Waker

log = structlog.get_logger(__name__)

JOBS_BROKEN = counter(
    "backlot_jobs_broken",
    "Background jobs that ended by an error of their own, and run no more until a restart.",
)


async def start_working(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> None:
    """Start what the roles of this process are; `stack` ends it, and loses nothing by that."""
    roles = parts.settings.server.roles
    waker = Waker(parts.database_url)
    if roles & {Role.RELAY, Role.CONSUMERS}:
        in_background(waker.run(), stack)
    kafka = KafkaOptions.from_settings(parts.settings.kafka)
    if Role.RELAY in roles and kafka is not None:
        in_background(_relay(parts, kafka, waker).run(), stack)
    if roles & {Role.CONSUMERS, Role.TASKS}:
        tasks = await _tasks(parts, bus, stack)
        if Role.CONSUMERS in roles:
            _consume(parts, tasks, kafka, waker, stack)
            _keep_analytics(parts, kafka, waker, stack)


def start_job(job: Job, stack: AsyncExitStack) -> None:
    """Run a scheduled job until `stack` is closed."""
    in_background(run_job(job), stack, name=job.name)


def in_background(
    work: Coroutine[Any, Any, None], stack: AsyncExitStack, *, name: str | None = None
) -> None:
    """Run work without an end until `stack` is closed; if it breaks, that is logged at once."""
    task = asyncio.create_task(work, name=name or getattr(work, "__qualname__", None))
    task.add_done_callback(_tell_broken)
    stack.push_async_callback(cancel, task)


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


def _relay(parts: Parts, kafka: KafkaOptions, waker: Waker) -> Relay:
    settings = parts.settings
    return Relay(
        parts.database_url,
        kafka,
        waker=waker,
        mapper=MAPPER,
        batch_events=settings.kafka.relay_batch_events,
        poll_seconds=settings.projections.poll_seconds,
    )


def _consume(
    parts: Parts, tasks: Tasks, kafka: KafkaOptions | None, waker: Waker, stack: AsyncExitStack
) -> None:
    settings = parts.settings
    consumers: list[Consumer] = [TranslationConsumer(tasks.translate_comment)]
    if wanted(settings.speech):
        consumers.append(SpeechConsumer(tasks.transcribe_video))
    for consumer in consumers:
        source = _source(consumer, kafka, waker)
        poll = settings.projections.poll_seconds
        runner = ConsumerRunner(parts.database_url, consumer, source, poll_seconds=poll)
        in_background(runner.run(), stack)
    sweep = Sweep(
        parts.models.comments,
        tasks.translate_comment,
        task_queues(settings.tasks),
        overdue=timedelta(seconds=settings.translation.overdue_seconds),
        can_translate=settings.llm.configured,
    )
    job = sweep_job(sweep, parts.database_url, settings.translation.sweep_seconds)
    start_job(job, stack)
    if settings.recommendations.precompute_seconds:
        preparation = Preparation(tasks.prepare_recommendations, task_queues(settings.tasks))
        seconds = settings.recommendations.precompute_seconds
        start_job(preparation_job(preparation, parts.analytics_url, seconds), stack)


def _keep_analytics(
    parts: Parts, kafka: KafkaOptions | None, waker: Waker, stack: AsyncExitStack
) -> None:
    settings = parts.settings
    repeat = settings.watch.view_repeat
    rankings = TrendingInvalidation(parts.redis)
    profiles = RecommendationInvalidation(parts.redis, settings.recommendations)
    keepers: list[Keeper] = [
        Analytics(repeat, counted=rankings.touch),
        EngagementKeeper(Weighing.from_settings(settings.recommendations), changed=profiles.touch),
    ]
    for keeper in keepers:
        _keep(parts, keeper, _source(keeper, kafka, waker, BEHIND_EVENTS), waker, stack)
    feed = uploads.feed(BEHIND_EVENTS)
    following = LogSource(uploads.TOPICS, wake=waker.subscribe(), mapper=MAPPER, following=[feed])
    _keep(parts, AnalyticsVideos(repeat), following, waker, stack)


def _keep(
    parts: Parts, keeper: Keeper, source: Source, waker: Waker, stack: AsyncExitStack
) -> None:
    settings = parts.settings
    runner = KeeperRunner(
        parts.analytics_url,
        keeper,
        source,
        log_url=parts.database_url,
        batch_events=settings.analytics.batch_events,
        flush_seconds=settings.analytics.flush_seconds,
        poll_seconds=settings.projections.poll_seconds,
        hurried=waker.hurried(),
    )
    in_background(runner.run(), stack)


def _source(
    consumer: Consumer | Keeper,
    kafka: KafkaOptions | None,
    waker: Waker,
    at_once: int = BATCH_EVENTS,
) -> Source:
    """Kafka where it is configured, else the event log itself."""
    if kafka is not None:
        return KafkaSource(consumer.topics, kafka, batch_messages=at_once, hurried=waker.hurried())
    wake = waker.subscribe()
    return LogSource(consumer.topics, wake=wake, mapper=MAPPER, batch_events=at_once)
