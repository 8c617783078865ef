"""The scheduled comparison of the like counters with the read model; one replica at a time."""

from __future__ import annotations

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow
from redis import RedisError

from engine.connections import connect, in_thread
from engine.schedule import Job, Outage, repeat
from infra.advisory_locks import Lock, try_lock
from projections.like_counters import COUNTER_FAILURES, Counters
from projections.like_reconciliation import CountersBehind, Reconciled, reconcile
from projections.likes import Likes

log = structlog.get_logger(__name__)


def reconcile_job(database_url: str, likes: Likes, counters: Counters, every: float) -> Job:
    """Return the job that compares the counters every so often; not at once, while they fill."""

    async def run() -> None:
        result = await in_thread(reconcile_once, database_url, likes, counters)
        if result is not None:
            drifted = len(result.drifted)
            log.info("likes_reconciled", compared=result.compared, drifted=drifted)

    errors = (psycopg.Error, RedisError, CountersBehind)
    outage = Outage("likes_not_reconciled", errors, COUNTER_FAILURES)
    return Job("likes reconcile", every, repeat(run), outage, at_once=False)


def reconcile_once(
    database_url: str, likes: Likes, counters: Counters, *, repair: bool = True
) -> Reconciled | None:
    """Compare all counters now, or None while another process does."""
    conn: Connection[TupleRow]
    with connect(database_url, "likes reconcile") as conn:
        if not try_lock(conn, Lock.LIKES_RECONCILIATION):
            return None
        return reconcile(conn, likes, counters, repair=repair)
