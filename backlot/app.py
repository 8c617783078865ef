"""The HTTP application of one process: the routers of its roles on its parts, and its jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from psycopg import Cursor
from psycopg.rows import TupleRow
from starlette.staticfiles import StaticFiles

import commands.app
import readapi.app
from backlot.bootstrap import Parts, ReadModels, object_routers
from backlot.health import operations
from backlot.roles import in_background, start_job, start_working
from commands.catalog import EngagementCounts, EngagementOf
from commands.endpoint import Services
from commands.likes import LikesOfOthers
from engine import telemetry
from engine.codec import MAPPER
from engine.command import Lookup, Reader
from engine.command_bus import CommandBus
from engine.freshness import Waiting
from engine.schedule import Job
from engine.telemetry import ViewerKeys
from infra.http.app import create_app
from infra.llm.embeddings import make_embedder
from infra.postgres.pool import make_pool
from infra.settings import Role
from projections.analytics.queries import AnalyticsQueries
from projections.analytics.rebuild import NAME as ANALYTICS
from projections.like_counters import NAME as COUNTERS
from projections.like_counters import AsyncCounters
from projections.recommendations.cache import open_recommendations
from projections.trending.formula import Formula
from readapi.audit.routes import Integrity
from readapi.live_counts import LikeCounts, LiveCounts
from readapi.queries import Queries
from workers.analytics import pruning_job
from workers.embeddings import embedding_job
from workers.likes import reconcile_job
from workers.maintenance import housekeeping_job, sealing_job
from workers.trending import settling_job
from workers.uploads import Expiry, expiry_job

STATIC = "/docs/static"


def mount_docs(app: FastAPI) -> None:
    """Serve `/docs`; the document itself is at `/openapi.json`."""
    app.mount(STATIC, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-static")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{app.title} API",
            swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{STATIC}/favicon.png",
        )


FOLLOWING = frozenset({Role.PROJECTIONS, Role.RELAY, Role.CONSUMERS})
"""The roles that follow what is recorded."""
# An operation at hand stops within 30 seconds, and its children within 15 more.
LONGEST_STOP_SECONDS = 50.0


def make_app(parts: Parts) -> FastAPI:
    """The HTTP application with the routers of the roles that this process has."""
    roles = parts.settings.server.roles
    routers: list[APIRouter] = []
    translate: dict[type[Exception], Callable[[Any], Any]] = {}
    # Commands first: routes are tried in order, and likes are what comes most.
    if Role.COMMANDS in roles:
        routers += commands.app.routers()
        translate |= commands.app.translate
    if Role.QUERIES in roles:
        routers += readapi.app.routers()
        translate |= readapi.app.translate
    app = create_app(
        title="Backlot",
        authenticator=parts.authenticator,
        body_limit=parts.settings.server.body_limit_bytes,
        translate=translate,
        unlimited=("/objects/",),
        lifespan=lambda app: _lifespan(app, parts),
        docs_url=None,
        redoc_url=None,
    )
    for router in [*routers, *object_routers(parts.objects, roles), operations(parts)]:
        # Not `include_router`: it nests, and each level is searched again for every request.
        app.router.routes.extend(router.routes)
    mount_docs(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI, parts: Parts) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if parts.settings.server.roles & FOLLOWING:
            in_background(parts.notifications.run(), stack)
        for background in parts.background:
            in_background(background(), stack, seconds=LONGEST_STOP_SECONDS)
        stack.push_async_callback(parts.redis.aclose)
        stack.push_async_callback(parts.locks.aclose)
        if Role.QUERIES in parts.settings.server.roles:
            app.state.queries = await _queries(parts, stack)
            app.state.integrity = _integrity(parts, stack)
        bus = _bus(parts)
        stack.push_async_callback(bus.close)
        if Role.COMMANDS in parts.settings.server.roles:
            app.state.commands = _commands(parts, bus, stack)
        if Role.WORKERS in parts.settings.server.roles:
            _embed(parts, stack)
            for job in _jobs(parts, bus):
                start_job(job, stack)
        await start_working(parts, bus, stack)
        yield


async def _queries(parts: Parts, stack: AsyncExitStack) -> Queries:
    settings = parts.settings
    pool = make_pool(parts.database_url, limits=parts.limits)
    await pool.open()
    stack.push_async_callback(pool.close)
    ttl = settings.likes.counter_ttl_seconds
    counters = AsyncCounters(parts.redis, ttl) if parts.counters else None
    counts = LikeCounts(parts.models.likes, counters)
    live = LiveCounts(pool, parts.models.catalog, counts)
    parts.endings.append(live.close)
    stack.push_async_callback(live.close)
    analytics = await AnalyticsQueries.open(
        settings.trending, parts.analytics_url, parts.redis, pool, parts.limits
    )
    stack.push_async_callback(analytics.aclose)
    recommendations = open_recommendations(
        settings.recommendations,
        settings.llm,
        parts.redis,
        pool,
        analytics,
        likes=parts.models.likes,
        catalog=parts.models.catalog,
    )
    stack.push_async_callback(recommendations.aclose)
    return Queries(
        pool=pool,
        catalog=parts.models.catalog,
        likes=parts.models.likes,
        comments=parts.models.comments,
        operations=parts.models.operations,
        audit=parts.models.audit,
        waiting=Waiting(pool, parts.models.all()),
        counts=counts,
        live=live,
        objects=parts.objects,
        views=telemetry.Views(),
        analytics=analytics,
        recommendations=recommendations,
    )


def _integrity(parts: Parts, stack: AsyncExitStack) -> Integrity:
    known_topics = MAPPER.topics
    integrity = Integrity(parts.database_url, parts.proofs, known_topics)
    stack.push_async_callback(integrity.close)
    return integrity


def _bus(parts: Parts) -> CommandBus:
    settings = parts.settings
    return CommandBus(
        parts.recorder,
        readers=_readers(parts.models),
        telemetry=telemetry.head,
        max_batch=settings.commands.batch_max,
        max_waiting=settings.commands.queue_max,
        retries=settings.commands.retries,
    )


def _jobs(parts: Parts, bus: CommandBus) -> list[Job]:
    """What the workers' role does on a schedule."""
    settings = parts.settings
    expiry = Expiry(
        bus=bus,
        objects=parts.objects,
        locks=parts.locks,
        catalog=parts.models.catalog,
        database_url=parts.database_url,
        idle=timedelta(days=settings.uploads.idle_days),
    )
    jobs = [
        housekeeping_job(
            parts.recorder,
            settings.commands.idempotency_ttl_hours,
            parts.database_url,
            settings.watch.view_repeat,
        ),
        expiry_job(expiry, settings.uploads.expiry_interval_seconds),
        settling_job(
            parts.analytics_url,
            Formula.from_settings(settings.trending),
            settings.trending.settle_seconds,
        ),
        pruning_job(parts.analytics_url, settings.analytics.retention_days),
    ]
    if parts.sealer is not None:
        jobs.append(sealing_job(parts.sealer, settings.seals.block_seconds))
    if parts.counters is not None:
        likes, interval = parts.models.likes, settings.likes.reconcile_seconds
        jobs.append(reconcile_job(parts.database_url, likes, parts.counters, interval))
    return jobs


