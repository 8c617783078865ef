"""Forgets what is past its lifetime; every replica may do it, nothing is done twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError

from engine import telemetry, viewers
from engine.command_bus import CommandBus
from engine.connections import in_thread
from engine.schedule import Job, Outage, Run, repeat
from engine.seals.outside import SEAL_FAILURES
from engine.seals.sealer import LogBroken, LogRewritten, Sealer
from infra.metrics import counter
from infra.postgres.connection import open_connection
from workers.consumers import forget_processed
from workers.parts import Parts

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 600.0
RETENTION_DELETED = counter(
    "backlot_retention_deleted",
    "What was past its retention and is deleted, by what it was; the analytics count their own.",
    ("what",),
)


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Forget, every ten minutes, what is past its lifetime."""
    settings = parts.settings

    async def run() -> None:
        ttl_hours = settings.commands.idempotency_ttl_hours
        answers = await in_thread(parts.recorder.forget_answers, ttl_hours)
        rest = await in_thread(forget, parts.database_url, settings.watch.view_repeat)
        tell({"answers": answers, **rest})

    outage = Outage("housekeeping_postponed", (PersistenceError, psycopg.Error))
    yield Job("housekeeping", INTERVAL_SECONDS, repeat(run), outage)


def tell(deleted: Mapping[str, int]) -> None:
    """Count what was past its retention, and log it where that is anything."""
    for what, count in deleted.items():
        RETENTION_DELETED.labels(what).inc(count)
    if found := {what: count for what, count in deleted.items() if count}:
        log.info("retention_over", **found)


def forget(database_url: str, repeat: timedelta) -> dict[str, int]:
    """Forget what is past its lifetime now; return how much of each. Raise psycopg.Error.

    That is the salts of days that are over, the sessions of viewers that began longer than `repeat`
    ago, and the ids of the messages that consumers have handled.
    """
    with open_connection(database_url, "housekeeping") as conn:
        return {
            "salts": viewers.forget_salts(conn),
            "sessions": telemetry.forget_sessions(conn, repeat),
            "messages": forget_processed(conn),
        }


LONGEST_PAUSE_SECONDS = 1.0
SEE_AUDIT = "nothing is sealed until this is settled: see docs/audit.md, `backlot events verify`"
AFTER_FAILURE_SECONDS = 5.0


def sealing_jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Seal the log, where this process has what seals it."""
    if parts.sealer is not None:
        yield sealing_job(parts.sealer, parts.settings.seals.block_seconds)


def sealing_job(sealer: Sealer, block_seconds: float) -> Job:
    """Return the job that seals what is due; what was missed is made up for without a pause."""

    @asynccontextmanager
    async def session() -> AsyncIterator[Run]:
        try:
            yield partial(_seal, sealer)
        finally:
            sealer.close()

    return Job("sealing", min(block_seconds / 2, LONGEST_PAUSE_SECONDS), session)


async def _seal(sealer: Sealer) -> float | None:
    """Seal what is due; return the seconds until the next turn, None for the usual pause.

    The metric and the log tell of a failure.
    """
    try:
        # The thread can't be stopped, and its connection must not be closed under it.
        return 0.0 if await in_thread(sealer.turn) else None
    except LogBroken as error:
        SEAL_FAILURES.labels("log").inc()
        log.error("log_not_whole", error=str(error))
    except LogRewritten as error:
        SEAL_FAILURES.labels("history").inc()
        log.error("log_rewritten", error=str(error), remedy=SEE_AUDIT)
    except psycopg.Error as error:
        SEAL_FAILURES.labels("database").inc()
        log.warning("sealing_interrupted", error=" ".join(str(error).split()))
    except Exception:
        SEAL_FAILURES.labels("other").inc()
        log.exception("sealing_broke")
    return AFTER_FAILURE_SECONDS
