"""What recommendations are made from, kept up to date: engagement, and embeddings of videos' texts.

A sink keeps who watched and liked what, and which videos are neighbours. What is embedded is
compared with the catalog by its digest, so that whatever was missed, in an outage or before there
was a model, is made up for in the next round.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import structlog
from dramatiq import Actor
from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from engine.command_bus import CommandBus
from engine.connections import ThreadedConnection, connected, leading
from engine.messages import IncomingMessage, MessageBatch
from engine.schedule import Job, Outage, Run
from engine.subscription import Subscription
from infra.llm.client import MAX_TEXTS, Embedder, make_embedder
from infra.llm.errors import BadAnswer, LanguageModelError, ProviderFailed, RejectedRequest
from infra.metrics import counter, gauge
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
from projections.recommendations.embeddings import (
    Digested,
    Embedded,
    Text,
    forget_unlisted,
    outdated,
    page,
    prepare,
    put,
    texts_of,
)
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


EMBEDDING_JOB = "embedding"
VIDEOS_AT_ONCE = 500
# A text that any model embeds; when that fails too, the others' content is not the reason.
PROBE_TEXT = "A video."
LONGEST_PAUSE_SECONDS = 600.0

EMBEDDINGS = counter(
    "backlot_embeddings",
    "Texts of videos that were embedded (made), or that the provider does not take (rejected).",
    ("outcome",),
)
EMBEDDING_FAILURES = counter(
    "backlot_embedding_failures",
    "Times that embeddings could not be kept up to date, and it was tried later, by what failed.",
    ("step",),
)


@dataclass
class EmbeddingUpkeep:
    """Embeds what is new or has changed, round by round; a round goes on where the last failed.

    `catalog` is a connection to the read models, `kept` the active process's own to the analytics.
    """

    embedder: Embedder
    models: Catalog
    catalog: ThreadedConnection
    kept: ThreadedConnection
    # The position behind which a round goes on, and how many texts are sent at once.
    after: int = 0
    at_once: int = MAX_TEXTS

    async def lacking(self) -> str | None:
        """Have the table; or what the database lacks for it. Raises psycopg.Error."""
        return await self.kept.do(prepare, self.embedder.model, self.embedder.dimensions)

    async def run(self) -> int:
        """Do one round; return how many texts it dealt with.

        Raise LanguageModelError, psycopg.Error.
        """
        await self.kept.do(forget_unlisted)
        done = 0
        while videos := await self.catalog.do(page, self.models, self.after, VIDEOS_AT_ONCE):
            missing = await self.kept.do(outdated, videos)
            done += await self._embed([each for each in videos if each.video_id in missing])
            self.after = videos[-1].position
        self.after = 0
        return done

    async def _embed(self, videos: Sequence[Digested]) -> int:
        at = 0
        while batch := videos[at : at + self.at_once]:
            try:
                await self._embed_batch([each.video_id for each in batch])
            except ProviderFailed:
                # Ask for less the next time; a text that fails alone must not hold up the others.
                if len(batch) == 1:
                    self.after = batch[0].position
                self.at_once = max(len(batch) // 2, 1)
                raise
            at += len(batch)
            self.after = batch[-1].position
            self.at_once = min(2 * self.at_once, MAX_TEXTS)
        return len(videos)

    async def _embed_batch(self, videos: Sequence[UUID]) -> None:
        texts = await self.catalog.do(texts_of, self.models, videos)
        # None when they have all been removed since, or are not public any more.
        if texts:
            embedded = await self._vectors(texts)
            await self.kept.do(put, embedded)
            for each in embedded:
                EMBEDDINGS.labels("rejected" if each.rejected else "made").inc()

    async def _vectors(self, texts: Sequence[Text]) -> list[Embedded]:
        try:
            return await self._asked(texts)
        except (BadAnswer, RejectedRequest) as error:
            # Raises when it is the model, or what it is asked for, that is wrong.
            await self.embedder.embed([PROBE_TEXT])
            return await self._apart(texts, error)

    async def _apart(self, texts: Sequence[Text], error: LanguageModelError) -> list[Embedded]:
        """Return what becomes of each of these texts, which the provider did not take together."""
        if len(texts) == 1:
            (text,) = texts
            log.warning("text_rejected", video_id=str(text.video_id), outcome=error.outcome)
            return [Embedded(text.video_id, text.digest, None, error.outcome)]
        found: list[Embedded] = []
        middle = len(texts) // 2
        for half in (texts[:middle], texts[middle:]):
            try:
                found += await self._asked(half)
            except (BadAnswer, RejectedRequest) as again:
                found += await self._apart(half, again)
        return found

    async def _asked(self, texts: Sequence[Text]) -> list[Embedded]:
        vectors = await self.embedder.embed([each.text for each in texts])
        return [
            Embedded(text.video_id, text.digest, vector)
            for text, vector in zip(texts, vectors, strict=True)
        ]


@dataclass
class EmbeddingRounds:
    """Rounds of the upkeep while this process does the job; a failure is followed by a pause."""

    upkeep: EmbeddingUpkeep
    every: float
    told: str | None = None
    failures: int = 0

    async def run(self) -> float:
        """Do one round, and return the seconds until the next one. Raise psycopg.Error.

        Where the analytics' database can't have embeddings that is logged once.
        """
        lacking = await self.upkeep.lacking()
        if lacking is None:
            return await self._round()
        if lacking != self.told:
            log.warning("embeddings_unavailable", reason=lacking)
        self.told = lacking
        return LONGEST_PAUSE_SECONDS

    async def _round(self) -> float:
        try:
            done = await self.upkeep.run()
        except LanguageModelError as error:
            EMBEDDING_FAILURES.labels("provider").inc()
            log.warning("embedding_postponed", error=f"{type(error).__name__}: {error}")
            self.failures += 1
            # An eighth of the interval after the first failure, twice as much after each other.
            grown = self.every * 2.0 ** (min(self.failures, 21) - 4)
            return max(min(grown, LONGEST_PAUSE_SECONDS), error.retry_after or 0.0)
        log.debug("embedding_done", texts=done)
        self.failures = 0
        return self.every


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Keep the embeddings of the videos' texts, where a model for them is configured."""
    embedder = make_embedder(parts.settings.embeddings, parts.settings.llm, parts.redis)
    if embedder is not None:
        parts.closings.append(embedder.aclose)
        models, database_url = parts.models[Catalog], parts.database_url
        yield embedding_job(
            embedder, models, database_url=database_url, analytics_url=parts.analytics_url
        )


def embedding_job(
    embedder: Embedder, models: Catalog, *, database_url: str, analytics_url: str, every: float = 60
) -> Job:
    """Return the job that does round after round; one process at a time does."""

    @asynccontextmanager
    async def session() -> AsyncIterator[Run]:
        async with (
            leading(analytics_url, EMBEDDING_JOB) as kept,
            connected(database_url, EMBEDDING_JOB) as catalog,
        ):
            yield EmbeddingRounds(EmbeddingUpkeep(embedder, models, catalog, kept), every).run

    failures = EMBEDDING_FAILURES.labels("database")
    return Job(
        EMBEDDING_JOB, every, session, Outage("embedding_postponed", (psycopg.Error,), failures)
    )
