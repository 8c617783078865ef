"""The roles that follow what was recorded and act on it: relay, consumers, tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import structlog

from backlot.bootstrap import Parts
from engine.codec import MAPPER
from engine.command_bus import CommandBus
from engine.messages import Consumer, Keeper
from engine.notifications import CHANNELS, EVENTS
from engine.schedule import Job, run_job
from engine.sources import BEHIND_EVENTS, MessageSource
from engine.subscription import Subscription
from infra.cancellation import END_SECONDS, cancel
from infra.metrics import counter
from infra.settings import Role
from infra.settings.adapters import KafkaSettings
from infra.tasks.broker import make_broker, task_queues
from infra.tasks.dead_letters import FailedTask
from infra.tasks.resources import Resources
from infra.tasks.worker import TaskWorker
from projections.analytics import videos
from projections.integration_events import TELEMETRY
from projections.recommendations.cache import RecommendationInvalidation
from projections.recommendations.model import Weighing
from projections.trending.cache import TrendingInvalidation
from workers import analytics
from workers.analytics import Analytics, AnalyticsVideos
from workers.consumers import subscribe_consumer, subscribe_keeper
from workers.feeds import BATCH_EVENTS, LogSource
from workers.kafka_source import KafkaSource
from workers.recommendations import EngagementKeeper, Preparation, open_preparing, preparation_job
from workers.relay import subscribe_relay
from workers.speech import SpeechConsumer, media_urls, open_speech, wanted
from workers.tasks import TaskMeans, Tasks, declare, give_up
from workers.translation.task import Sweep, TranslationConsumer, open_translation, sweep_job

log = structlog.get_logger(__name__)

JOBS_BROKEN = counter(
    "backlot_jobs_broken",
    "Background jobs that ended by an error of their own, and run no more until a restart.",
)


async def start_working(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> None:
    """Start what the roles of this process are; `stack` ends it, and loses nothing by that."""
    roles = parts.settings.server.roles
    kafka = parts.settings.kafka if parts.settings.kafka.configured else None
    if Role.RELAY in roles and kafka is not None:
        in_background(_relay(parts, kafka).run(), stack)
    if roles & {Role.CONSUMERS, Role.TASKS}:
        tasks = await _tasks(parts, bus, stack)
        if Role.CONSUMERS in roles:
            _consume(parts, tasks, kafka, stack)
            _keep_analytics(parts, kafka, stack)


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


def _relay(parts: Parts, kafka: KafkaSettings) -> Subscription[Any]:
    settings = parts.settings
    return subscribe_relay(
        parts.database_url,
        kafka,
        notifications=parts.notifications,
        mapper=MAPPER,
        batch_events=settings.kafka.relay_batch_events,
        poll_seconds=settings.projections.poll_seconds,
    )


def _consume(
    parts: Parts, tasks: Tasks, kafka: KafkaSettings | None, stack: AsyncExitStack
) -> None:
    settings = parts.settings
    consumers: list[Consumer] = [TranslationConsumer(tasks.translate_comment)]
    if wanted(settings.speech):
        consumers.append(SpeechConsumer(tasks.transcribe_video))
    for consumer in consumers:
        source = _source(parts, consumer, kafka)
        poll = settings.projections.poll_seconds
        subscription = subscribe_consumer(parts.database_url, consumer, source, poll_seconds=poll)
        in_background(subscription.run(), stack)
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


def _keep_analytics(parts: Parts, kafka: KafkaSettings | None, stack: AsyncExitStack) -> None:
    settings = parts.settings
    repeat = settings.watch.view_repeat
    rankings = TrendingInvalidation(parts.redis)
    profiles = RecommendationInvalidation(parts.redis, settings.recommendations)
    keepers: list[Keeper] = [
        Analytics(repeat, counted=rankings.touch),
        EngagementKeeper(Weighing.from_settings(settings.recommendations), changed=profiles.touch),
    ]
    for keeper in keepers:
        _keep(parts, keeper, _source(parts, keeper, kafka, BEHIND_EVENTS), stack)
    feed = analytics.feed(BEHIND_EVENTS)
    wake = parts.notifications.subscribe(EVENTS)
    following = LogSource(videos.UPLOAD_TOPICS, wake=wake, mapper=MAPPER, following=[feed])
    _keep(parts, AnalyticsVideos(repeat), following, stack)


def _keep(parts: Parts, keeper: Keeper, source: MessageSource, stack: AsyncExitStack) -> None:
    settings = parts.settings
    subscription = subscribe_keeper(
        parts.analytics_url,
        keeper,
        source,
        log_url=parts.database_url,
        batch_events=settings.analytics.batch_events,
        flush_seconds=settings.analytics.flush_seconds,
        poll_seconds=settings.projections.poll_seconds,
        hurried=parts.notifications.hurried(),
    )
    in_background(subscription.run(), stack)


def _source(
    parts: Parts,
    consumer: Consumer | Keeper,
    kafka: KafkaSettings | None,
    at_once: int = BATCH_EVENTS,
) -> MessageSource:
    """Kafka where it is configured, else the event log itself."""
    if kafka is not None:
        hurried = parts.notifications.hurried()
        return KafkaSource(consumer.topics, kafka, batch_messages=at_once, hurried=hurried)
    channels = CHANNELS if TELEMETRY.intersection(consumer.topics) else (EVENTS,)
    wake = parts.notifications.subscribe(*channels)
    return LogSource(consumer.topics, wake=wake, mapper=MAPPER, batch_events=at_once)
