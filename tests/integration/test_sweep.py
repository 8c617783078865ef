"""Comments whose task was lost, or failed for a reason that passes, get another one; no others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import UUID, uuid4

import pytest
from fakeredis import FakeRedis
from psycopg import Connection
from psycopg.rows import TupleRow
from structlog.testing import capture_logs

from domain.comment import Comment
from domain.model import Origin
from engine.installation import install
from engine.log import Log
from engine.schedule import run_job
from infra import metrics
from infra.redis import embedded_server
from infra.tasks.broker import task_queues
from infra.tasks.queues import (
    SPEECH,
    TRANSLATION,
    BrokerAway,
    Depth,
    FailedTask,
    TaskQueues,
    Wanted,
    current_origin,
)
from projections.comments import Comments
from tests.integration.projection_support import Writer
from tests.integration.task_support import Toy, quick_settings
from tests.support import ended, eventually, until
from workers.translation_sweep import Sweep, sweep_job

OVERDUE = timedelta(minutes=5)
RECENTLY, LONG_AGO = timedelta(minutes=10), timedelta(hours=25)
PASSING = ("throttled", "overloaded", "timeout", "unreachable", "breaker_open", "too_many")
LASTING = ("refused", "truncated", "malformed", "not_kept", "rejected", "unauthorized", "error")

MANY: LiteralString = """
INSERT INTO comments.comments (comment_id, video_id, position, author, content,
    translation_status, reason, written_at, created_at)
SELECT gen_random_uuid(), gen_random_uuid(), n, 'bob', 'Bonito', %s, %s,
    now() - %s - n * interval '1 millisecond', now()
FROM generate_series(1, %s) n
"""
LOOKED: LiteralString = """
SELECT seq_scan, idx_scan, idx_tup_fetch FROM pg_stat_xact_user_tables
WHERE schemaname = 'comments' AND relname = 'comments'
"""


class Queues:
    """Queues that hold so much; they can't be asked as often as they are away."""

    def __init__(self, *depths: Depth, away: int = 0) -> None:
        self._depths, self._away = list(depths), away

    def depths(self) -> list[Depth]:
        if self._away:
            self._away -= 1
            raise BrokerAway("the task broker is away")
        return self._depths

    def dead(self, queue: str, limit: int) -> list[FailedTask]:
        return []

    def redrive(self, queue: str, wanted: Wanted) -> list[str]:
        return []

    def discard(self, queue: str, wanted: Wanted) -> list[FailedTask]:
        return []


class Desk:
    """Comments in the read model, the queue inside this process, and a task that tells its own."""

    def __init__(self, database_url: str, conn: Connection[TupleRow], writer: Writer) -> None:
        self.database_url, self._conn, self._writer = database_url, conn, writer
        self._comments = Comments()
        install(conn, [self._comments])
        FakeRedis(server=embedded_server()).flushall()
        self.ran: list[UUID] = []
        self.origins: set[str | None] = set()
        self.toy = Toy(quick_settings(None))
        self.toy.actor(self._translate, actor_name="translate_comment")

    async def _translate(self, comment_id: str) -> None:
        self.ran.append(UUID(comment_id))
        self.origins |= set(current_origin())

    def comment(self, age: timedelta, *outcomes: tuple[str, bool | None]) -> UUID:
        """One of that age; an outcome is a reason, and None for a failure, or `needed` of a skip.

        What was found out is as old as the text.
        """
        by = Origin("bob", datetime.now(UTC) - age, "correlation", "causation")
        comment = Comment.blank(uuid4())
        comment.post(uuid4(), "¡Qué bonito!", by)
        for reason, needed in outcomes:
            if needed is None:
                comment.fail_translation(1, reason, by)
            else:
                comment.skip_translation(1, needed, reason, by)
        self._writer.save(comment)
        return comment.id

    def failed(self, reason: str, age: timedelta = RECENTLY) -> UUID:
        return self.comment(age, (reason, None))

    def project(self) -> None:
        log = Log(self._comments.events, batch_events=1000)
        events = [event.decode() for event in log.read(self._conn, 0, self._writer.head).events]
        with self._conn.transaction(), self._conn.cursor(binary=True) as cursor:
            self._comments.apply(events, cursor)

    def made(self, queues: TaskQueues | None = None, *, can_translate: bool = True) -> Sweep:
        return Sweep(
            self._comments,
            self.toy.broker.get_actor("translate_comment"),
            queues or task_queues(quick_settings(None)),
            overdue=OVERDUE,
            can_translate=can_translate,
        )

    def sweep(self, queues: TaskQueues | None = None, *, can_translate: bool = True) -> int:
        return self.made(queues, can_translate=can_translate).run(self._conn)

    def runs(self, expected: Sequence[UUID]) -> bool:
        """Whether these tasks were waiting, and no others."""
        self.ran.clear()
        with self.toy.working():
            eventually(lambda: len(self.ran) >= len(expected))
            eventually(self.is_empty)
        return sorted(self.ran) == sorted(expected)

    def is_empty(self) -> bool:
        depths = task_queues(quick_settings(None)).depths()
        return not any(each.waiting or each.taken or each.delayed for each in depths)


