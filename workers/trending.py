"""The scheduled settling of trending's sums; one replica at a time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import psycopg
import structlog

from infra.connecting import open_connection
from infra.metrics import counter, gauge
from projections.analytics.formula import Formula
from projections.analytics.settling import settle
from projections.analytics.windows import Window

log = structlog.get_logger(__name__)

TRENDING_SETTLE_SECONDS = gauge(
    "backlot_trending_settle_seconds",
    "How long the last settling of trending's sums took in this process.",
)
TRENDING_SETTLE_FAILURES = counter(
    "backlot_trending_settle_failures",
    "Times that trending's sums could not be settled; rankings are then made from the rollups.",
)


async def keep_settling(analytics_url: str, formula: Formula, interval_seconds: float) -> None:
    """Settle now and every `interval_seconds`, until cancelled.

    While that fails, rankings are made from the rollups themselves: right, and slower.
    """
    while True:
        try:
            await asyncio.to_thread(settle_once, analytics_url, formula)
        except psycopg.Error as error:
            TRENDING_SETTLE_FAILURES.inc()
            log.warning("trending_not_settled", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(interval_seconds)


def settle_once(analytics_url: str, formula: Formula) -> None:
    """Settle every window as it is now; raises psycopg.Error."""
    started = time.perf_counter()
    with open_connection(analytics_url, "trending") as conn:
        now = datetime.now(UTC)
        done = [settle(conn, each, formula=formula, now=now) for each in Window]
    if all(done):
        seconds = time.perf_counter() - started
        TRENDING_SETTLE_SECONDS.set(seconds)
        log.debug("trending_settled", seconds=seconds)
