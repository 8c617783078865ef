"""The composition of one process: its parts from the settings, its application, its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from redis.asyncio import Redis

from backlot.database import persons_of
from backlot.features import FEATURES, PERSONAL, read_models, replayable
from backlot.http import applications
from backlot.installation import erase_restored, open_objects, prepare_database, reached
from backlot.overview import open_overview
from backlot.privacy import personal_data
from backlot.signals import last_word
from commands.endpoint import Quotas, Services
from commands.erasure import ErasureTerms
from domain.moderation import WatchedWords
from engine import telemetry
from engine.checkpoints import Waiting
from engine.command_bus import CommandBus
from engine.erasures import FENCED
from engine.event_store import open_recorder
from engine.log import MAPPER
from engine.lookups import Lookup, Reader, Tally
from engine.projection_subscription import ProjectionHost
from engine.schedule import in_background, schedule
from engine.seals.chain import Seal
from engine.seals.proofs import (
    Proofs,
    SealKey,
    configured_key,
    configured_proofs,
    configured_stamps,
)
from engine.seals.sealer import Sealer
from engine.subscription import EVENTS, Notifications
from engine.tail import SESSION as TAIL_SESSION
from engine.tail import LogTail
from engine.viewers import ViewerKeys
from infra.data_folder import DataFolder
from infra.http.app import HttpApp
from infra.http.auth import make_authenticator
from infra.http.keys import read_or_make_secret
from infra.http.rate_limits import Buckets, RateLimits
from infra.interpreter import quick_turns
from infra.kafka import client_options
from infra.llm.spending import write_down
from infra.postgres.connection import Limits, make_pool
from infra.postgres.server import SETTINGS, EmbeddedPostgres
from infra.redis import open_redis
from infra.redis_socket import connect_socket
from infra.redlock import make_redlock
from infra.security_log import SECURITY_LOG
from infra.settings import SERVING, Role, Settings
from infra.shared_buckets import SharedBuckets
from infra.tasks.broker import make_broker, task_queues
from infra.tasks.middleware import Resources
from infra.tasks.queues import FailedTask
from infra.tasks.worker import TaskWorker
from projections.analytics.queries import AnalyticsQueries
from projections.catalog import Catalog
from projections.dismissals import Dismissals
from projections.integration_events import TOPICS
from projections.like_counters import AsyncCounters
from projections.likes import Likes
from projections.recommendations.recommender import Recommender
from readapi.audit.routes import Integrity
from readapi.comment_cache import CommentCache
from readapi.erasure import ErasureSearch
from readapi.events import PublishedMessages
from readapi.likes import LikeCounts
from readapi.live import LiveVideos
from readapi.queries import Queries
from readapi.revocations import RevocationFollower
from readapi.spending import Budgets
from readapi.stream_slots import LiveLimits
from readapi.translation import TranslationRequests
from readapi.video_cache import VideoCache
from readapi.webhooks import WebhookSource
from workers.likes import open_counters
from workers.parts import Parts
from workers.recommendations import open_preparing
from workers.relay import subscribe_relay
from workers.speech import media_urls, open_speech
from workers.tasks import TaskMeans, Tasks, declare, give_up
from workers.translation import open_translation
from workers.uploads import open_reservations
from workers.webhooks import outbound_rules

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Shared:
    """What the first of several processes has opened for the others.

    `redis` is the socket of the Redis inside it; None where there is a server.
    """

    database_url: str
    redis: Path | None


def open_parts(
    settings: Settings,
    stack: ExitStack,
    *,
    gives_up: Callable[[], bool] = lambda: False,
    shared: Shared | None = None,
) -> Parts:
    """Start what the settings ask for; `stack` stops it again, in reverse order.

    A process that `shared` is given to joins the first one, which has prepared everything. Raises
    OperatorError with one clear line when a part can't start, and where one that takes long was
    broken off because of `gives_up`.
    """
    first = shared is None
    folder = stack.enter_context(DataFolder(settings.server.data_dir, joins=not first))
    secret = read_or_make_secret(folder.secret)
    # First what is quick to find wrong: PostgreSQL takes seconds to start, and to stop again.
    if settings.kafka.configured:
        client_options(settings.kafka)
    objects = open_objects(settings, folder, secret, stack, first=first)
    seal_key = configured_key(settings.seals)
    proofs = configured_proofs(settings.seals, settings.objects, folder.path)
    stamp = configured_stamps(settings.seals)
    database_url = shared.database_url if shared else _database(settings, folder, stack, gives_up)
    models = read_models()
    limits = Limits.from_settings(settings.database)
    if first:
        prepare_database(settings, database_url)
    persons = persons_of(settings, database_url)
    stack.callback(persons.close)
    persons.open()
    if first:
        erase_restored(settings, database_url, persons, proofs)
    recorder = open_recorder(database_url, limits=limits)
    stack.callback(recorder.close)
    notifications, host = Notifications(database_url), None
    if Role.PROJECTIONS in settings.server.roles:
        host = ProjectionHost(
            database_url,
            models.all(),
            notifications,
            batch_events=settings.projections.batch_events,
            poll_seconds=settings.projections.poll_seconds,
        )
    redis = _redis(settings, shared)
    return Parts(
        settings,
        database_url,
        settings.analytics.url(database_url),
        make_authenticator(settings.auth, secret, persons),
        objects,
        recorder,
        persons,
        models,
        notifications,
        host,
        redis,
        make_redlock(redis, settings.redis.lock_urls),
        open_counters(settings, stack),
        places=PERSONAL,
        sealer=_sealer(settings, database_url, seal_key, proofs, stamp),
        proofs=proofs,
        limits=limits,
        secret=secret,
    )


def _redis(settings: Settings, shared: Shared | None) -> Redis:
    if shared is None or shared.redis is None:
        return open_redis(settings.redis.url)
    return connect_socket(shared.redis)


def _sealer(
    settings: Settings,
    database_url: str,
    key: SealKey | None,
    proofs: Proofs,
    stamp: Callable[[Seal], bytes | None],
) -> Sealer | None:
    if Role.WORKERS not in settings.server.roles:
        return None
    return Sealer(
        database_url,
        block_events=settings.seals.block_events,
        block_seconds=settings.seals.block_seconds,
        key=key,
        head=proofs.outside.head,
        anchors=proofs.outside.anchors,
        stamp=stamp,
    )


def _database(
    settings: Settings, folder: DataFolder, stack: ExitStack, gives_up: Callable[[], bool]
) -> str:
    if settings.database.url is None:
        beside = (settings.server.processes - 1) * CONNECTIONS_EACH
        most = {"max_connections": str(int(SETTINGS["max_connections"]) + beside)}
        listen = settings.database.listen
        server = EmbeddedPostgres(folder.postgres, settings=most, listen=listen, gives_up=gives_up)
        stack.enter_context(last_word(server.part_with))
        return stack.enter_context(server).url
    url = settings.database.url.get_secret_value()
    if settings.database.owner_url is None:
        # Else its user may have to be made first.
        reached(url, "DATABASE_URL").close()
    return url


CONNECTIONS_EACH = 40  # What one more process that serves may open.
FOLLOWING = frozenset({Role.PROJECTIONS, Role.RELAY, Role.CONSUMERS})
"""The roles that follow what is recorded."""
# An operation at hand stops within 30 seconds, and its children within 15 more.
LONGEST_STOP_SECONDS = 50.0


def make_app(parts: Parts) -> HttpApp:
    """Return the HTTP application of this process; see `backlot.http`."""
    return applications(parts, lambda app: _lifespan(app, parts))


@asynccontextmanager
async def _lifespan(app: HttpApp, parts: Parts) -> AsyncIterator[None]:
    """Run what the roles of this process are; the end of the block loses nothing."""
    roles = parts.settings.server.roles
    async with AsyncExitStack() as stack:
        # Commands, projections and consumers compute in threads beside the loop.
        stack.enter_context(quick_turns())
        _keep_accounts(parts, stack)
        if roles & (FOLLOWING | SERVING):
            in_background(parts.notifications.run(), stack)
        if roles & SERVING:
            app.state.revocations = await _revocations(parts, stack)
        if (host := parts.host) is not None:
            reactors = (each for feature in FEATURES for each in feature.reactors(parts, host))
            for work in [host.run(), *reactors]:
                in_background(work, stack, seconds=LONGEST_STOP_SECONDS)
        stack.push_async_callback(parts.redis.aclose)
        stack.push_async_callback(parts.locks.aclose)
        buckets = _limit_rates(app, parts, stack)
        if Role.QUERIES in roles:
            await _answer_queries(app, parts, stack)
        bus = _bus(parts)
        stack.push_async_callback(bus.close)
        if Role.COMMANDS in roles:
            app.state.commands = await _commands(parts, bus, buckets, stack)
            privacy = parts.settings.privacy
            app.state.erasure = ErasureTerms(
                parts.persons, privacy.forget_videos, privacy.privacy_self_service
            )
        if Role.WORKERS in roles:
            jobs = [job for feature in FEATURES for job in feature.jobs(parts, bus)]
            for close in parts.closings:
                stack.push_async_callback(close)
            schedule(jobs, stack)
        tasks = await _follow(parts, bus, stack)
        if tasks is not None and _takes_requests(parts.settings):
            in_background(app.state.queries.requests.run(tasks.translate_on_demand), stack)
        yield


def _keep_accounts(parts: Parts, stack: AsyncExitStack) -> None:
    """Have written down what security events there are, and what language models take."""
    in_background(SECURITY_LOG.run(), stack)
    if parts.settings.llm.configured:
        in_background(write_down(parts.database_url), stack)


def _limit_rates(app: HttpApp, parts: Parts, stack: AsyncExitStack) -> Buckets | None:
    """Have the application limit its callers; return the buckets, None where nothing is limited."""
    settings = parts.settings
    if not settings.rate_limits.on:
        return None
    alone = settings.redis.url is None and settings.server.processes == 1
    buckets = Buckets() if alone else SharedBuckets(parts.redis)
    stack.push_async_callback(buckets.aclose)
    app.limit_rates(RateLimits(buckets, settings.rate_limits))
    return buckets


async def _revocations(parts: Parts, stack: AsyncExitStack) -> RevocationFollower:
    """Return what follows the revocations, with all that stand: no request comes before."""
    wake = parts.notifications.subscribe(EVENTS)
    follower = RevocationFollower(parts.recorder, parts.authenticator, wake)
    await follower.refresh()
    in_background(follower.run(), stack)
    return follower


async def _answer_queries(app: HttpApp, parts: Parts, stack: AsyncExitStack) -> None:
    """Open what the routes of the role `queries` find in the application's state."""
    app.state.queries = await _queries(parts, stack)
    app.state.overview = open_overview(parts, app.state.queries, stack)
    app.state.published = _published(parts, stack)
    app.state.task_queues = task_queues(parts.settings.tasks)
    app.state.budgets = Budgets.of(parts.redis, parts.settings)
    app.state.webhooks = WebhookSource(parts.recorder, parts.persons)
    app.state.integrity = Integrity(parts.database_url, parts.proofs, MAPPER.topics)
    stack.push_async_callback(app.state.integrity.close)
    given = (parts.settings, parts.database_url, parts.redis, parts.objects)
    app.state.personal_data = personal_data(*given, parts.persons)
    app.state.erasures = ErasureSearch(parts.persons, parts.database_url)


