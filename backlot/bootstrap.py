"""The one place where the parts are chosen from the settings and put together."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any

import structlog
from fastapi import APIRouter
from psycopg import Connection, OperationalError
from psycopg.rows import TupleRow
from redis.asyncio import Redis

import commands.objects
import readapi.objects
from backlot.signals import last_word, run
from engine.codec import MAPPER
from engine.event_store import GroupCommitRecorder, open_recorder
from engine.inspection.index import Audit
from engine.installation import install, make_tables
from engine.migrations import ENGINE, migrate
from engine.notifications import Notifications
from engine.projection import Projection
from engine.projection_subscription import ProjectionHost
from engine.replay.records import tell_nobody
from engine.seals.anchors import (
    Proofs,
    configured_anchors,
    configured_key,
    configured_proofs,
)
from engine.seals.sealer import Sealer
from engine.seals.signature import SealKey
from infra.data_folder import DataFolder
from infra.errors import OperatorError
from infra.http.auth import Authenticator, make_authenticator, read_or_make_secret
from infra.objects.folder import FolderStore
from infra.objects.port import ObjectStore, ObjectStoreUnavailable
from infra.objects.s3 import make_s3, now
from infra.postgres.connection import SHORT_WORK, Limits, explained, open_connection
from infra.postgres.embedded import EmbeddedPostgres
from infra.redis import connect_blocking_redis, open_redis
from infra.redlock import Redlock, make_redlock
from infra.settings import Role, Settings
from projections import like_reconciliation
from projections.analytics import schema as analytics
from projections.analytics.arrival import AnalyticsMeans
from projections.catalog import Catalog
from projections.comments import Comments
from projections.like_counters import Counters, subscribe_counters
from projections.likes import Likes
from projections.operations import Operations
from workers.operations.action import Tools
from workers.operations.executor import Children, Executor


def open_objects(
    settings: Settings, folder: DataFolder, secret: str, stack: ExitStack
) -> ObjectStore:
    """The store of these settings, ready for this process's roles; `stack` closes it.

    Raises OperatorError with one clear line when the folder or the bucket is of no use.
    """
    if settings.objects.bucket is None:
        return _open_folder(settings, folder, secret)
    store = make_s3(settings.objects)
    stack.callback(store.close)
    if settings.server.roles != {Role.PROJECTIONS}:
        try:
            store.probe()
        except ObjectStoreUnavailable as error:
            raise OperatorError(error.cause) from error
    return store


def object_routers(store: ObjectStore, roles: frozenset[Role]) -> list[APIRouter]:
    """Routes that move bytes; there are none when clients talk to S3 itself."""
    if not isinstance(store, FolderStore):
        return []
    routers = []
    if Role.COMMANDS in roles:
        routers.append(commands.objects.router(store))
    if Role.QUERIES in roles:
        routers.append(readapi.objects.router(store))
    return routers


def _open_folder(settings: Settings, folder: DataFolder, secret: str) -> FolderStore:
    store = FolderStore(folder.objects, secret.encode(), settings.objects.url_ttl, now)
    if Role.COMMANDS in settings.server.roles:
        # Only the process that takes uploads may sweep up what a crash left of them.
        try:
            run(store.recover())
        except ObjectStoreUnavailable as error:
            raise OperatorError(error.cause) from error
    return store


log = structlog.get_logger(__name__)


Background = Callable[[], Coroutine[Any, Any, None]]

TABLES = (like_reconciliation.TABLES,)
"""The tables of features in the main database that belong to no copy of a projection."""


class DatabaseUnreachable(OperatorError):
    """The configured PostgreSQL does not take this program's connection."""


@dataclass(frozen=True)
class ReadModels:
    """The projections of this program."""

    catalog: Catalog
    likes: Likes
    comments: Comments
    operations: Operations
    audit: Audit

    @classmethod
    def make(cls) -> ReadModels:
        return cls(Catalog(), Likes(), Comments(), Operations(), Audit())

    def all(self) -> tuple[Projection, ...]:
        return (self.catalog, self.likes, self.comments, self.operations, self.audit)

    def by_name(self) -> dict[str, Projection]:
        return {projection.name: projection for projection in self.all()}


@dataclass(frozen=True)
class Parts:
    """The running parts of one process."""

    settings: Settings
    database_url: str
    analytics_url: str
    authenticator: Authenticator
    objects: ObjectStore
    recorder: GroupCommitRecorder
    models: ReadModels
    notifications: Notifications
    host: ProjectionHost | None
    redis: Redis
    locks: Redlock
    # Without a Redis that the processes share, counts come from the read model.
    counters: Counters | None
    # What runs for as long as the process serves.
    background: list[Background] = field(default_factory=list)
    # What must end before the server waits for its last answers: streams without an end.
    endings: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    sealer: Sealer | None = None
    proofs: Proofs = field(default_factory=Proofs)
    limits: Limits = SHORT_WORK