@pytest.fixture
def desk(database_url: str, conn: Connection[TupleRow], writer: Writer) -> Iterator[Desk]:
    opened = Desk(database_url, conn, writer)
    yield opened
    opened.toy.broker.close()


def test_what_waits_for_too_long_is_sent(desk: Desk) -> None:
    lost = [desk.comment(RECENTLY), desk.comment(2 * LONG_AGO)]
    desk.comment(OVERDUE / 2)
    desk.comment(RECENTLY, ("no_words", False))
    desk.project()
    swept = metrics.value("backlot_translations_swept_total")
    assert desk.sweep() == 2
    assert desk.runs(lost)
    assert metrics.value("backlot_translations_swept_total") - swept == 2
    (origin,) = desk.origins
    assert str(origin).startswith("sweep-")


def test_nothing_is_sent_while_tasks_wait(desk: Desk) -> None:
    lost = desk.comment(RECENTLY)
    desk.project()
    assert desk.sweep() == 1
    assert desk.sweep() == 0, "its task waits"
    assert desk.runs([lost])
    assert desk.sweep() == 1, "it was lost again"


def test_nothing_is_sent_while_tasks_are_delayed(desk: Desk) -> None:
    desk.comment(RECENTLY)
    desk.project()
    assert desk.sweep(Queues(Depth(SPEECH, 0, 0, 0), Depth(TRANSLATION, 0, 1, 0))) == 0
    assert desk.is_empty()


def test_tasks_of_other_kinds_and_dead_letters_do_not_hold_it_up(desk: Desk) -> None:
    desk.comment(RECENTLY)
    desk.project()
    assert desk.sweep(Queues(Depth(SPEECH, 5, 5, 0), Depth(TRANSLATION, 0, 0, 5))) == 1


def test_what_failed_for_a_reason_that_passes_is_sent_for_a_day(desk: Desk) -> None:
    passing = [desk.failed(reason) for reason in PASSING]
    for reason in LASTING:
        desk.failed(reason)
    for reason in PASSING:
        desk.failed(reason, LONG_AGO)
        desk.failed(reason, OVERDUE / 2)
    desk.project()
    assert desk.sweep() == len(PASSING)
    assert desk.runs(passing)


def test_what_was_skipped_is_sent_once_there_is_a_language_model(desk: Desk) -> None:
    skipped = desk.comment(RECENTLY, ("no_language_model", True))
    desk.comment(LONG_AGO, ("no_language_model", True))
    desk.comment(RECENTLY, ("no_language", False))
    desk.project()
    assert desk.sweep(can_translate=False) == 0
    assert desk.sweep() == 1
    assert desk.runs([skipped])


def test_looking_costs_no_more_with_many_comments(desk: Desk, conn: Connection[TupleRow]) -> None:
    day = timedelta(days=1)
    conn.execute(MANY, ("translated", None, day, 20_000))
    conn.execute(MANY, ("skipped", "no_language_model", 2 * day, 20_000))
    conn.execute(MANY, ("failed", "overloaded", 2 * day, 5_000))
    conn.execute(MANY, ("pending", None, timedelta(0), 5_000))
    conn.execute(MANY, ("pending", None, day, 3))
    conn.execute("ANALYZE comments.comments")
    with conn.transaction():
        # What was counted for the statements before may not have been taken away yet.
        before = conn.execute(LOOKED).fetchone()
        assert desk.sweep() == 3
        after = conn.execute(LOOKED).fetchone()
    assert after is not None
    sequential, by_index, rows_read = (
        now - then for now, then in zip(after, before or (0, 0, 0), strict=True)
    )
    assert (sequential, by_index > 0) == (0, True)
    assert rows_read <= 10


def test_it_goes_on_when_the_broker_was_away(desk: Desk) -> None:
    lost = desk.comment(RECENTLY)
    desk.project()
    sweep = desk.made(Queues(away=1))

    async def scenario() -> None:
        swept = metrics.value("backlot_translations_swept_total")
        task = asyncio.create_task(run_job(sweep_job(sweep, desk.database_url, 0.05)))
        await until(lambda: metrics.value("backlot_translations_swept_total") > swept)
        await ended(task)

    with capture_logs() as logs:
        asyncio.run(scenario())
    told = [line["event"] for line in logs if line["event"].startswith(("sweep", "translations"))]
    assert told[0] == "sweep_postponed"
    with desk.toy.working():
        eventually(lambda: lost in desk.ran)
