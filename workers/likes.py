"""The like counters at work: kept, compared with the read model, and counts for commands."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import structlog
from redis import RedisError

from commands.likes import LikesOf
from engine.command_bus import CommandBus
from engine.connections import connect, in_thread
from engine.lookups import Readers
from engine.projection import ReadModels
from engine.projection_subscription import ProjectionHost
from engine.schedule import Job, Outage, repeat
from infra.advisory_locks import Lock, try_lock
from infra.redis import connect_blocking_redis
from infra.settings import Settings
from projections.like_counters import (
    COUNTER_FAILURES,
    Counters,
    CountersBehind,
    Reconciliation,
    reconcile,
    subscribe_counters,
)
from projections.likes import Likes
from workers.parts import Parts

log = structlog.get_logger(__name__)


def open_counters(settings: Settings, stack: ExitStack) -> Counters | None:
    """Return the like counters of the Redis that is configured, if one is."""
    if settings.redis.url is None:
        return None
    client = connect_blocking_redis(settings.redis.url.get_secret_value())
    stack.callback(client.close)
    return Counters(client, settings.likes.counter_ttl_seconds)


def reactors(parts: Parts, host: ProjectionHost) -> Iterator[Coroutine[Any, Any, None]]:
    """Keep the like counters, where the processes share a Redis."""
    if parts.counters is not None:
        likes = parts.models[Likes]
        moved = host.follow(likes.name)
        yield subscribe_counters(parts.database_url, likes, parts.counters, moved).run()


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Compare the like counters, where processes share a Redis; not at once, while they fill."""
    counters = parts.counters
    if counters is None:
        return

    async def run() -> None:
        likes = parts.models[Likes]
        result = await in_thread(reconcile_once, parts.database_url, likes, counters)
        if result is not None:
            drifted = len(result.drifted)
            log.info("likes_reconciled", compared=result.compared, drifted=drifted)

    errors = (psycopg.Error, RedisError, CountersBehind)
    outage = Outage("likes_not_reconciled", errors, COUNTER_FAILURES)
    every = parts.settings.likes.reconcile_seconds
    yield Job("likes reconcile", every, repeat(run), outage, at_once=False)


def lookups(models: ReadModels) -> Readers:
    """Return what answers the lookups of commands about likes, made for one bus."""
    return {LikesOf: models[Likes].tally()}


def reconcile_once(
    database_url: str, likes: Likes, counters: Counters, *, repair: bool = True
) -> Reconciliation | None:
    """Compare all counters now; return None while another process does."""
    with connect(database_url, "likes reconcile") as conn:
        if not try_lock(conn, Lock.LIKES_RECONCILIATION):
            return None
        return reconcile(conn, likes, counters, repair=repair)
