"""The tail of the log on a real PostgreSQL: what was acknowledged before a read is known to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, OperationalError
from psycopg.rows import TupleRow

from domain.upload import Upload
from domain.video_likes import VideoLikes
from engine import tail as module
from engine.checkpoints import Pool
from engine.log import topics_of
from engine.tail import LastSeen, LogTail, TailEvent, TailTelemetry
from engine.telemetry import VIEWED
from infra import metrics
from infra.http.shapes import BEGINNING, Position
from infra.postgres.connection import make_pool
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, caught_up, hosting
from tests.integration.replay_support import BACK, replayed
from tests.support import until

OUTCOMES = ("nothing", "events", "begun")
VIEW = """
INSERT INTO backlot_telemetry (event_id, topic, video_id, user_id, happened_at, details)
VALUES (gen_random_uuid(), %s, %s, %s, now(), '{}') RETURNING seq
"""


class Notes:
    """A follower that writes down what it hears."""

    def __init__(self) -> None:
        self.begun: list[Position] = []
        self.events: list[TailEvent] = []
        self.telemetry: list[TailTelemetry] = []
        self.fault: Exception | None = None

    def begin(self, position: Position) -> None:
        self.begun.append(position)

    def take(self, event: TailEvent) -> None:
        if self.fault is not None:
            raise self.fault
        self.events.append(event)

    def take_telemetry(self, event: TailTelemetry) -> None:
        self.telemetry.append(event)

    @property
    def positions(self) -> list[int]:
        return [event.position for event in self.events]


class HaltedTail(LogTail):
    """Has read, and does not say so until it may."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.has_read, self.go_on = asyncio.Event(), asyncio.Event()

    async def _read(self, conn: AsyncConnection[TupleRow]) -> None:
        await super()._read(conn)
        self.has_read.set()
        await self.go_on.wait()


class Bench:
    """A tail of a test's own database, its follower, and who writes."""

    def __init__(self, database_url: str, pool: Pool, kind: type[LogTail]) -> None:
        self.url = database_url
        self.tail = kind(pool, [Likes.name])
        self.notes = Notes()
        self.tail.follow(self.notes)
        self.writer = Writer(database_url)

    def view(self, video: UUID, person: str | None = "ann") -> int:
        return int(rows(self.url, VIEW, (VIEWED, video, person))[0][0])


@asynccontextmanager
async def bench(database_url: str, kind: type[LogTail] = LogTail) -> AsyncIterator[Bench]:
    pool = make_pool(database_url, max_size=2)
    await pool.open()
    made = Bench(database_url, pool, kind)
    try:
        yield made
    finally:
        await made.tail.aclose()
        await pool.close()
        made.writer.close()


def reads() -> float:
    return sum(metrics.value("backlot_tail_reads_total", outcome=each) for each in OUTCOMES)