async def _queries(parts: Parts, stack: AsyncExitStack) -> Queries:
    settings = parts.settings
    likes, catalog = parts.models[Likes], parts.models[Catalog]
    pool = make_pool(parts.database_url, limits=parts.limits)
    await pool.open()
    stack.push_async_callback(pool.close)
    # It has one for itself, since every read waits for it.
    tail_pool = make_pool(parts.database_url, max_size=1, limits=parts.limits, session=TAIL_SESSION)
    await tail_pool.open()
    stack.push_async_callback(tail_pool.close)
    tail = LogTail(tail_pool, (each.schema for each in parts.models.all()))
    stack.push_async_callback(tail.aclose)
    in_background(tail.run(parts.notifications.subscribe()), stack)
    ttl = settings.likes.counter_ttl_seconds
    counts = LikeCounts(AsyncCounters(parts.redis, ttl) if parts.counters else None)
    cache = VideoCache(
        pool,
        tail,
        parts.persons,
        likes,
        ranking_seconds=min(1.0, settings.trending.invalidate_seconds),
        offer_seconds=settings.recommendations.invalidate_seconds,
    )
    comments = CommentCache(pool, tail, parts.persons, likes)
    waiting = Waiting(pool, parts.models.all())
    live = LiveVideos(
        *(pool, tail, cache, comments, waiting),
        wake=parts.notifications.subscribe(EVENTS),
        limits=LiveLimits.of(settings),
    )
    parts.endings.append(live.close)
    stack.push_async_callback(live.close)
    analytics = await AnalyticsQueries.open(
        settings.trending, parts.analytics_url, parts.redis, pool, parts.limits
    )
    stack.push_async_callback(analytics.aclose)
    recommendations = Recommender(
        settings.recommendations,
        settings.llm,
        parts.redis,
        pool,
        analytics,
        likes=likes,
        catalog=catalog,
        dismissals=parts.models[Dismissals],
        described=cache.described,
    )
    stack.push_async_callback(recommendations.aclose)
    return Queries(
        pool=pool,
        models=parts.models,
        waiting=waiting,
        counts=counts,
        live=live,
        tail=tail,
        cache=cache,
        comment_cache=comments,
        objects=parts.objects,
        analytics=analytics,
        recommendations=recommendations,
        requests=TranslationRequests(parts.redis, settings.translation),
        stats_public=settings.analytics.stats_public,
    )


