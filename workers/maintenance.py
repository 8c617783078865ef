"""Forgets what is past its lifetime; every replica may do it, nothing is done twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError

from engine import telemetry
from engine import telemetry as viewers
from engine.command_bus import CommandBus
from engine.connections import in_thread
from engine.event_store import GroupCommitRecorder
from engine.schedule import Job, Outage, Run, repeat
from engine.seals.sealer import SEAL_FAILURES, LogBroken, Sealer
from infra.postgres.connection import open_connection
from workers import consumers
from workers.parts import Parts

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 600.0


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Forget what is past its lifetime."""
    settings = parts.settings
    yield housekeeping_job(
        parts.recorder,
        settings.commands.idempotency_ttl_hours,
        parts.database_url,
        settings.watch.view_repeat,
    )


def housekeeping_job(
    recorder: GroupCommitRecorder,
    answers_ttl_hours: float,
    database_url: str,
    repetition: timedelta,
) -> Job:
    """Return the job that forgets, every ten minutes, what is past its lifetime.

    That is idempotency answers, the ids of the messages that consumers have handled, and of
    viewers the sessions that began longer than `repetition` ago and the salts of days that are
    over.
    """

    async def run() -> None:
        answers = await in_thread(recorder.forget_answers, answers_ttl_hours)
        rest = await in_thread(forget, database_url, repetition)
        log.debug("forgotten", answers=answers, **rest)

    outage = Outage("housekeeping_postponed", (PersistenceError, psycopg.Error))
    return Job("housekeeping", INTERVAL_SECONDS, repeat(run), outage)


def forget(database_url: str, repeat: timedelta) -> dict[str, int]:
    """Forget what is past its lifetime now; return how much of each. Raise psycopg.Error."""
    with open_connection(database_url, "housekeeping") as conn:
        return {
            "salts": viewers.forget_salts(conn),
            "sessions": telemetry.forget_sessions(conn, repeat),
            "messages": consumers.forget_processed(conn),
        }


LONGEST_PAUSE_SECONDS = 1.0
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
            yield lambda: _pause_after_turn(sealer)
        finally:
            sealer.close()

    return Job("sealing", min(block_seconds / 2, LONGEST_PAUSE_SECONDS), session)


async def _pause_after_turn(sealer: Sealer) -> float | None:
    made = await _turn(sealer)
    if made is None:
        return AFTER_FAILURE_SECONDS
    return 0.0 if made else None


async def _turn(sealer: Sealer) -> int | None:
    """Return how many seals were made; None when it failed, which the metric and the log tell."""
    try:
        # The thread can't be stopped, and its connection must not be closed under it.
        return await in_thread(sealer.turn)
    except LogBroken as error:
        SEAL_FAILURES.labels("log").inc()
        log.error("log_not_whole", error=str(error))
    except psycopg.Error as error:
        SEAL_FAILURES.labels("database").inc()
        log.warning("sealing_interrupted", error=" ".join(str(error).split()))
    except Exception:
        SEAL_FAILURES.labels("other").inc()
        log.exception("sealing_broke")
    return None
