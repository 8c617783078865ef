"""The one place where the parts are chosen from the settings and put together."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event

import structlog
from psycopg import Connection, OperationalError
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from backlot.objects import open_objects
from backlot.signals import last_word
from engine.migrations import ENGINE, migrate
from infra.auth import Authenticator, make_authenticator, read_or_make_secret
from infra.codec import EventMapper
from infra.connecting import SHORT_WORK, Limits, explained, open_connection
from infra.counters import Counters
from infra.data_folder import DataFolder
from infra.errors import OperatorError
from infra.event_store import GroupCommitRecorder, open_recorder
from infra.locks import Redlock, make_redlock
from infra.objects import ObjectStore
from infra.postgres import EmbeddedPostgres
from infra.redis import connect_blocking_redis, open_redis
from infra.seals import (
    Proofs,
    Sealer,
    SealKey,
    configured_anchors,
    configured_key,
    configured_proofs,
)
from infra.settings import Role, Settings
from projections.analytics import migrating as analytics
from projections.analytics.rebuilding import Means
from projections.audit.index import Audit
from projections.catalog import Catalog
from projections.comments import Comments
from projections.counters import CounterPublisher
from projections.host import ProjectionHost
from projections.install import install, make_tables
from projections.likes import Likes
from projections.operating.acting import Tools
from projections.operating.children import Children
from projections.operating.executor import Executor
from projections.operations import Operations
from projections.projection import Projection
from projections.replaying.progress import tell_nobody

log = structlog.get_logger(__name__)


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
    host: ProjectionHost | None
    redis: Redis
    locks: Redlock
    # Without a Redis that the processes share, counts come from the read model.
    counters: Counters | None
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
    folder = stack.enter_context(DataFolder(settings.data_dir))
    secret = read_or_make_secret(folder.secret)
    # First what is quick to find wrong: PostgreSQL takes seconds to start, and to stop again.
    objects = open_objects(settings, folder, secret, stack)
    seal_key, proofs = configured_key(settings), configured_proofs(settings)
    database_url = _database(settings, folder, stack, gives_up)
    models = ReadModels.make()
    limits = Limits.from_settings(settings)
    with open_connection(database_url, "installation") as conn:
        make_tables(conn)
        install(conn, models.all())
    recorder = open_recorder(database_url, limits=limits)
    stack.callback(recorder.datastore.close)
    analytics_url = settings.analytics_url(database_url)
    with _reached(analytics_url, "TIMESCALE_URL") as conn:
        migrate(conn, ENGINE)
        analytics.migrate(conn)
    counters = open_counters(settings, stack)
    host = None
    if Role.PROJECTIONS in settings.roles:
        host = _run_projections(settings, database_url, models, counters, stack)
        _carry_out_operations(settings, database_url, models, recorder, host, counters, stack)
        host.start()
    authenticator = make_authenticator(settings, secret)
    redis = open_redis(settings.redis_url)
    locks = make_redlock(redis, settings.redlock_urls)
    return Parts(
        settings,
        database_url,
        analytics_url,
        authenticator,
        objects,
        recorder,
        models,
        host,
        redis,
        locks,
        counters,
        sealer=_sealer(settings, database_url, seal_key),
        proofs=proofs,
        limits=limits,
    )


def _sealer(settings: Settings, database_url: str, key: SealKey | None) -> Sealer | None:
    if Role.WORKERS not in settings.roles:
        return None
    return Sealer(
        database_url,
        block_events=settings.seal_block_events,
        block_seconds=settings.seal_seconds,
        key=key,
        anchors=configured_anchors(settings),
    )


def open_counters(settings: Settings, stack: ExitStack) -> Counters | None:
    """The like counters of the Redis that is configured, if one is."""
    if settings.redis_url is None:
        return None
    client = connect_blocking_redis(settings.redis_url.get_secret_value())
    stack.callback(client.close)
    return Counters(client, settings.like_counter_ttl_seconds)


def analytics_means(settings: Settings, database_url: str) -> Means:
    """What the analytics are verified and mended with."""
    # A batch is complete by then, and what follows it is refreshed.
    settled = 2 * settings.analytics_flush_seconds + 5
    return Means(
        settings.analytics_url(database_url),
        timedelta(seconds=settings.view_repeat_seconds),
        arrival_seconds=60 + 4 * settled,
        settle_seconds=settled,
    )


def _run_projections(
    settings: Settings,
    database_url: str,
    models: ReadModels,
    counters: Counters | None,
    stack: ExitStack,
) -> ProjectionHost:
    host = ProjectionHost(
        database_url,
        models.all(),
        batch_events=settings.projection_batch_events,
        poll_seconds=settings.projection_poll_seconds,
    )
    if counters is not None:
        moved = host.follow(models.likes.name)
        publisher = CounterPublisher(database_url, models.likes, counters, moved, EventMapper())
        publisher.start()
        stack.callback(publisher.stop)
    stack.callback(host.stop)
    return host


def _carry_out_operations(
    settings: Settings,
    database_url: str,
    models: ReadModels,
    recorder: GroupCommitRecorder,
    host: ProjectionHost,
    counters: Counters | None,
    stack: ExitStack,
) -> None:
    """Have what operators ask for done here; replays in processes of their own."""
    command = [sys.executable, "-m", "backlot", "projections", "carry-out"]
    children = Children(command, {"DATABASE_URL": database_url})
    analytics = analytics_means(settings, database_url)
    tools = Tools(
        database_url,
        models.by_name(),
        EventMapper(),
        tell_nobody,
        Event(),
        counters,
        analytics,
    )
    moved = host.follow(models.operations.name)
    auto = settings.projection_auto_replay
    executor = Executor(recorder, models.operations, tools, children, moved, auto_replay=auto)
    executor.start()
    stack.callback(executor.stop)


def _database(
    settings: Settings, folder: DataFolder, stack: ExitStack, gives_up: Callable[[], bool]
) -> str:
    if settings.database_url is None:
        server = EmbeddedPostgres(folder.postgres, gives_up=gives_up)
        stack.enter_context(last_word(server.part_with))
        return stack.enter_context(server).url
    url = settings.database_url.get_secret_value()
    _reached(url, "DATABASE_URL").close()
    return url


def _reached(url: str, setting: str) -> Connection[TupleRow]:
    try:
        return open_connection(url, "installation")
    except OperationalError as error:
        raise DatabaseUnreachable(
            f"{setting}: PostgreSQL can't be reached there: {explained(error)}"
        ) from error
