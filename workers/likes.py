"""The scheduled comparison of the like counters with the read model; one replica at a time."""

from __future__ import annotations

import asyncio

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow
from redis import RedisError

from engine.connections import connect
from infra import metrics
from infra.advisory_locks import Lock, try_lock
from infra.counters import Counters
from projections.drift import CountersBehind, Reconciled, reconcile
from projections.likes import Likes

log = structlog.get_logger(__name__)


async def keep_reconciling(
    database_url: str, likes: Likes, counters: Counters, interval_seconds: float
) -> None:
    """Reconcile every `interval_seconds`, until cancelled; what is away now is compared later."""
    while True:
        await asyncio.sleep(interval_seconds)
        try:
            result = await asyncio.to_thread(reconcile_once, database_url, likes, counters)
        except (psycopg.Error, RedisError, CountersBehind) as error:
            metrics.COUNTER_FAILURES.inc()
            log.warning("likes_not_reconciled", error=f"{type(error).__name__}: {error}")
        else:
            if result is not None:
                drifted = len(result.drifted)
                log.info("likes_reconciled", compared=result.compared, drifted=drifted)


def reconcile_once(
    database_url: str, likes: Likes, counters: Counters, *, repair: bool = True
) -> Reconciled | None:
    """Compare all counters now, or None while another process does."""
    conn: Connection[TupleRow]
    with connect(database_url, "likes reconcile") as conn:
        if not try_lock(conn, Lock.LIKES_RECONCILIATION):
            return None
        return reconcile(conn, likes, counters, repair=repair)