def run(case: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await case()

    asyncio.run(main())


@contextmanager
def locked_log(database_url: str) -> Any:
    """Nobody can read the log meanwhile."""
    with psycopg.connect(database_url) as conn:
        conn.execute("LOCK TABLE backlot_events IN ACCESS EXCLUSIVE MODE")
        yield conn


def waits(database_url: str) -> list[int]:
    """The processes of the server that wait for the log."""
    query = "SELECT pid FROM pg_locks WHERE relation = 'backlot_events'::regclass AND NOT granted"
    return [pid for (pid,) in rows(database_url, query)]


def test_what_was_acknowledged_is_known(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            assert await at.tail.confirm() == BEGINNING
            video = at.writer.video().id
            for number in range(10):
                head = at.writer.like(video, f"fan-{number}")
                place = at.view(video)
                assert await at.tail.confirm() == Position(head, place)
                assert at.notes.events[-1].position == head
                assert at.notes.telemetry[-1] == (place, video, VIEWED, "ann")
            assert at.notes.positions == list(range(1, at.writer.head + 1))
            last = at.notes.events[-1]
            assert last.topic == topics_of(VideoLikes.Liked)[0]
            assert (last.fields["video_id"], last.fields["viewer"]) == (str(video), "fan-9")
            assert at.notes.begun == [BEGINNING, BEGINNING]

    run(case)


def test_the_first_read_begins_where_the_log_ends(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            head, place = at.writer.video(), at.view(uuid4())
            assert await at.tail.confirm() == Position(at.writer.head, place)
            assert at.notes.begun[-1] == Position(at.writer.head, place)
            assert at.notes.events == []
            assert at.tail.last_of(topics_of(Upload.Removed)) == at.writer.head
            assert at.tail.own("nobody") == Position(at.writer.head, place)
            assert head.id is not None

    run(case)


def test_a_follower_of_some_topics_hears_of_these_alone(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            likes, views = Notes(), Notes()
            at.tail.follow(likes, frozenset(topics_of(VideoLikes.Liked)))
            await at.tail.confirm()
            video = at.writer.video().id
            liked = [at.writer.like(video, "ann")]
            at.view(video)
            await at.tail.confirm()
            assert (likes.positions, likes.telemetry) == (liked, [])
            # Also of a topic that others have heard of before.
            at.tail.follow(views, {VIEWED})
            liked.append(at.writer.like(video, "bob"))
            place = at.view(video)
            await at.tail.confirm()
            assert (likes.positions, views.positions) == (liked, [])
            assert [each.position for each in views.telemetry] == [place]
            assert likes.begun[-1] == BEGINNING

    run(case)


def test_who_did_what_last(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            await at.tail.confirm()
            video = at.writer.video("ann").id
            liked = at.writer.like(video, "bob")
            place = at.view(video, "bob")
            at.view(video, None)
            at.writer.like(video, "cat")
            await at.tail.confirm()
            assert at.tail.own("bob") == Position(liked, place)
            assert at.tail.own("dora") == BEGINNING
            assert at.tail.last_of(topics_of(VideoLikes.Liked)) == at.writer.head
            assert at.tail.last_of(topics_of(Upload.Completed)) == liked - 1
            assert at.tail.last_of(topics_of(Upload.Removed)) == 0
            assert at.tail.last_of(()) == 0

    run(case)


def test_who_asks_together_shares_a_statement(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            await at.tail.confirm()
            before, head = reads(), at.writer.like(uuid4(), "ann")
            told = await asyncio.gather(*(at.tail.confirm() for _ in range(50)))
            assert set(told) == {Position(head)}
            assert reads() == before + 1

    run(case)


def test_who_comes_while_it_is_read_is_told_of_the_next_read(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url, HaltedTail) as at:
            assert isinstance(at.tail, HaltedTail)
            before, first = reads(), asyncio.create_task(at.tail.confirm())
            await at.tail.has_read.wait()
            head = at.writer.like(uuid4(), "ann")
            later = [asyncio.create_task(at.tail.confirm()) for _ in range(5)]
            await asyncio.sleep(0)
            at.tail.go_on.set()
            assert await first == BEGINNING
            assert set(await asyncio.gather(*later)) == {Position(head)}
            assert reads() == before + 2

    run(case)


def test_who_is_far_behind_begins_anew(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 5)

    async def case() -> None:
        async with bench(database_url) as at:
            await at.tail.confirm()
            video, epoch = uuid4(), at.tail.epoch
            at.writer.like(video, *(f"fan-{n}" for n in range(4)))
            await at.tail.confirm()
            assert (at.notes.positions, at.tail.epoch) == ([1, 2, 3, 4], epoch)
            at.writer.like(video, *(f"more-{n}" for n in range(5)))
            assert await at.tail.confirm() == at.notes.begun[-1]
            for _ in range(5):
                at.view(video)
            told = await at.tail.confirm()
            assert told == at.notes.begun[-1]
            assert at.tail.epoch == epoch + 2
            assert told.events == at.writer.head == 9
            assert len(at.notes.events) == 4
            assert at.notes.telemetry == []
            assert at.tail.own("fan-1").events == at.tail.last_of(["any"]) == 9

    run(case)


def test_a_cutover_is_noticed(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            video, likes = at.writer.video().id, Likes()
            with hosting(database_url, likes):
                at.writer.like(video, "ann")
                caught_up(database_url, [Likes.name], at.writer.head)
                await at.tail.confirm()
                for options in ((), (BACK,)):
                    epoch = at.tail.epoch
                    await at.tail.confirm()
                    assert at.tail.epoch == epoch
                    await asyncio.to_thread(replayed, database_url, likes, *options)
                    told = await at.tail.confirm()
                    assert at.tail.epoch == epoch + 1
                    assert at.notes.begun[-1] == told == Position(at.writer.head)

    run(case)


def test_another_log_is_noticed(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            at.writer.like(uuid4(), "ann", "bob")
            at.view(uuid4())
            told = await at.tail.confirm()
            with psycopg.connect(database_url) as conn:
                conn.execute("TRUNCATE backlot_events, backlot_telemetry")
            epoch = at.tail.epoch
            assert told.events == 2
            assert await at.tail.confirm() == BEGINNING
            assert (at.tail.epoch, at.notes.begun[-1]) == (epoch + 1, BEGINNING)

    run(case)


def test_who_asks_a_database_that_goes_away_is_told(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            await at.tail.confirm()
            with locked_log(database_url):
                asking = [asyncio.create_task(at.tail.confirm())]
                await until(lambda: waits(database_url))
                # They are next; the connection is the one that is lost.
                asking += [asyncio.create_task(at.tail.confirm()) for _ in range(3)]
                await asyncio.sleep(0)
                for pid in waits(database_url):
                    rows(database_url, "SELECT pg_terminate_backend(%s)", (pid,))
                found = await asyncio.gather(*asking, return_exceptions=True)
            assert [isinstance(each, OperationalError) for each in found] == [True] * 4
            head = at.writer.like(uuid4(), "ann")
            assert await at.tail.confirm() == Position(head)
            assert at.notes.positions == [head]

    run(case)


def test_who_is_cancelled_takes_nothing_from_others(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            await at.tail.confirm()
            with locked_log(database_url) as holder:
                asking = [asyncio.create_task(at.tail.confirm()) for _ in range(4)]
                await until(lambda: waits(database_url))
                later = [asyncio.create_task(at.tail.confirm()) for _ in range(4)]
                await asyncio.sleep(0)
                for each in (*asking[:2], *later[:2]):
                    each.cancel()
                holder.rollback()
                found = await asyncio.gather(*asking, *later, return_exceptions=True)
            assert [isinstance(each, asyncio.CancelledError) for each in found] == (
                [True, True, False, False] * 2
            )
            # All who ask may be gone: the next one is answered.
            alone = asyncio.create_task(at.tail.confirm())
            await asyncio.sleep(0)
            alone.cancel()
            head = at.writer.like(uuid4(), "ann")
            assert await at.tail.confirm() == Position(head)

    run(case)


def test_nobody_waits_for_a_tail_that_is_closed(database_url: str) -> None:
    async def case() -> None:
        async with bench(database_url) as at:
            with locked_log(database_url):
                asking = [asyncio.create_task(at.tail.confirm()) for _ in range(2)]
                await until(lambda: waits(database_url))
                asking.append(asyncio.create_task(at.tail.confirm()))
                await asyncio.sleep(0)
                await at.tail.aclose()
                found = await asyncio.gather(*asking, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in found)

    run(case)


def test_a_follower_that_breaks_begins_anew(database_url: str) -> None:
    """What it has not taken would be missing for ever."""

    async def case() -> None:
        async with bench(database_url) as at:
            await at.tail.confirm()
            at.notes.fault = KeyError("viewer")
            epoch, head = at.tail.epoch, at.writer.like(uuid4(), "ann", "bob")
            assert await at.tail.confirm() == Position(head)
            assert (at.tail.epoch, at.notes.begun[-1]) == (epoch + 1, Position(head))
            at.notes.fault = None
            at.writer.like(uuid4(), "cat")
            await at.tail.confirm()
            assert at.notes.positions == [head + 1]

    run(case)


@pytest.mark.parametrize("seed", range(5))
def test_last_seen_is_bounded_and_never_too_low(seed: int) -> None:
    dice, most = random.Random(seed), 8
    seen, truth = LastSeen(most), dict[int, int]()
    newest: Sequence[int] = ()
    for position in range(1, 500):
        if dice.random() < 0.01:
            seen.begin(position)
            truth, newest = dict.fromkeys(range(30), position), ()
        else:
            key = dice.randrange(30)
            seen.put(key, position)
            truth[key] = position
            newest = (*(each for each in newest if each != key), key)[-most:]
        assert all(seen.get(key) >= truth.get(key, 0) for key in range(30))
        assert all(seen.get(key) == truth[key] for key in newest)
        assert len(seen._seen) <= most
