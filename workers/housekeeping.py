"""What has to be tidied up now and then; every replica may do it, nothing is done twice."""

from __future__ import annotations

import asyncio

import structlog
from eventsourcing.persistence import PersistenceError

from infra.event_store import GroupCommitRecorder

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 600.0


async def keep_house(recorder: GroupCommitRecorder, answers_ttl_hours: float) -> None:
    """Forget idempotency answers past their lifetime, every ten minutes, until cancelled."""
    while True:
        try:
            forgotten = await asyncio.to_thread(recorder.forget_answers, answers_ttl_hours)
        except PersistenceError as error:
            log.warning("housekeeping_postponed", error=str(error))
        else:
            log.debug("answers_forgotten", count=forgotten)
        await asyncio.sleep(INTERVAL_SECONDS)
