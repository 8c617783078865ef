"""Waiting for a position: answered as soon as it is reached, refused in time, quiet otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import psycopg
import pytest

from engine import projection_subscription
from engine.checkpoints import (
    POLL_SECONDS,
    Pool,
    ReadModelBehind,
    Waiting,
    create,
    pause,
    resume,
)
from engine.installation import install
from infra.http.shapes import Position
from infra.postgres.connection import make_pool
from tests.integration.event_log import rows
from tests.integration.projection_support import Tally, Writer, hosting
from tests.support import until

Case = Callable[[Waiting], Awaitable[None]]


def at(position: int) -> dict[str, Position]:
    """The projection of these tests, at a position."""
    return {"tally": Position(position)}


def move(database_url: str, position: int, schema: str = "tally") -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(
            "UPDATE backlot_checkpoints SET position = %s WHERE subscription = %s",
            (position, schema),
        )


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[Pool]:
    pool = make_pool(database_url, max_size=3)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


def run(database_url: str, case: Case, poll_seconds: float = POLL_SECONDS) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, [Tally()])

    async def main() -> None:
        async with opened(database_url) as pool:
            await case(Waiting(pool, poll_seconds=poll_seconds))

    asyncio.run(main())


def test_what_is_reached_is_answered_at_once(database_url: str) -> None:
    async def case(waiting: Waiting) -> None:
        move(database_url, 7)
        for timeout in (60.0, 0.0):
            await waiting.until(at(7), timeout)

    # A second look would come too late for the second one.
    run(database_url, case, poll_seconds=60.0)


def test_waits_until_it_is_reached(database_url: str) -> None:
    async def case(waiting: Waiting) -> None:
        waits = [asyncio.create_task(waiting.until(at(n), 5.0)) for n in (1, 2, 3)]
        await asyncio.sleep(0.1)
        assert not any(wait.done() for wait in waits)
        await asyncio.to_thread(move, database_url, 2)
        await asyncio.sleep(0.1)
        assert [wait.done() for wait in waits] == [True, True, False]
        await asyncio.to_thread(move, database_url, 3)
        await waits[2]

    run(database_url, case)


def test_refuses_in_time_and_says_how_far_it_is(database_url: str) -> None:
    async def case(waiting: Waiting) -> None:
        move(database_url, 4)
        started = time.perf_counter()
        with pytest.raises(ReadModelBehind) as refused:
            await waiting.until({**at(10**18), "unknown": Position(10**18)}, 0.2)
        assert time.perf_counter() - started >= 0.2
        assert refused.value.positions == {"tally": Position(4), "unknown": Position()}
        assert set(refused.value.wanted.values()) == {Position(10**18)}

    run(database_url, case)


def test_what_was_waited_for_in_vain_is_not_waited_for_until_it_moves(database_url: str) -> None:
    """Others are, also those that had come far enough by then."""

    async def case(waiting: Waiting) -> None:
        with psycopg.connect(database_url, autocommit=True) as conn:
            create(conn, "other", "other", 1)
        move(database_url, 7)
        move(database_url, 3, "other")
        both = {**at(9), "other": Position(3)}
        assert await waiting.settle(both, 0.15) == 7
        assert await waiting.settle(at(9), 60.0) == 7
        other = asyncio.create_task(waiting.settle({**at(9), "other": Position(4)}, 60.0))
        await asyncio.sleep(0.1)
        assert not other.done()
        await asyncio.to_thread(move, database_url, 4, "other")
        assert await other == 7
        move(database_url, 8)
        again = asyncio.create_task(waiting.settle(at(9), 60.0))
        await asyncio.sleep(0.1)
        assert not again.done()
        await asyncio.to_thread(move, database_url, 9)
        assert await again is None

    run(database_url, case)


def test_what_rests_is_not_waited_for(database_url: str) -> None:
    async def case(waiting: Waiting) -> None:
        move(database_url, 2)
        with psycopg.connect(database_url, autocommit=True) as conn:
            pause(conn, "tally")
            assert await waiting.settle(at(3), 60.0) == 2
            resume(conn, "tally")
        resting = asyncio.create_task(waiting.settle(at(3), 60.0))
        await until(lambda: waiting._resting == frozenset())
        await asyncio.to_thread(move, database_url, 3)
        assert await resting is None

    run(database_url, case)


def test_nobody_waits_nobody_asks(database_url: str) -> None:
    async def case(waiting: Waiting) -> None:
        with pytest.raises(ReadModelBehind):
            await waiting.until(at(1), 0.15)
        if waiting._poller is not None:
            await asyncio.wait({waiting._poller}, timeout=60)
        assert waiting._poller is None
        assert waiting._waits == set()
        move(database_url, 1)
        await waiting.until(at(1), 0.15)

    run(database_url, case)


def test_one_poller_serves_all(database_url: str) -> None:
    async def case(waiting: Waiting) -> None:
        waits = [asyncio.create_task(waiting.until(at(1), 5.0)) for _ in range(500)]
        await asyncio.sleep(0.2)
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backlot queries'"
        ((count,),) = rows(database_url, busy)
        assert count <= 3
        await asyncio.to_thread(move, database_url, 1)
        await asyncio.gather(*waits)

    run(database_url, case)


def test_who_gives_up_is_forgotten(database_url: str) -> None:
    async def case(waiting: Waiting) -> None:
        wait = asyncio.create_task(waiting.until(at(1), 5.0))
        await asyncio.sleep(0.05)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert waiting._waits == set()

    run(database_url, case)


def test_an_outage_is_told_to_all_who_wait(database_url: str) -> None:
    async def case(waiting: Waiting) -> None:
        waits = [asyncio.create_task(waiting.until(at(1), 5.0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await waiting._pool.close()
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(outcome, psycopg.OperationalError) for outcome in outcomes)

    run(database_url, case)


def test_a_runner_that_lets_events_gather_hurries_for_who_waits(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the call, the runner would rest for a minute after a window without its events."""
    monkeypatch.setattr(projection_subscription, "GATHER_UNWANTED_SECONDS", 60.0)
    writer = Writer(database_url)

    async def main() -> None:
        async with opened(database_url) as pool:
            waiting = Waiting(pool)
            for _ in range(3):
                await asyncio.to_thread(writer.comment, uuid4())
                await waiting.until(at(writer.head), 10.0)

    try:
        with hosting(database_url, Tally(), poll_seconds=60.0):
            asyncio.run(main())
    finally:
        writer.close()
