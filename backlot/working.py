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
from engine.messages import Consumer, Keeper
from engine.notifications import CHANNELS, EVENTS
from engine.sources import BEHIND_EVENTS, MessageSource
from engine.subscription import Subscription
from infra import metrics
from infra.cancellation import END_SECONDS, cancel
from infra.codec import EventMapper
from infra.integration.topics import TELEMETRY
from infra.kafka import KafkaOptions
from infra.settings import Role
from infra.tasks import FailedTask, Resources, TaskWorker, make_broker, task_queues
from projections.analytics import trending_cache
from projections.recommendations import cache
from projections.recommendations.weighing import Weighing
from workers.analytics import uploads
from workers.analytics.keeper import Analytics, AnalyticsVideos
from workers.consuming.kafka import KafkaSource
from workers.consuming.log import BATCH_EVENTS, LogSource
from workers.consuming.subscriptions import subscribe_consumer, subscribe_keeper
from workers.recommendations.keeper import Recommendations
from workers.recommendations.opening import open_preparing
from workers.recommendations.preparing import Preparing, keep_preparing
from workers.relay import subscribe_relay
from workers.speech.consumer import SpeechConsumer
from workers.speech.opening import media_urls, open_speech, wanted
from workers.tasks import Means, Tasks, declare, give_up
from workers.translation.consumer import TranslationConsumer
from workers.translation.opening import open_translation
from workers.translation.sweep import Sweep, keep_sweeping

log = structlog.get_logger(__name__)


async def start_working(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> None:
    """Start what the roles of this process are; `stack` ends it, and loses nothing by that."""
    roles = parts.settings.roles
    kafka = KafkaOptions.from_settings(parts.settings)
    if Role.RELAY in roles and kafka is not None:
        in_background(_relay(parts, kafka).run(), stack)
    if roles & {Role.CONSUMERS, Role.TASKS}:
        tasks = await _tasks(parts, bus, stack)
        if Role.CONSUMERS in roles:
            _consume(parts, tasks, kafka, stack)
            _keep_analytics(parts, kafka, stack)


def in_background(
    job: Coroutine[Any, Any, None], stack: AsyncExitStack, *, seconds: float = END_SECONDS
) -> None:
    """Run a job without an end until `stack` is closed; one that breaks is told of at once."""
    task = asyncio.create_task(job)
    task.add_done_callback(_tell_broken)
    stack.push_async_callback(cancel, task, seconds=seconds)


def _tell_broken(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        metrics.JOBS_BROKEN.inc()
        log.error("job_broke", job=getattr(task.get_coro(), "__qualname__", ""), exc_info=error)


async def _tasks(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> Tasks:
    """The tasks, to be sent; and a worker where this process runs them."""
    settings = parts.settings

    @asynccontextmanager
    async def open_means() -> AsyncIterator[Means]:
        with media_urls(settings, parts.objects) as media_url:
            async with (
                open_translation(settings, bus, parts.redis) as translation,
                open_preparing(settings, parts.database_url, parts.redis) as recommendations,
            ):
                yield Means(translation, open_speech(settings, bus, media_url), recommendations)

    async def on_dead(failed: FailedTask) -> None:
        await give_up(resources.get(), failed)

    resources = Resources(open_means)
    loop = asyncio.get_running_loop()
    broker = make_broker(settings, on_dead=on_dead, resources=resources, loop=loop)
    tasks = declare(broker, resources.get)
    if Role.TASKS in settings.roles:
        worker = TaskWorker(broker, settings)
        await asyncio.to_thread(worker.start)
        stack.push_async_callback(asyncio.to_thread, worker.stop)
    else:
        stack.push_async_callback(asyncio.to_thread, broker.close)
    return tasks


def _relay(parts: Parts, kafka: KafkaOptions) -> Subscription[Any]:
    settings = parts.settings
    return subscribe_relay(
        parts.database_url,
        kafka,
        notifications=parts.notifications,
        mapper=EventMapper(),
        batch_events=settings.relay_batch_events,
        poll_seconds=settings.projection_poll_seconds,
    )


def _consume(parts: Parts, tasks: Tasks, kafka: KafkaOptions | None, stack: AsyncExitStack) -> None:
    settings = parts.settings
    consumers: list[Consumer] = [TranslationConsumer(tasks.translate_comment)]
    if wanted(settings):
        consumers.append(SpeechConsumer(tasks.transcribe_video))
    for consumer in consumers:
        source = _source(parts, consumer, kafka)
        poll = settings.projection_poll_seconds
        subscription = subscribe_consumer(parts.database_url, consumer, source, poll_seconds=poll)
        in_background(subscription.run(), stack)
    sweep = Sweep(
        parts.models.comments,
        tasks.translate_comment,
        task_queues(settings),
        overdue=timedelta(seconds=settings.translation_overdue_seconds),
        can_translate=settings.has_llm,
    )
    job = keep_sweeping(sweep, parts.database_url, settings.translation_sweep_seconds)
    in_background(job, stack)
    if settings.recommendations_precompute_seconds:
        preparing = Preparing(tasks.prepare_recommendations, task_queues(settings))
        seconds = settings.recommendations_precompute_seconds
        in_background(keep_preparing(preparing, parts.analytics_url, seconds), stack)


def _keep_analytics(parts: Parts, kafka: KafkaOptions | None, stack: AsyncExitStack) -> None:
    settings = parts.settings
    repeat = timedelta(seconds=settings.view_repeat_seconds)
    rankings = trending_cache.Invalidation(parts.redis)
    profiles = cache.Invalidation(parts.redis, settings)
    keepers: list[Keeper] = [
        Analytics(repeat, counted=rankings.touch),
        Recommendations(Weighing.from_settings(settings), changed=profiles.touch),
    ]
    for keeper in keepers:
        _keep(parts, keeper, _source(parts, keeper, kafka, BEHIND_EVENTS), stack)
    feed = uploads.feed(EventMapper(), BEHIND_EVENTS)
    wake = parts.notifications.subscribe(EVENTS)
    following = LogSource(uploads.TOPICS, wake=wake, mapper=EventMapper(), following=[feed])
    _keep(parts, AnalyticsVideos(repeat), following, stack)


def _keep(parts: Parts, keeper: Keeper, source: MessageSource, stack: AsyncExitStack) -> None:
    settings = parts.settings
    subscription = subscribe_keeper(
        parts.analytics_url,
        keeper,
        source,
        log_url=parts.database_url,
        batch_events=settings.analytics_batch_events,
        flush_seconds=settings.analytics_flush_seconds,
        poll_seconds=settings.projection_poll_seconds,
        hurried=parts.notifications.hurried(),
    )
    in_background(subscription.run(), stack)


def _source(
    parts: Parts,
    consumer: Consumer | Keeper,
    kafka: KafkaOptions | None,
    at_once: int = BATCH_EVENTS,
) -> MessageSource:
    """Kafka where it is configured, else the event log itself."""
    if kafka is not None:
        hurried = parts.notifications.hurried()
        return KafkaSource(consumer.topics, kafka, batch_messages=at_once, hurried=hurried)
    channels = CHANNELS if TELEMETRY.intersection(consumer.topics) else (EVENTS,)
    wake = parts.notifications.subscribe(*channels)
    return LogSource(consumer.topics, wake=wake, mapper=EventMapper(), batch_events=at_once)
