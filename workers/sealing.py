"""Seals the event log as it grows; one process at a time, and another when that one is gone."""

from __future__ import annotations

import asyncio

import psycopg
import structlog

from infra.cancellation import to_the_end
from infra.seals import LogBroken, Sealer
from infra.seals.sealer import SEAL_FAILURES

log = structlog.get_logger(__name__)

LONGEST_PAUSE_SECONDS = 1.0
AFTER_FAILURE_SECONDS = 5.0


async def keep_sealing(sealer: Sealer, block_seconds: float) -> None:
    """Seal what is due, again and again, until cancelled; what was missed is made up for."""
    pause = min(block_seconds / 2, LONGEST_PAUSE_SECONDS)
    try:
        while True:
            made = await _turn(sealer)
            if made == 0:
                await asyncio.sleep(pause)
            elif made is None:
                await asyncio.sleep(AFTER_FAILURE_SECONDS)
    finally:
        sealer.close()


async def _turn(sealer: Sealer) -> int | None:
    """How many seals were made; None when it failed, which the metric and the log tell."""
    try:
        # The thread can't be stopped, and its connection must not be closed under it.
        return await to_the_end(asyncio.to_thread(sealer.turn))
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