def _published(parts: Parts, stack: AsyncExitStack) -> PublishedMessages:
    wake = parts.notifications.subscribe()
    limits = LiveLimits.of(parts.settings)
    published = PublishedMessages(parts.database_url, wake, limits, parts.limits)
    parts.endings.append(published.close)
    stack.push_async_callback(published.aclose)
    in_background(published.run(), stack)
    return published


def _bus(parts: Parts) -> CommandBus:
    settings = parts.settings
    readers: dict[type[Lookup[Any]], Reader | Tally] = {}
    for feature in FEATURES:
        readers |= feature.lookups(parts.models)
    return CommandBus(
        parts.recorder,
        readers=readers,
        telemetry=telemetry.HEAD,
        fenced=FENCED,
        max_batch=settings.commands.batch_max,
        max_waiting=settings.commands.queue_max,
        retries=settings.commands.retries,
    )


async def _commands(
    parts: Parts, bus: CommandBus, buckets: Buckets | None, stack: AsyncExitStack
) -> Services:
    settings = parts.settings
    repeat = settings.watch.view_repeat
    taken = telemetry.Telemetry(parts.database_url, repeat=repeat, limits=parts.limits)
    taken.open()
    stack.push_async_callback(taken.close)
    return Services(
        bus=bus,
        objects=parts.objects,
        locks=parts.locks,
        telemetry=taken,
        part_size_bytes=settings.uploads.part_size_bytes,
        max_upload_bytes=settings.uploads.max_bytes,
        public_url=settings.server.configured_public_url,
        finalize_lock_seconds=settings.uploads.finalize_lock_seconds,
        finalize_wait_seconds=settings.uploads.finalize_wait_seconds,
        projections=replayable(),
        viewers=ViewerKeys(parts.database_url) if settings.watch.anonymous_viewers else None,
        quotas=None if buckets is None else Quotas(buckets, settings.quotas),
        reservations=await open_reservations(parts, stack),
        watched_words=WatchedWords(settings.moderation.words),
        published=frozenset(TOPICS),
        outbound=outbound_rules(settings.webhooks),
        upload_idle=timedelta(days=settings.uploads.idle_days),
        upload_longest=timedelta(days=settings.uploads.longest_days),
    )


