"""Forgets what is past its lifetime; every replica may do it, nothing is done twice."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError

from engine.schedule import Job, Outage, in_thread, repeat
from infra import telemetry, viewers
from infra.connecting import open_connection
from infra.event_store import GroupCommitRecorder
from workers.consuming import ledger

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 600.0


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
            "messages": ledger.forget_processed(conn),
        }
