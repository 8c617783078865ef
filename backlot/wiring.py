"""The one place where the parts are chosen from the settings and put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import structlog
from fastapi import APIRouter, FastAPI, Response
from psycopg import Cursor
from psycopg.rows import TupleRow

import commands.app
import commands.objects
import readapi.app
import readapi.objects
from backlot.docs import mount_docs
from commands.bus import CommandBus
from commands.catalog import ChangeVideo, Engagement
from commands.command import Command, Lookup
from commands.endpoint import Services
from commands.likes import ChangeLike
from infra import metrics, telemetry
from infra.auth import Authenticator, make_authenticator, read_or_make_secret
from infra.codec import EventMapper
from infra.contract import Readiness
from infra.data_folder import DataFolder
from infra.errors import OperatorError
from infra.event_store import GroupCommitRecorder, open_recorder
from infra.http import create_app, wire
from infra.objects import FolderStore, ObjectStoreUnavailable
from infra.postgres import EmbeddedPostgres
from infra.settings import Role, Settings
from projections.catalog import Catalog
from projections.comments import Comments
from projections.host import ProjectionHost
from projections.install import install
from projections.likes import Likes
from projections.waiting import Waiting
from workers.housekeeping import keep_house

log = structlog.get_logger(__name__)

CHECK_SECONDS = 2.0
CONNECT_SECONDS = 5


class DatabaseUnreachable(OperatorError):
    """The configured PostgreSQL does not take this program's connection."""


@dataclass(frozen=True)
class ReadModels:
    """The projections of this program."""

    catalog: Catalog
    likes: Likes
    comments: Comments

    def all(self) -> tuple[Catalog, Likes, Comments]:
        return (self.catalog, self.likes, self.comments)


@dataclass(frozen=True)
class Parts:
    """The running parts of one process."""

    settings: Settings
    database_url: str
    authenticator: Authenticator
    objects: FolderStore
    recorder: GroupCommitRecorder
    models: ReadModels
    host: ProjectionHost | None


def open_parts(settings: Settings, stack: ExitStack) -> Parts:
    """Start what the settings ask for; `stack` stops it again, in reverse order.

    Raises OperatorError with one clear line when a part can't start.
    """
    folder = stack.enter_context(DataFolder(settings.data_dir))
    database_url = _database(settings, folder, stack)
    secret = read_or_make_secret(folder.secret)
    models = ReadModels(Catalog(), Likes(), Comments())
    recorder = open_recorder(database_url)
    stack.callback(recorder.datastore.close)
    with psycopg.connect(database_url, autocommit=True) as conn:
        telemetry.install(conn)
        install(conn, models.all())
    objects = FolderStore(
        folder.objects,
        secret.encode(),
        timedelta(seconds=settings.url_ttl_seconds),
        lambda: datetime.now(UTC),
    )
    if Role.COMMANDS in settings.roles:
        # Only the process that takes uploads may sweep up what a crash left of them.
        _recover(objects)
    host = None
    if Role.PROJECTIONS in settings.roles:
        host = ProjectionHost(
            database_url,
            models.all(),
            batch_events=settings.projection_batch_events,
            poll_seconds=settings.projection_poll_seconds,
        )
        host.start()
        stack.callback(host.stop)
    authenticator = make_authenticator(settings, secret)
    return Parts(settings, database_url, authenticator, objects, recorder, models, host)


def _recover(objects: FolderStore) -> None:
    try:
        asyncio.run(objects.recover())
    except ObjectStoreUnavailable as error:
        raise OperatorError(error.cause) from error


def _database(settings: Settings, folder: DataFolder, stack: ExitStack) -> str:
    if settings.database_url is None:
        return stack.enter_context(EmbeddedPostgres(folder.postgres)).url
    url = settings.database_url.get_secret_value()
    try:
        psycopg.connect(url, connect_timeout=CONNECT_SECONDS).close()
    except psycopg.OperationalError as error:
        raise DatabaseUnreachable(
            f"DATABASE_URL: PostgreSQL can't be reached there: {' '.join(str(error).split())}"
        ) from error
    return url


