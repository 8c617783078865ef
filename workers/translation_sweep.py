"""The sweep for comments whose task was lost: they get another one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import structlog
from dramatiq import Actor
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import ThreadedConnection, leading
from engine.schedule import Job, Outage, Run
from infra.llm.errors import NO_LANGUAGE_MODEL, PASSING
from infra.metrics import counter
from infra.tasks.broker import task_queues
from infra.tasks.queues import TRANSLATION, BrokerAway, TaskQueues, enqueue
from projections.comments import Comments

if TYPE_CHECKING:
    from workers.parts import Parts
    from workers.tasks import Tasks

log = structlog.get_logger(__name__)

AT_ONCE = 500
# What failed is tried again for so long; later an operator has to say so.
TRY_AGAIN = timedelta(days=1)

TRANSLATIONS_SWEPT = counter(
    "backlot_translations_swept",
    "Tasks sent again for comments that waited for too long.",
)


@dataclass(frozen=True)
class Sweep:
    """Looks for comments that wait for longer than `overdue`, while no task waits.

    As long as tasks wait, theirs may be among them.
    """

    comments: Comments
    translate_comment: Actor[..., Any]
    queues: TaskQueues
    overdue: timedelta
    # Whether a language model is there for what was skipped without one.
    can_translate: bool

    def run(self, conn: Connection[TupleRow]) -> int:
        """Send the tasks that are missing; return how many. Raise BrokerAway, psycopg.Error."""
        if any(d.waiting or d.delayed for d in self.queues.depths() if d.queue == TRANSLATION):
            return 0
        reasons = (*PASSING, NO_LANGUAGE_MODEL) if self.can_translate else PASSING
        found = self.comments.untranslated(conn, self.overdue, reasons, TRY_AGAIN, AT_ONCE)
        sweep = f"sweep-{uuid4()}"
        origin = {"correlation_id": sweep, "causation_id": sweep}
        for comment_id in found:
            enqueue(self.translate_comment, str(comment_id), **origin)
            TRANSLATIONS_SWEPT.inc()
        return len(found)


def sweep_job(sweep: Sweep, database_url: str, every: float) -> Job:
    """Return the job that sweeps; one process at a time does."""

    async def run(conn: ThreadedConnection) -> None:
        sent = await conn.do(sweep.run)
        if sent:
            log.warning("translations_swept", comments=sent)

    @asynccontextmanager
    async def session() -> AsyncIterator[Run]:
        async with leading(database_url, "translation sweep") as conn:
            yield lambda: run(conn)

    outage = Outage("sweep_postponed", (psycopg.Error, BrokerAway))
    return Job("translation sweep", every, session, outage, at_once=False)


def sweeps(parts: Parts, tasks: Tasks) -> Iterator[Job]:
    """Have comments translated that wait for too long."""
    settings = parts.settings
    sweep = Sweep(
        parts.models[Comments],
        tasks.translate_comment,
        task_queues(settings.tasks),
        overdue=timedelta(seconds=settings.translation.overdue_seconds),
        can_translate=settings.llm.configured,
    )
    yield sweep_job(sweep, parts.database_url, settings.translation.sweep_seconds)