def open_parts(
    settings: Settings, stack: ExitStack, *, gives_up: Callable[[], bool] = lambda: False
) -> Parts:
    """Start what the settings ask for; `stack` stops it again, in reverse order.

    Raises OperatorError with one clear line when a part can't start, and where one that takes long
    was broken off because of `gives_up`.
    """
    folder = stack.enter_context(DataFolder(settings.server.data_dir))
    secret = read_or_make_secret(folder.secret)
    # First what is quick to find wrong: PostgreSQL takes seconds to start, and to stop again.
    objects = open_objects(settings, folder, secret, stack)
    seal_key, proofs = configured_key(settings.seals), configured_proofs(settings.seals)
    database_url = _database(settings, folder, stack, gives_up)
    models = ReadModels.make()
    limits = Limits.from_settings(settings.database)
    with open_connection(database_url, "installation") as conn:
        make_tables(conn, *TABLES)
        install(conn, models.all())
    recorder = open_recorder(database_url, limits=limits)
    stack.callback(recorder.close)
    analytics_url = settings.analytics.url(database_url)
    with _reached(analytics_url, "TIMESCALE_URL") as conn:
        migrate(conn, ENGINE)
        analytics.migrate(conn)
    counters = open_counters(settings, stack)
    host = None
    notifications = Notifications(database_url)
    background: list[Background] = []
    if Role.PROJECTIONS in settings.server.roles:
        host = ProjectionHost(
            database_url,
            models.all(),
            notifications,
            batch_events=settings.projections.batch_events,
            poll_seconds=settings.projections.poll_seconds,
        )
        background = [
            host.run,
            *_counting(database_url, models, host, counters),
            _carrying_out(settings, database_url, models, recorder, host, counters),
        ]
    authenticator = make_authenticator(settings.auth, secret)
    redis = open_redis(settings.redis.url)
    locks = make_redlock(redis, settings.redis.lock_urls)
    return Parts(
        settings,
        database_url,
        analytics_url,
        authenticator,
        objects,
        recorder,
        models,
        notifications,
        host,
        redis,
        locks,
        counters,
        background=background,
        sealer=_sealer(settings, database_url, seal_key),
        proofs=proofs,
        limits=limits,
    )


def _sealer(settings: Settings, database_url: str, key: SealKey | None) -> Sealer | None:
    if Role.WORKERS not in settings.server.roles:
        return None
    return Sealer(
        database_url,
        block_events=settings.seals.block_events,
        block_seconds=settings.seals.block_seconds,
        key=key,
        anchors=configured_anchors(settings.seals),
    )


def open_counters(settings: Settings, stack: ExitStack) -> Counters | None:
    """The like counters of the Redis that is configured, if one is."""
    if settings.redis.url is None:
        return None
    client = connect_blocking_redis(settings.redis.url.get_secret_value())
    stack.callback(client.close)
    return Counters(client, settings.likes.counter_ttl_seconds)


def analytics_means(settings: Settings, database_url: str) -> AnalyticsMeans:
    """What the analytics are verified and mended with."""
    # A batch is complete by then, and what follows it is refreshed.
    settled = 2 * settings.analytics.flush_seconds + 5
    return AnalyticsMeans(
        settings.analytics.url(database_url),
        settings.watch.view_repeat,
        arrival_seconds=60 + 4 * settled,
        settle_seconds=settled,
    )


def _counting(
    database_url: str, models: ReadModels, host: ProjectionHost, counters: Counters | None
) -> list[Background]:
    """Keep the like counters, where the processes share a Redis."""
    if counters is None:
        return []
    moved = host.follow(models.likes.name)
    counting = subscribe_counters(database_url, models.likes, counters, moved, MAPPER)
    return [counting.run]


def _carrying_out(
    settings: Settings,
    database_url: str,
    models: ReadModels,
    recorder: GroupCommitRecorder,
    host: ProjectionHost,
    counters: Counters | None,
) -> Background:
    """Have what operators ask for done here; replays in processes of their own."""
    command = [sys.executable, "-m", "backlot", "projections", "carry-out"]
    children = Children(command, {"DATABASE_URL": database_url})
    analytics = analytics_means(settings, database_url)
    tools = Tools(
        database_url,
        models.by_name(),
        tell_nobody,
        Event(),
        counters,
        analytics,
    )
    auto = settings.projections.auto_replay
    executor = Executor(recorder, models.operations, tools, children, auto_replay=auto)
    return partial(executor.run, host.follow(models.operations.name))


def _database(
    settings: Settings, folder: DataFolder, stack: ExitStack, gives_up: Callable[[], bool]
) -> str:
    if settings.database.url is None:
        server = EmbeddedPostgres(folder.postgres, gives_up=gives_up)
        stack.enter_context(last_word(server.part_with))
        return stack.enter_context(server).url
    url = settings.database.url.get_secret_value()
    _reached(url, "DATABASE_URL").close()
    return url


def _reached(url: str, setting: str) -> Connection[TupleRow]:
    try:
        return open_connection(url, "installation")
    except OperationalError as error:
        raise DatabaseUnreachable(
            f"{setting}: PostgreSQL can't be reached there: {explained(error)}"
        ) from error
