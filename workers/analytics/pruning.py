"""The scheduled pruning of the analytics; one replica at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import psycopg
import structlog

from engine.schedule import Job, Outage, in_thread, repeat
from infra.connecting import open_connection
from infra.metrics import counter
from projections.analytics.pruning import prune

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 3600.0

ANALYTICS_PRUNED = counter(
    "backlot_analytics_pruned",
    "Rows of the analytics that were past the retention, by table, without dropped chunks.",
    ("table",),
)
ANALYTICS_PRUNE_FAILURES = counter(
    "backlot_analytics_prune_failures",
    "Times that rows past the retention could not be taken away.",
)


def pruning_job(analytics_url: str, days: int, every: float = INTERVAL_SECONDS) -> Job:
    """Return the job that removes what is older than `days`."""
    outage = Outage("analytics_not_pruned", (psycopg.Error,), ANALYTICS_PRUNE_FAILURES)
    run = partial(in_thread, prune_once, analytics_url, days)
    return Job("analytics pruning", every, repeat(run), outage)


def prune_once(analytics_url: str, days: int) -> None:
    """Remove what is older than `days` now. Raise psycopg.Error."""
    with open_connection(analytics_url, "pruning") as conn:
        gone = prune(conn, days, datetime.now(UTC))
    for table, rows in gone.items():
        ANALYTICS_PRUNED.labels(table).inc(rows)
    if sum(gone.values()):
        log.info("analytics_pruned", **gone)
