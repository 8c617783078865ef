"""The scheduled settling of trending's sums; one replica at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import psycopg
import structlog

from engine.command_bus import CommandBus
from engine.connections import in_thread
from engine.schedule import Job, Outage, repeat
from infra.metrics import counter, gauge
from infra.postgres.connection import open_connection
from projections.trending import Formula, Window, settle
from workers.parts import Parts

log = structlog.get_logger(__name__)

TRENDING_SETTLE_SECONDS = gauge(
    "backlot_trending_settle_seconds",
    "How long the last settling of trending's sums took in this process.",
)
TRENDING_SETTLE_FAILURES = counter(
    "backlot_trending_settle_failures",
    "Times that trending's sums could not be settled; rankings are then made from the rollups.",
)


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
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
