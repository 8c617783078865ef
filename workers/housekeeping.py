"""What has to be tidied up now and then; every replica may do it, nothing is done twice."""

from __future__ import annotations

import asyncio

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError

from infra.connecting import open_connection
from infra.event_store import GroupCommitRecorder
from workers.consuming import ledger

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 600.0


async def keep_house(
    recorder: GroupCommitRecorder, answers_ttl_hours: float, database_url: str
) -> None:
    """Forget what is past its lifetime every ten minutes, until cancelled.

    That is idempotency answers, and the ids of the messages that consumers have handled.
    """
    while True:
        try:
            answers = await asyncio.to_thread(recorder.forget_answers, answers_ttl_hours)
            messages = await asyncio.to_thread(_forget_processed, database_url)
        except (PersistenceError, psycopg.Error) as error:
            log.warning("housekeeping_postponed", error=str(error))
        else:
            log.debug("forgotten", answers=answers, messages=messages)
        await asyncio.sleep(INTERVAL_SECONDS)


def _forget_processed(database_url: str) -> int:
    with open_connection(database_url, "housekeeping") as conn:
        return ledger.forget_processed(conn)