async def _follow(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> Tasks | None:
    """Start what follows the log and acts on it: the relay, the consumers, the tasks.

    Return the tasks where this process sends or runs any.
    """
    settings, roles = parts.settings, parts.settings.server.roles
    if Role.RELAY in roles and settings.kafka.configured:
        relay = subscribe_relay(
            parts.database_url,
            settings.kafka,
            notifications=parts.notifications,
            batch_events=settings.kafka.relay_batch_events,
            poll_seconds=settings.projections.poll_seconds,
        )
        in_background(relay.run(), stack)
    if not roles & {Role.CONSUMERS, Role.TASKS} and not _takes_requests(settings):
        return None
    tasks = await _tasks(parts, bus, stack)
    # What is consumed, and the jobs that send tasks for what was missed.
    for feature in FEATURES if Role.CONSUMERS in roles else ():
        for subscription in feature.subscriptions(parts, bus, tasks):
            in_background(subscription.run(), stack)
        schedule(feature.sweeps(parts, tasks), stack)
    return tasks


def _takes_requests(settings: Settings) -> bool:
    """Return whether readers here may ask for translations, and somebody runs their tasks."""
    roles = settings.server.roles
    served = Role.TASKS in roles or settings.tasks.broker_url is not None
    return Role.QUERIES in roles and served and bool(settings.translation.on_demand)


async def _tasks(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> Tasks:
    """Return the tasks, to be sent; start a worker where this process runs them."""
    settings = parts.settings

    @asynccontextmanager
    async def open_means() -> AsyncIterator[TaskMeans]:
        with media_urls(settings.objects, parts.objects, settings.server.local_url) as media_url:
            opened = open_translation(settings.translation, settings.llm, bus, parts.redis)
            preparing = open_preparing(settings, parts.database_url, parts.redis)
            async with opened as translation, preparing as recommendations:
                speech = open_speech(settings.speech, bus, media_url)
                yield TaskMeans(translation, speech, recommendations)

    async def on_dead(failed: FailedTask) -> None:
        await give_up(resources.get(), failed)

    resources = Resources(open_means)
    loop = asyncio.get_running_loop()
    alone = settings.server.processes == 1
    broker = make_broker(
        settings.tasks, on_dead=on_dead, resources=resources, loop=loop, alone=alone
    )
    tasks = declare(broker, resources.get)
    if Role.TASKS in settings.server.roles:
        worker = TaskWorker(broker, settings.tasks)
        await asyncio.to_thread(worker.start)
        stack.push_async_callback(asyncio.to_thread, worker.stop)
    else:
        stack.push_async_callback(asyncio.to_thread, broker.close)
    return tasks
