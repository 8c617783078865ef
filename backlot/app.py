"""The HTTP application of one process: the routers of its roles on its parts, and its jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

import commands.problems
import readapi.problems
from backlot.bootstrap import object_routers
from backlot.features import FEATURES, replayable
from backlot.health import operations
from backlot.roles import in_background, start_job, start_working
from commands.endpoint import Services
from engine import telemetry
from engine.codec import MAPPER
from engine.command import Lookup, Reader
from engine.command_bus import CommandBus
from engine.freshness import Waiting
from engine.projection_subscription import ProjectionHost
from engine.telemetry import ViewerKeys
from infra.http.app import create_app
from infra.postgres.pool import make_pool
from infra.settings import Role
from projections.analytics.queries import AnalyticsQueries
from projections.catalog import Catalog
from projections.like_counters import AsyncCounters
from projections.likes import Likes
from projections.recommendations.recommender import Recommender
from readapi.audit.routes import Integrity
from readapi.live_counts import LikeCounts, LiveCounts
from readapi.queries import Queries
from workers.parts import Parts

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
    # Commands first: routes are tried in order, and likes come most.
    if Role.COMMANDS in roles:
        routers += (router for feature in FEATURES for router in feature.commands)
        translate |= commands.problems.translate
    if Role.QUERIES in roles:
        routers += (router for feature in FEATURES for router in feature.queries)
        translate |= readapi.problems.translate
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
        if parts.host is not None:
            _project(parts, parts.host, stack)
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
            _schedule(parts, bus, stack)
        await start_working(parts, bus, stack)
        yield


def _project(parts: Parts, host: ProjectionHost, stack: AsyncExitStack) -> None:
    """Run the projections, and what reacts to them."""
    reactors = (each for feature in FEATURES for each in feature.reactors(parts, host))
    for work in [host.run(), *reactors]:
        in_background(work, stack, seconds=LONGEST_STOP_SECONDS)


def _schedule(parts: Parts, bus: CommandBus, stack: AsyncExitStack) -> None:
    """Run the jobs of all features."""
    stack.push_async_callback(_close, parts)
    for feature in FEATURES:
        for job in feature.jobs(parts, bus):
            start_job(job, stack)


async def _close(parts: Parts) -> None:
    for close in parts.closings:
        await close()


async def _queries(parts: Parts, stack: AsyncExitStack) -> Queries:
    settings = parts.settings
    likes, catalog = parts.models[Likes], parts.models[Catalog]
    pool = make_pool(parts.database_url, limits=parts.limits)
    await pool.open()
    stack.push_async_callback(pool.close)
    ttl = settings.likes.counter_ttl_seconds
    counters = AsyncCounters(parts.redis, ttl) if parts.counters else None
    counts = LikeCounts(likes, counters)
    live = LiveCounts(pool, catalog, counts)
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
    )
    stack.push_async_callback(recommendations.aclose)
    return Queries(
        pool=pool,
        models=parts.models,
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
    readers: dict[type[Lookup[Any]], Reader] = {}
    for feature in FEATURES:
        readers |= feature.lookups(parts.models)
    return CommandBus(
        parts.recorder,
        readers=readers,
        telemetry=telemetry.head,
        max_batch=settings.commands.batch_max,
        max_waiting=settings.commands.queue_max,
        retries=settings.commands.retries,
    )


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
        projections=replayable(),
        viewers=ViewerKeys(parts.database_url) if settings.watch.anonymous_viewers else None,
    )
