"""The sink of the feedback on recommendations, its pruning, and the key for commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import structlog
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from commands.feedback import ListKey
from domain.feedback import CHOSEN, SHOWN
from engine.command_bus import CommandBus
from engine.connections import ThreadedConnection, in_thread
from engine.installation import migrate
from engine.lookups import Readers
from engine.messages import IncomingMessage, MessageBatch, Poison
from engine.projection import ReadModels
from engine.schedule import Job, Outage, repeat
from engine.subscription import Subscription
from infra.errors import describe
from infra.metrics import counter
from infra.postgres.connection import open_connection
from projections.feedback.reports import (
    CONSUMER,
    KEY,
    TABLES,
    ReportedVideo,
    Sums,
    prune,
    report_of,
    store,
)
from workers.parts import Parts
from workers.tasks import Tasks

log = structlog.get_logger(__name__)

PRUNE_SECONDS = 3600.0

RECOMMENDATIONS_SHOWN = counter(
    "backlot_recommendations_shown",
    "Recommended videos that users were shown, each once an hour, by what brought them there.",
    ("source", "variant"),
)
RECOMMENDATIONS_CHOSEN = counter(
    "backlot_recommendations_chosen",
    "Recommended videos that users chose, each once an hour, by what brought them there.",
    ("source", "variant"),
)


class FeedbackSink:
    """Counts what was shown and chosen; shares its database with the analytics."""

    name = CONSUMER
    topics = frozenset((SHOWN, CHOSEN))

    def __init__(self) -> None:
        self._last: Sequence[Sums] = ()

    def prepare(self, conn: Connection[TupleRow]) -> None:
        migrate(conn, TABLES)

    def store(self, conn: Connection[TupleRow], batch: Sequence[IncomingMessage]) -> None:
        self._last = store(conn, [_report(message) for message in batch])

    async def stored(self, conn: ThreadedConnection) -> None:
        """Count in the metrics what was new."""
        last, self._last = self._last, ()
        for each in last:
            RECOMMENDATIONS_SHOWN.labels(each.source, each.variant).inc(each.shown)
            RECOMMENDATIONS_CHOSEN.labels(each.source, each.variant).inc(each.chosen)


def _report(message: IncomingMessage) -> ReportedVideo:
    """Return the report that a message tells; raise Poison for one that makes no sense."""
    try:
        return report_of(message.topic, message.id, message.value)
    except (KeyError, TypeError, ValueError) as error:
        raise Poison(message, describe(error)) from error


def lookups(models: ReadModels) -> Readers:
    """Tell commands the key of lists."""

    def key(cursor: Cursor[TupleRow], asked: Sequence[ListKey]) -> list[bytes]:
        ((found,),) = cursor.execute(KEY, prepare=True).fetchall()
        return [bytes(found)] * len(asked)

    return {ListKey: key}


def subscriptions(
    parts: Parts, bus: CommandBus, tasks: Tasks
) -> Iterator[Subscription[MessageBatch]]:
    """Count the feedback on recommendations."""
    yield parts.feed(FeedbackSink())


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Remove the reports that are past the retention, every hour."""
    outage = Outage("feedback_not_pruned", (psycopg.Error,))
    keep = timedelta(days=parts.settings.analytics.retention_days)
    run = partial(in_thread, _prune_once, parts.analytics_url, keep)
    yield Job("feedback pruning", PRUNE_SECONDS, repeat(run), outage)


def _prune_once(analytics_url: str, keep: timedelta) -> None:
    with open_connection(analytics_url, "feedback pruning") as conn:
        migrate(conn, TABLES)
        gone = prune(conn, datetime.now(UTC) - keep)
    if gone:
        log.info("feedback_pruned", reports=gone)
