"""The one place where the parts are chosen from the settings and put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import structlog
from fastapi import APIRouter
from psycopg import Connection, OperationalError
from psycopg.rows import TupleRow

from backlot.features import TABLES, read_models
from backlot.signals import last_word, run
from engine.event_store import open_recorder
from engine.installation import install, make_tables
from engine.migrations import ENGINE, migrate
from engine.notifications import Notifications
from engine.projection_subscription import ProjectionHost
from engine.seals.anchors import (
    configured_anchors,
    configured_key,
    configured_proofs,
)
from engine.seals.sealer import Sealer
from engine.seals.signature import SealKey
from infra.data_folder import DataFolder
from infra.errors import OperatorError
from infra.http.auth import make_authenticator, read_or_make_secret
from infra.objects.folder import FolderStore
from infra.objects.port import ObjectStore, ObjectStoreUnavailable
from infra.objects.routes import object_router, part_router
from infra.objects.s3 import S3Store, now
from infra.postgres.connection import Limits, explained, open_connection
from infra.postgres.embedded import EmbeddedPostgres
from infra.redis import open_redis
from infra.redlock import make_redlock
from infra.settings import Role, Settings
from projections.analytics import schema as analytics
from workers.likes import open_counters
from workers.parts import Parts


def open_objects(
    settings: Settings, folder: DataFolder, secret: str, stack: ExitStack
) -> ObjectStore:
    """The store of these settings, ready for this process's roles; `stack` closes it.

    Raises OperatorError with one clear line when the folder or the bucket is of no use.
    """
    if settings.objects.bucket is None:
        return _open_folder(settings, folder, secret)
    store = S3Store(settings.objects)
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
        routers.append(part_router(store))
    if Role.QUERIES in roles:
        routers.append(object_router(store))
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


class DatabaseUnreachable(OperatorError):
    """The configured PostgreSQL does not take this program's connection."""


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
    models = read_models()
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
    if Role.PROJECTIONS in settings.server.roles:
        host = ProjectionHost(
            database_url,
            models.all(),
            notifications,
            batch_events=settings.projections.batch_events,
            poll_seconds=settings.projections.poll_seconds,
        )
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
