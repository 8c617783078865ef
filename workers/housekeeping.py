"""What has to be tidied up now and then; every replica may do it, nothing is done twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError

from infra import telemetry, viewers
from infra.connecting import open_connection
from infra.event_store import GroupCommitRecorder
from workers.consuming import ledger

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 600.0


async def keep_house(
    recorder: GroupCommitRecorder, answers_ttl_hours: float, database_url: str, repeat: timedelta
) -> None:
    """Forget what is past its lifetime every ten minutes, until cancelled.

    That is idempotency answers, the ids of the messages that consumers have handled, and of
    viewers the sessions that began longer than `repeat` ago and the salts of days that are over.
    """
    while True:
        try:
            answers = await asyncio.to_thread(recorder.forget_answers, answers_ttl_hours)
            rest = await asyncio.to_thread(forget, database_url, repeat)
        except (PersistenceError, psycopg.Error) as error:
            log.warning("housekeeping_postponed", error=str(error))
        else:
            log.debug("forgotten", answers=answers, **rest)
        await asyncio.sleep(INTERVAL_SECONDS)


def forget(database_url: str, repeat: timedelta) -> dict[str, int]:
    """Forget what is past its lifetime now; returns how much of each, and raises psycopg.Error."""
    with open_connection(database_url, "housekeeping") as conn:
        return {
            "salts": viewers.forget_salts(conn),
            "sessions": telemetry.forget_sessions(conn, repeat),
            "messages": ledger.forget_processed(conn),
        }
