"""The sink of the recommendations: who watched and liked what, and which videos are neighbours."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import structlog
from dramatiq import Actor
from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from engine.command_bus import CommandBus
from engine.connections import ThreadedConnection, leading
from engine.messages import IncomingMessage, MessageBatch
from engine.schedule import Job, Outage, Run
from engine.subscription import Subscription
from infra.metrics import gauge
from infra.postgres.connection import Limits, make_pool
from infra.settings import Settings
from infra.tasks.broker import task_queues
from infra.tasks.queues import RECOMMENDATIONS, BrokerAway, TaskQueues, enqueue
from projections import integration_events
from projections.analytics.queries import ENGAGED_CONSUMER, AnalyticsQueries
from projections.analytics.schema import migrate
from projections.catalog import Catalog
from projections.dismissals import Dismissals
from projections.likes import Likes
from projections.recommendations.co_occurrence import Engagement, keep, rank_categories
from projections.recommendations.model import EngagementKind, Weighing
from projections.recommendations.recommender import RecommendationInvalidation, Recommender
from workers.analytics import countable_row

if TYPE_CHECKING:
    from workers.parts import Parts
    from workers.tasks import Tasks

log = structlog.get_logger(__name__)

KINDS: Mapping[str, EngagementKind] = {
    integration_events.VIDEO_VIEWED: EngagementKind.WATCHED,
    integration_events.VIDEO_WATCH_TIME: EngagementKind.STAYED,
    integration_events.VIDEO_LIKED: EngagementKind.LIKED,
    integration_events.VIDEO_UNLIKED: EngagementKind.UNLIKED,
}
RANK_SECONDS = 60.0
# Who has a snapshot or a transaction id keeps all later versions of rows alive; a vacuum does not.
OLDEST_TRANSACTION = b"""
SELECT coalesce(max(extract(epoch FROM now() - since)), 0)::float8
FROM (SELECT xact_start AS since FROM pg_stat_activity
      WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
      UNION ALL SELECT prepared FROM pg_prepared_xacts) AS open
"""
OLDEST_TRANSACTION_SECONDS = gauge(
    "backlot_database_oldest_transaction_seconds",
    "Age of the oldest open transaction on the analytics' server, which keeps old rows alive.",
)
# Who has watched something within this time is active.
ACTIVE = timedelta(days=1)
ACTIVE_USERS = b"""
SELECT DISTINCT user_id FROM analytics.video_analytics
WHERE event_type = 'view' AND "timestamp" >= %s AND user_id IS NOT NULL
"""
USERS_PER_TASK = 10
IN_ADVANCE = "recommendations in advance"

Tell = Callable[[frozenset[str]], Awaitable[None]]


class EngagementSink:
    """Keeps what known viewers engage with; shares its database with the analytics."""

    name = ENGAGED_CONSUMER
    topics = frozenset(KINDS)

    def __init__(self, weighing: Weighing, *, changed: Tell | None = None) -> None:
        """`changed` is told after each commit whose profiles have changed; it must not raise."""
        self._weighing = weighing
        self._changed = changed
        self._last: frozenset[str] = frozenset()
        self._ranked_at = float("-inf")

    def prepare(self, conn: Connection[TupleRow]) -> None:
        log.info("recommendations_ready", on=str(migrate(conn)))

    def store(self, conn: Connection[TupleRow], batch: Sequence[IncomingMessage]) -> None:
        now = datetime.now(UTC)
        engaged: list[Engagement] = []
        for message in batch:
            row = countable_row(message, now)
            if row.user_id is not None:
                kind = KINDS[message.topic]
                engaged.append(Engagement(row.user_id, row.video_id, kind, row.at))
        self._last = keep(conn, engaged, self._weighing)

    async def stored(self, conn: ThreadedConnection) -> None:
        """Tell whose profiles changed; once a minute rank the categories, and look who is open."""
        last, self._last = self._last, frozenset()
        if last:
            if self._changed is not None:
                await self._changed(last)
            if time.monotonic() - self._ranked_at >= RANK_SECONDS:
                await conn.do(rank_categories, self._weighing)
                OLDEST_TRANSACTION_SECONDS.set(await conn.do(oldest_transaction))
                self._ranked_at = time.monotonic()


def oldest_transaction(conn: Connection[TupleRow]) -> float:
    """Return for how many seconds the oldest transaction of others is open; 0 without any.

    Of other roles' transactions only a member of `pg_read_all_stats` sees anything.
    """
    (seconds,) = conn.execute(OLDEST_TRANSACTION).fetchone() or (0.0,)
    return float(seconds)


@asynccontextmanager
async def open_preparing(
    settings: Settings, database_url: str, redis: Redis
) -> AsyncIterator[Recommender | None]:
    """Open recommendations as the query API makes them; None where none are made in advance."""
    wanted = settings.recommendations
    if not wanted.precompute_seconds:
        yield None
        return
    async with AsyncExitStack() as stack:
        limits = Limits.from_settings(settings.database)
        pool = make_pool(database_url, max_size=4, limits=limits)
        await pool.open()
        stack.push_async_callback(pool.close)
        url = settings.analytics.url(database_url)
        analytics = await AnalyticsQueries.open(settings.trending, url, redis, pool, limits)
        stack.push_async_callback(analytics.aclose)
        made = Recommender(
            wanted,
            settings.llm,
            redis,
            pool,
            analytics,
            likes=Likes(),
            catalog=Catalog(),
            dismissals=Dismissals(),
        )
        stack.push_async_callback(made.aclose)
        yield made


def subscriptions(
    parts: Parts, bus: CommandBus, tasks: Tasks
) -> Iterator[Subscription[MessageBatch]]:
    """Keep what viewers engage with."""
    settings = parts.settings.recommendations
    profiles = RecommendationInvalidation(parts.redis, settings)
    yield parts.feed(EngagementSink(Weighing.from_settings(settings), changed=profiles.touch))


def sweeps(parts: Parts, tasks: Tasks) -> Iterator[Job]:
    """Have recommendations made in advance, where that is wanted; one process at a time does."""
    seconds = parts.settings.recommendations.precompute_seconds
    if not seconds:
        return
    queues = task_queues(parts.settings.tasks)

    @asynccontextmanager
    async def session() -> AsyncIterator[Run]:
        async with leading(parts.analytics_url, IN_ADVANCE) as conn:

            async def run() -> None:
                users = await conn.do(send_tasks, tasks.prepare_recommendations, queues)
                log.debug("recommendations_asked_for", users=users)

            yield run

    outage = Outage("recommendations_postponed", (psycopg.Error, BrokerAway))
    yield Job(IN_ADVANCE, seconds, session, outage, at_once=False)


def send_tasks(conn: Connection[TupleRow], task: Actor[..., Any], queues: TaskQueues) -> int:
    """Send a task for every few active users; return for how many users.

    None while such a task waits, so that the queue never grows. Raise BrokerAway, psycopg.Error.
    """
    if any(d.waiting or d.delayed for d in queues.depths() if d.queue == RECOMMENDATIONS):
        return 0
    turn, sent = f"recommendations-{uuid4()}", 0
    with conn.transaction(), conn.cursor("active_users") as cursor:
        cursor.execute(ACTIVE_USERS, (datetime.now(UTC) - ACTIVE,))
        while users := [user for (user,) in cursor.fetchmany(USERS_PER_TASK)]:
            enqueue(task, users, correlation_id=turn, causation_id=turn)
            sent += len(users)
    return sent
