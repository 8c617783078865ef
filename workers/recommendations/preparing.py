"""Has recommendations of active users made before they ask, in tasks of a few users each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import structlog
from dramatiq import Actor
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import ThreadedConnection
from engine.leader_lock import leading
from engine.schedule import Job, Outage, Run
from infra.tasks import BrokerAway, enqueue
from infra.tasks.letters import TaskQueues
from infra.tasks.queues import RECOMMENDATIONS

log = structlog.get_logger(__name__)

# Who has watched something within this time.
ACTIVE = timedelta(days=1)
ACTIVE_USERS = b"""
SELECT DISTINCT user_id FROM analytics.video_analytics
WHERE event_type = 'view' AND "timestamp" >= %s AND user_id IS NOT NULL
"""
USERS_PER_TASK = 10


@dataclass(frozen=True)
class Preparation:
    """Sends a task for every few active users, while none waits: the queue never grows."""

    prepare_recommendations: Actor[..., Any]
    queues: TaskQueues

    def run(self, conn: Connection[TupleRow]) -> int:
        """Send the tasks; return for how many users. Raise BrokerAway, psycopg.Error."""
        if any(d.waiting or d.delayed for d in self.queues.depths() if d.queue == RECOMMENDATIONS):
            return 0
        turn, sent = f"recommendations-{uuid4()}", 0
        with conn.transaction(), conn.cursor("active_users") as cursor:
            cursor.execute(ACTIVE_USERS, (datetime.now(UTC) - ACTIVE,))
            while users := [user for (user,) in cursor.fetchmany(USERS_PER_TASK)]:
                task = self.prepare_recommendations
                enqueue(task, users, correlation_id=turn, causation_id=turn)
                sent += len(users)
        return sent


def preparation_job(preparation: Preparation, analytics_url: str, every: float) -> Job:
    """Return the job that sends the tasks; one process at a time does."""

    async def run(conn: ThreadedConnection) -> None:
        users = await conn.do(preparation.run)
        log.debug("recommendations_asked_for", users=users)

    @asynccontextmanager
    async def session() -> AsyncIterator[Run]:
        async with leading(analytics_url, "recommendations in advance") as conn:
            yield lambda: run(conn)

    outage = Outage("recommendations_postponed", (psycopg.Error, BrokerAway))
    return Job("recommendations in advance", every, session, outage, at_once=False)
