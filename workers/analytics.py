"""The sinks of the analytics, which count what happens and know the videos; their scheduled work.

That is pruning, and settling the sums of trending: by one replica at a time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.command_bus import CommandBus
from engine.connections import ThreadedConnection, in_thread
from engine.messages import BEHIND_EVENTS, IncomingMessage, MessageBatch, Poison
from engine.schedule import Job, Outage, repeat
from engine.subscription import EVENTS, Subscription
from infra.errors import describe
from infra.metrics import counter, gauge
from infra.postgres.connection import open_connection
from infra.settings import Settings
from projections.analytics import videos
from projections.analytics.ingest import Store, StoredBatch
from projections.analytics.queries import COUNTS_CONSUMER, VIDEOS_CONSUMER
from projections.analytics.rebuild import AnalyticsMeans
from projections.analytics.rules import TOPICS, NotCountable, Row, Rules, row_of
from projections.analytics.schema import Shape, migrate, prune, refresh
from projections.feeds import EventFeed
from projections.trending import Formula, TrendingInvalidation, Window, settle
from workers.parts import Parts
from workers.sources import LogSource
from workers.tasks import Tasks

log = structlog.get_logger(__name__)

PRUNE_SECONDS = 3600.0

ANALYTICS_EVENTS = counter(
    "backlot_analytics_events",
    "Events that were counted, each once, by type (view, like, comment, watch_time, share).",
    ("type",),
)
ANALYTICS_RECOUNTED = counter(
    "backlot_analytics_recounted",
    "Counted events that count otherwise since something came later that lies before them.",
)
ANALYTICS_TOO_LATE = counter(
    "backlot_analytics_too_late",
    "Events that were not counted, since they came when their time was about to be pruned.",
)
ANALYTICS_PRUNED = counter(
    "backlot_analytics_pruned",
    "Rows of the analytics that were past the retention, by table, without dropped chunks.",
    ("table",),
)
ANALYTICS_PRUNE_FAILURES = counter(
    "backlot_analytics_prune_failures",
    "Times that rows past the retention could not be taken away.",
)
TRENDING_SETTLE_SECONDS = gauge(
    "backlot_trending_settle_seconds",
    "How long the last settling of trending's sums took in this process.",
)
TRENDING_SETTLE_FAILURES = counter(
    "backlot_trending_settle_failures",
    "Times that trending's sums could not be settled; rankings are then made from the rollups.",
)


async def tell_nobody() -> None:
    """Nobody wants to know that something was counted."""


class AnalyticsSink:
    """Writes the tables of one database, which all sinks of the analytics share."""

    def __init__(
        self, rules: Rules, *, counted: Callable[[], Awaitable[None]] = tell_nobody
    ) -> None:
        """`rules` say what counts.

        `counted` is called when counts have changed, and must not raise.
        """
        self._counted = counted
        self._rules = rules
        self._store = Store(Shape.PLAIN, rules)
        self._last = StoredBatch()

    def prepare(self, conn: Connection[TupleRow]) -> None:
        found = migrate(conn)
        log.info("analytics_ready", on=str(found))
        self._store = Store(found.shape, self._rules)

    async def stored(self, conn: ThreadedConnection) -> None:
        """Bring late events into the rollups, where the storing does not write these itself."""
        last, self._last = self._last, StoredBatch()
        for kind, count in last.fresh.items():
            ANALYTICS_EVENTS.labels(kind).inc(count)
        ANALYTICS_RECOUNTED.inc(last.changed)
        ANALYTICS_TOO_LATE.inc(last.too_late)
        if self._store.shape is Shape.TIMESCALE:
            await conn.do(refresh, last.times, datetime.now(UTC))
        if last.times:
            await self._counted()


class Analytics(AnalyticsSink):
    """Counts views, watch time, shares, likes and comments."""

    name = COUNTS_CONSUMER
    topics = TOPICS

    def store(self, conn: Connection[TupleRow], batch: Sequence[IncomingMessage]) -> None:
        now = datetime.now(UTC)
        self._last = self._store.add(conn, [countable_row(message, now) for message in batch])


class AnalyticsVideos(AnalyticsSink):
    """Knows the videos, and corrects what was counted before they were known."""

    name = VIDEOS_CONSUMER
    topics = videos.UPLOAD_TOPICS

    def store(self, conn: Connection[TupleRow], batch: Sequence[IncomingMessage]) -> None:
        changes = [videos.change_of(message.topic, message.value) for message in batch]
        self._last = videos.apply(conn, self._store, changes)


def countable_row(message: IncomingMessage, now: datetime) -> Row:
    """Return the row of what a message tells; raise Poison where it can't be counted."""
    try:
        return row_of(message.topic, message.id, message.value, now)
    except NotCountable as error:
        raise Poison(message, describe(error)) from error