def _embed(parts: Parts, stack: AsyncExitStack) -> None:
    """Keep the embeddings of the videos' texts, where a model for them is configured."""
    embedder = make_embedder(parts.settings.embeddings, parts.settings.llm)
    if embedder is not None:
        stack.push_async_callback(embedder.aclose)
        job = embedding_job(
            embedder,
            parts.models.catalog,
            database_url=parts.database_url,
            analytics_url=parts.analytics_url,
        )
        start_job(job, stack)


def _commands(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> Services:
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
        projections=frozenset(parts.models.by_name()) | {COUNTERS, ANALYTICS},
        viewers=ViewerKeys(parts.database_url) if settings.watch.anonymous_viewers else None,
    )


def _readers(models: ReadModels) -> dict[type[Lookup[Any]], Reader]:
    """Return what answers the commands' lookups from the read models, which they may not import."""

    def others(cursor: Cursor[TupleRow], lookups: Sequence[LikesOfOthers]) -> list[int]:
        return models.likes.others(cursor, [(each.video_id, each.viewer) for each in lookups])

    def engagement(
        cursor: Cursor[TupleRow], lookups: Sequence[EngagementOf]
    ) -> list[EngagementCounts]:
        videos = [each.video_id for each in lookups]
        likes = models.likes.others(cursor, [(video, "") for video in videos])
        comments = models.comments.counts_of(cursor, videos)
        views = telemetry.Views().of(cursor, videos)
        return [
            EngagementCounts(count, comments.get(video, 0), views.get(video, 0))
            for video, count in zip(videos, likes, strict=True)
        ]

    return {LikesOfOthers: others, EngagementOf: engagement}
