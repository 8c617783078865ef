"""The scheduled pruning of the analytics; one replica at a time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import psycopg
import structlog

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


async def keep_pruning(
    analytics_url: str, days: int, interval_seconds: float = INTERVAL_SECONDS
) -> None:
    """Take away what is older than `days` now and every hour, until cancelled."""
    while True:
        try:
            await asyncio.to_thread(prune_once, analytics_url, days)
        except psycopg.Error as error:
            ANALYTICS_PRUNE_FAILURES.inc()
            log.warning("analytics_not_pruned", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(interval_seconds)


def prune_once(analytics_url: str, days: int) -> None:
    """Take away what is older than that now; raises psycopg.Error."""
    with open_connection(analytics_url, "pruning") as conn:
        gone = prune(conn, days, datetime.now(UTC))
    for table, rows in gone.items():
        ANALYTICS_PRUNED.labels(table).inc(rows)
    if sum(gone.values()):
        log.info("analytics_pruned", **gone)