def uploads_feed(batch_events: int) -> EventFeed:
    """Return the feed of what happens to uploads, for the analytics alone."""
    return EventFeed(videos.WRITES, batch_events=batch_events, message_of=videos.message)


def subscriptions(
    parts: Parts, bus: CommandBus, tasks: Tasks
) -> Iterator[Subscription[MessageBatch]]:
    """Count what happens; know the videos, which only the event log tells all of."""
    rules = rules_of(parts.settings)
    yield parts.feed(Analytics(rules, counted=TrendingInvalidation(parts.redis).touch))
    wake = parts.notifications.subscribe(EVENTS)
    source = LogSource([uploads_feed(BEHIND_EVENTS)], wake=wake)
    yield parts.feed(AnalyticsVideos(rules), source)


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Remove what is past its retention, every hour."""
    outage = Outage("analytics_not_pruned", (psycopg.Error,), ANALYTICS_PRUNE_FAILURES)
    days = parts.settings.analytics.retention_days
    run = partial(in_thread, _prune_once, parts.analytics_url, days)
    yield Job("analytics pruning", PRUNE_SECONDS, repeat(run), outage)


def _prune_once(analytics_url: str, days: int) -> None:
    with open_connection(analytics_url, "pruning") as conn:
        gone = prune(conn, days, datetime.now(UTC))
    for table, rows in gone.items():
        ANALYTICS_PRUNED.labels(table).inc(rows)
    if sum(gone.values()):
        log.info("analytics_pruned", **gone)


def settling_jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Settle trending's sums."""
    settings = parts.settings.trending
    formula = Formula.from_settings(settings)
    yield settling_job(parts.analytics_url, formula, settings.settle_seconds)


def settling_job(analytics_url: str, formula: Formula, every: float) -> Job:
    """Return the job that settles every window.

    While that fails, rankings are computed from the rollups themselves: right, and slower.
    """
    outage = Outage("trending_not_settled", (psycopg.Error,), TRENDING_SETTLE_FAILURES)
    run = partial(in_thread, settle_once, analytics_url, formula)
    return Job("trending settling", every, repeat(run), outage)


def settle_once(analytics_url: str, formula: Formula) -> None:
    """Settle every window as it is now. Raise psycopg.Error."""
    started = time.perf_counter()
    with open_connection(analytics_url, "trending") as conn:
        now = datetime.now(UTC)
        done = [settle(conn, each, formula=formula, now=now) for each in Window]
    if all(done):
        seconds = time.perf_counter() - started
        TRENDING_SETTLE_SECONDS.set(seconds)
        log.debug("trending_settled", seconds=seconds)


def rules_of(settings: Settings) -> Rules:
    """Return the rules that the settings name."""
    trending = settings.trending
    return Rules(
        settings.watch.view_repeat,
        trending.viewer_comments,
        trending.viewer_watch_minutes * 60,
    )


def analytics_means(settings: Settings, database_url: str) -> AnalyticsMeans:
    """Return what the analytics are verified and mended with."""
    # A batch is complete by then, and what follows it is refreshed.
    settled = 2 * settings.analytics.flush_seconds + 5
    return AnalyticsMeans(
        settings.analytics.url(database_url),
        rules_of(settings),
        timedelta(days=settings.analytics.retention_days),
        arrival_seconds=60 + 4 * settled,
        settle_seconds=settled,
    )
