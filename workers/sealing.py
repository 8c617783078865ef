"""Seals the event log as it grows; one process at a time, and another when that one is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import structlog

from engine.schedule import Job, Run, in_thread
from infra.seals import LogBroken, Sealer
from infra.seals.sealer import SEAL_FAILURES

log = structlog.get_logger(__name__)

LONGEST_PAUSE_SECONDS = 1.0
AFTER_FAILURE_SECONDS = 5.0


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