def make_app(parts: Parts) -> FastAPI:
    """The HTTP application with the routers of the roles that this process has."""
    roles = parts.settings.roles
    routers: list[APIRouter] = []
    translate: dict[type[Exception], Callable[[Any], Any]] = {}
    # Commands first: routes are tried in order, and likes are what comes most.
    if Role.COMMANDS in roles:
        routers += [*commands.app.routers(), commands.objects.router(parts.objects)]
        translate |= commands.app.translate
    if Role.QUERIES in roles:
        routers += [*readapi.app.routers(), readapi.objects.router(parts.objects)]
        translate |= readapi.app.translate
    app = create_app(
        title="Backlot",
        authenticator=parts.authenticator,
        body_limit=parts.settings.body_limit_bytes,
        translate=translate,
        unlimited=("/objects/",),
        lifespan=lambda app: _lifespan(app, parts),
        docs_url=None,
        redoc_url=None,
    )
    for router in [*routers, _operations(parts)]:
        # Not `include_router`: it nests, and each level is searched again for every request.
        app.router.routes.extend(router.routes)
    mount_docs(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI, parts: Parts) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if Role.QUERIES in parts.settings.roles:
            app.state.queries = await _queries(parts, stack)
        if Role.COMMANDS in parts.settings.roles:
            app.state.commands = _commands(parts, stack)
        if Role.WORKERS in parts.settings.roles:
            ttl = parts.settings.idempotency_ttl_hours
            task = asyncio.create_task(keep_house(parts.recorder, ttl))
            stack.callback(task.cancel)
        yield


async def _queries(parts: Parts, stack: AsyncExitStack) -> readapi.app.Queries:
    pool = readapi.app.make_pool(parts.database_url)
    await pool.open()
    stack.push_async_callback(pool.close)
    return readapi.app.Queries(
        pool=pool,
        catalog=parts.models.catalog,
        likes=parts.models.likes,
        comments=parts.models.comments,
        waiting=Waiting(pool),
        objects=parts.objects,
        views=telemetry.Views(),
        mapper=EventMapper(),
    )


def _commands(parts: Parts, stack: AsyncExitStack) -> Services:
    settings = parts.settings
    bus = CommandBus(
        parts.recorder,
        lookups=_lookups(parts.models),
        max_batch=settings.command_batch_max,
        max_waiting=settings.command_queue_max,
        retries=settings.command_retries,
    )
    stack.push_async_callback(bus.close)
    taken = telemetry.Telemetry(parts.database_url)
    taken.open()
    stack.push_async_callback(taken.close)
    return Services(
        bus=bus,
        objects=parts.objects,
        telemetry=taken,
        part_size_bytes=settings.part_size_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        public_url=settings.configured_public_url,
    )


def _lookups(models: ReadModels) -> dict[type[Command[Any]], Lookup]:
    """What answers of commands include of the read models, which commands may not import."""

    def others(cursor: Cursor[TupleRow], wishes: Sequence[ChangeLike]) -> list[int]:
        return models.likes.others(cursor, [(wish.video_id, wish.viewer) for wish in wishes])

    def engagement(cursor: Cursor[TupleRow], changes: Sequence[ChangeVideo]) -> list[Engagement]:
        videos = [change.video_id for change in changes]
        likes = models.likes.others(cursor, [(video, "") for video in videos])
        comments = models.comments.counts_of(cursor, videos)
        views = telemetry.Views().of(cursor, videos)
        return [
            Engagement(count, comments.get(video, 0), views.get(video, 0))
            for video, count in zip(videos, likes, strict=True)
        ]

    return {ChangeLike: others, ChangeVideo: engagement}


def _operations(parts: Parts) -> APIRouter:
    """What operators and load balancers ask."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="The process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "A part does not answer"}},
        summary="Every part answers",
    )
    async def readyz() -> Response:
        readiness = await check(parts)
        return wire(readiness, 200 if readiness.ready else 503)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)

    return router


async def check(parts: Parts) -> Readiness:
    """Ask every part whether it is in order; each has 2 s to answer.

    Not ready is who can't do its work; a projection that stopped is told, but the rest goes on.
    """
    states = {
        "database": await _state(lambda: asyncio.to_thread(parts.recorder.max_notification_id)),
        "objects": await _state(parts.objects.check),
    }
    for runner in parts.host.status() if parts.host else ():
        states[f"projection {runner.name}"] = {
            "ok": runner.in_order,
            "serves": runner.serves,
            "state": str(runner.state),
            "position": runner.position,
            "lagEvents": runner.lag_events,
            "detail": runner.detail,
        }
    ready = all(state.pop("serves", state["ok"]) for state in states.values())
    return Readiness(ready=ready, parts=states)


async def _state(ask: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await ask()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return {"ok": False, "detail": f"{type(error).__name__}: {error}"}
    return {"ok": True}
