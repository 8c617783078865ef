"""Maintenance: what is past its lifetime or its term is deleted, and the log is sealed.

Every replica may do it, nothing is done twice. The event log is never cut, and read models follow
it. The analytics delete their own rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError
from psycopg import Connection
from psycopg.rows import TupleRow

from commands.uploads import ENDS
from engine import dead_letters, telemetry, viewers
from engine.command_bus import CommandBus
from engine.connections import in_thread
from engine.personal_data import Left, Unsearched
from engine.reservations import forget_reservations
from engine.schedule import Job, Outage, Run, repeat
from engine.seals.outside import SEAL_FAILURES
from engine.seals.sealer import LogBroken, LogRewritten, Sealer
from infra.metrics import counter
from infra.postgres.connection import open_connection
from infra.settings import Settings
from projections.recommendations.retention import forget_viewers
from workers.consumers import forget_processed
from workers.parts import Parts

log = structlog.get_logger(__name__)

HOUSEKEEPING_SECONDS, RETENTION_SECONDS = 600.0, 3600.0
RETENTION_DELETED = counter(
    "backlot_retention_deleted",
    "What was past its retention and is deleted, by what it was; the analytics count their own.",
    ("what",),
)
RETENTION_FAILURES = counter(
    "backlot_retention_failures",
    "Times that what is past its retention could not be deleted; it is tried again in an hour.",
)

PERSONAL = (
    Unsearched(
        name="topics",
        holds="published messages: who liked, watched, commented what, and the texts of comments",
        kept="texts so many days and a day more at most; what has none as long as Kafka keeps it",
        setting="KAFKA_TEXT_RETENTION_DAYS",
        where="Kafka",
        forget=Left("consumers are told; texts go by their term"),
    ),
    Unsearched(
        name="results",
        holds="keys of rows that differed, in the results of replays and verifications",
        kept="the event log is kept for good",
        where="events operation.finished",
        forget=Left("a pseudonym that names nobody", for_good=True),
    ),
    Unsearched(
        name="outside",
        holds="what was copied: logs, backups, WAL, exports of the event log, proxies' logs",
        kept="as long as whoever has them keeps them",
        where="outside of the program",
        forget=Left("for whoever has them: [copies](#copies-outside)"),
    ),
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
    yield Job("housekeeping", HOUSEKEEPING_SECONDS, repeat(run), outage)


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


def retention_jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Delete, every hour, what is past its retention; several processes may do it at once."""
    outage = Outage("retention_postponed", (psycopg.Error,), RETENTION_FAILURES)
    urls = (parts.database_url, parts.analytics_url)

    async def run() -> None:
        tell(await in_thread(expire, *urls, parts.settings, datetime.now(UTC)))

    yield Job("retention", RETENTION_SECONDS, repeat(run), outage)


def expire(
    database_url: str, analytics_url: str, settings: Settings, now: datetime
) -> Counter[str]:
    """Delete what is past its retention; return how much of each. Raise psycopg.Error."""
    terms = settings.privacy
    letters = now - timedelta(days=terms.dead_letter_retention_days)
    viewers = now - timedelta(days=terms.engagement_retention_days)
    deleted: Counter[str] = Counter()
    with open_connection(database_url, "retention") as conn:
        deleted["telemetry"] = telemetry.forget_events(conn, now - settings.telemetry_retention)
        deleted["reservations"] = forget_reservations(conn, ENDS, now)
        deleted += _letters(conn, letters)
    with open_connection(analytics_url, "retention") as conn:
        deleted["viewers"] = forget_viewers(conn, viewers)
        # Where it is the same database, there are none left.
        deleted += _letters(conn, letters)
    return deleted


def _letters(conn: Connection[TupleRow], before: datetime) -> Counter[str]:
    expired = dead_letters.expire(conn, before)
    return Counter(
        dead_letters=expired.total(), parked_errors=dead_letters.shorten_errors(conn, before)
    )


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
