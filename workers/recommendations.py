"""The sink of the recommendations: who watched and liked what, and which videos that ties."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import structlog
from dramatiq import Actor
from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from engine.connections import ThreadedConnection
from engine.leader_lock import leading
from engine.messages import Fetched, Poison, Received
from engine.schedule import Job, Outage, Run
from engine.subscription import Subscription
from infra.errors import describe
from infra.postgres.connection import Limits
from infra.postgres.pool import make_pool
from infra.settings import Settings
from infra.tasks.broker import task_queues
from infra.tasks.messages import BrokerAway, enqueue
from infra.tasks.queues import RECOMMENDATIONS, TaskQueues
from projections import integration_events
from projections.analytics.arrival import ENGAGED_CONSUMER
from projections.analytics.queries import AnalyticsQueries
from projections.analytics.rules import NotCountable, Row, row_of
from projections.analytics.schema import migrate
from projections.catalog import Catalog
from projections.likes import Likes
from projections.recommendations.cache import (
    RecommendationCache,
    RecommendationInvalidation,
    open_recommendations,
)
from projections.recommendations.co_occurrence import Engagement, keep, rank_categories
from projections.recommendations.model import EngagementKind, Weighing

if TYPE_CHECKING:
    from workers.parts import Parts
    from workers.tasks import Tasks

log = structlog.get_logger(__name__)

# An unlike takes nothing back: what the like brought together decays. It is followed only since
# the viewer's profile changes by it.
KINDS: Mapping[str, EngagementKind | None] = MappingProxyType(
    {
        integration_events.VIDEO_VIEWED: EngagementKind.WATCHED,
        integration_events.VIDEO_LIKED: EngagementKind.LIKED,
        integration_events.VIDEO_UNLIKED: None,
    }
)
RANK_SECONDS = 60.0

Tell = Callable[[frozenset[str]], Awaitable[None]]


async def tell_nobody(viewers: frozenset[str]) -> None:
    """Nobody wants to know whose profile changed."""


class EngagementSink:
    """Keeps what known viewers engage with; shares its database with the analytics."""

    name = ENGAGED_CONSUMER
    topics = frozenset(KINDS)

    def __init__(self, weighing: Weighing, *, changed: Tell = tell_nobody) -> None:
        """`changed` is told after each commit whose profiles are others now; must not raise."""
        self._weighing = weighing
        self._changed = changed
        self._last: frozenset[str] = frozenset()
        self._ranked_at = float("-inf")

    def prepare(self, conn: Connection[TupleRow]) -> None:
        found = migrate(conn)
        log.info("recommendations_ready", on=str(found))

    def store(self, conn: Connection[TupleRow], batch: Sequence[Received]) -> None:
        now = datetime.now(UTC)
        told = [_row(message, now) for message in batch]
        engaged = [
            Engagement(row.user_id, row.video_id, kind, row.at)
            for kind, row in told
            if kind is not None and row.user_id is not None
        ]
        unliked = {row.user_id for kind, row in told if kind is None and row.user_id is not None}
        self._last = keep(conn, engaged, self._weighing) | unliked

    async def stored(self, conn: ThreadedConnection) -> None:
        """Tell whose profiles changed; rank the categories anew once a minute."""
        last, self._last = self._last, frozenset()
        if last:
            await self._changed(last)
            if time.monotonic() - self._ranked_at >= RANK_SECONDS:
                await conn.do(rank_categories, self._weighing)
                self._ranked_at = time.monotonic()


def _row(message: Received, now: datetime) -> tuple[EngagementKind | None, Row]:
    try:
        return KINDS[message.topic], row_of(message.topic, message.id, message.value, now)
    except NotCountable as error:
        raise Poison(message, describe(error)) from error


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


@asynccontextmanager
async def open_preparing(
    settings: Settings, database_url: str, redis: Redis
) -> AsyncIterator[RecommendationCache | None]:
    """Recommendations as the query API makes them; None where none are made in advance."""
    if not settings.recommendations.precompute_seconds:
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
        made = open_recommendations(
            settings.recommendations,
            settings.llm,
            redis,
            pool,
            analytics,
            likes=Likes(),
            catalog=Catalog(),
        )
        stack.push_async_callback(made.aclose)
        yield made


def subscriptions(parts: Parts, tasks: Tasks) -> Iterator[Subscription[Fetched]]:
    """Keep what viewers engage with."""
    settings = parts.settings.recommendations
    profiles = RecommendationInvalidation(parts.redis, settings)
    yield parts.feed(EngagementSink(Weighing.from_settings(settings), changed=profiles.touch))


def sweeps(parts: Parts, tasks: Tasks) -> Iterator[Job]:
    """Have recommendations made in advance, where that is wanted."""
    seconds = parts.settings.recommendations.precompute_seconds
    if seconds:
        queues = task_queues(parts.settings.tasks)
        preparation = Preparation(tasks.prepare_recommendations, queues)
        yield preparation_job(preparation, parts.analytics_url, seconds)
