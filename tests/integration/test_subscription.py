"""The engine's one loop, with a source and a handler that only tell what happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from engine import telemetry
from engine.connections import EveryProcess, Leader, LeaderLock, ThreadedConnection
from engine.subscription import (
    EVENTS,
    HURRY,
    NOTIFY,
    Handler,
    Notifications,
    Place,
    Restart,
    Resting,
    State,
    Subscription,
)
from tests.support import ended, until

NUMBERS: Place = ("numbers", 0)


class Memory:
    """A checkpoint in memory; it may be one to rest at."""

    def __init__(self) -> None:
        self.position = 0
        self.rest: Resting | None = None
        self.looks = 0

    def prepare(self, conn: Connection[TupleRow]) -> None:
        """It needs nothing."""

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        self.looks += 1
        if self.rest is not None:
            raise self.rest
        return {NUMBERS: self.position}


class Numbers:
    """Counts on from a place up to `head`."""

    def __init__(self, head: int) -> None:
        self.head = head
        self.at = 0

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        self.at = places[NUMBERS]

    async def fetch(self, at_most_seconds: float) -> int:
        if self.at == self.head:
            await asyncio.sleep(min(at_most_seconds, 0.01))
        self.at = min(self.head, self.at + 1)
        return self.at

    async def stop(self) -> None:
        """It holds nothing."""


class Diary(Handler[int]):
    """Writes down what it hears, and fails as it is told to."""

    def __init__(self, checkpoint: Memory) -> None:
        self._checkpoint = checkpoint
        self.handled: list[int] = []
        self.pids: set[int] = set()
        self.failures: dict[int, Exception] = {}
        self.states: list[State] = []
        self.stops = 0
        self.beside_ended = 0

    async def handle(self, conn: ThreadedConnection, batch: int) -> None:
        if (error := self.failures.pop(batch, None)) is not None:
            raise error
        if batch > self._checkpoint.position:
            self.pids.add(await conn.do(pid_of))
            self.handled.append(batch)
            self._checkpoint.position = batch

    async def stop(self) -> None:
        self.stops += 1

    def enter(self, state: State, detail: str | None = None) -> None:
        if self.states[-1:] != [state]:
            self.states.append(state)

    def beside(self, conn: ThreadedConnection) -> Sequence[Coroutine[Any, Any, None]]:
        return [self._beside()]

    async def _beside(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.beside_ended += 1


def pid_of(conn: Connection[TupleRow]) -> int:
    (pid,) = conn.execute("SELECT pg_backend_pid()").fetchone() or (0,)
    return int(pid)


class Follower:
    """A subscription with all that it is made of."""

    def __init__(self, database_url: str, head: int, leader: Leader | None = None) -> None:
        self.checkpoint = Memory()
        self.source = Numbers(head)
        self.diary = Diary(self.checkpoint)
        self.errors: list[Exception] = []
        self.subscription = Subscription(
            database_url,
            "test",
            source=self.source,
            checkpoint=self.checkpoint,
            handler=self.diary,
            on_error=self.errors.append,
            leader=leader or LeaderLock.of_job("test"),
        )


@asynccontextmanager
async def running(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
    finally:
        await ended(*tasks)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_a_failure_is_told_and_the_batch_comes_again_on_a_new_connection(
    database_url: str,
) -> None:
    async def scenario() -> None:
        one = Follower(database_url, 5)
        one.diary.failures[3] = ValueError("no")
        async with running(one.subscription.run()):
            await until(lambda: one.diary.handled == [1, 2, 3, 4, 5])
        assert [repr(error) for error in one.errors] == ["ValueError('no')"]
        assert one.diary.states == [State.UNAVAILABLE]
        assert len(one.diary.pids) == 2
        assert one.diary.stops == one.diary.beside_ended == 2

    run(scenario)


def test_a_restart_goes_back_to_the_checkpoint_and_keeps_the_lead(database_url: str) -> None:
    async def scenario() -> None:
        one = Follower(database_url, 5)
        one.diary.failures[3] = Restart(0.01)
        async with running(one.subscription.run()):
            await until(lambda: one.diary.handled == [1, 2, 3, 4, 5])
            assert one.diary.stops == 1
            assert one.diary.beside_ended == 0
        assert one.errors == []
        assert len(one.diary.pids) == 1

    run(scenario)


def test_a_checkpoint_to_rest_at_frees_the_lead(database_url: str) -> None:
    async def scenario() -> None:
        one, other = Follower(database_url, 3), Follower(database_url, 3)
        async with running(one.subscription.run()):
            await until(lambda: one.diary.handled == [1, 2, 3])
            async with running(other.subscription.run()):
                await until(lambda: State.STANDBY in other.diary.states)
                assert other.diary.handled == []
                one.checkpoint.rest = Resting(State.OUTDATED, "of another version")
                one.source.head = 4
                one.diary.failures[4] = Restart()
                await until(lambda: other.diary.handled == [1, 2, 3])
                assert one.diary.states == [State.OUTDATED]
                assert one.diary.beside_ended == 1
            one.checkpoint.rest = None
            await until(lambda: one.diary.handled == [1, 2, 3, 4])

    run(scenario)


def test_without_a_lock_every_process_works(database_url: str) -> None:
    async def scenario() -> None:
        one = Follower(database_url, 2, EveryProcess())
        other = Follower(database_url, 2, EveryProcess())
        async with running(one.subscription.run(), other.subscription.run()):
            await until(lambda: one.diary.handled == other.diary.handled == [1, 2])

    run(scenario)


def test_a_connection_that_ends_is_made_again(database_url: str) -> None:
    async def scenario() -> None:
        one = Follower(database_url, 3)
        async with running(one.subscription.run()):
            await until(lambda: one.diary.handled == [1, 2, 3])
            await asyncio.to_thread(terminate, database_url, one.diary.pids)
            one.source.head = 5
            await until(lambda: one.diary.handled == [1, 2, 3, 4, 5])
        assert isinstance(one.errors[0], psycopg.OperationalError)
        assert len(one.diary.pids) == 2

    run(scenario)


def terminate(database_url: str, pids: set[int]) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [list(pids)])


class TestNotifications:
    @pytest.mark.parametrize(
        ("channel", "payload", "woken"),
        [
            (EVENTS, "", {"events", "all"}),
            (telemetry.CHANNEL, "", {"telemetry", "all"}),
            (EVENTS, HURRY, {"events", "all", "hurry"}),
        ],
    )
    def test_each_wakes_who_subscribed_to_its_channel(
        self, database_url: str, channel: str, payload: str, woken: set[str]
    ) -> None:
        async def scenario() -> None:
            notifications = Notifications(database_url)
            events = {
                "events": notifications.subscribe(EVENTS),
                "telemetry": notifications.subscribe(telemetry.CHANNEL),
                "all": notifications.subscribe(),
                "hurry": notifications.hurried(),
            }
            async with running(notifications.run()):
                # It has begun to listen.
                await events["telemetry"].wait()
                await events["all"].wait()
                for event in events.values():
                    event.clear()
                with psycopg.connect(database_url, autocommit=True) as conn:
                    conn.execute(NOTIFY, (channel, payload))
                await until(lambda: {n for n, e in events.items() if e.is_set()} == woken)

        run(scenario)

    def test_who_subscribes_later_is_woken_too(self, database_url: str) -> None:
        async def scenario() -> None:
            notifications = Notifications(database_url)
            first = notifications.subscribe(EVENTS)
            async with running(notifications.run()):
                await first.wait()
                late, hurry = notifications.subscribe(telemetry.CHANNEL), notifications.hurried()
                with psycopg.connect(database_url, autocommit=True) as conn:
                    conn.execute(NOTIFY, (telemetry.CHANNEL, ""))
                    conn.execute(NOTIFY, (EVENTS, HURRY))
                await until(lambda: late.is_set() and hurry.is_set())

        run(scenario)

    def test_a_lost_connection_is_made_again_and_everybody_looks(self, database_url: str) -> None:
        async def scenario() -> None:
            notifications = Notifications(database_url)
            wake = notifications.subscribe(EVENTS)
            async with running(notifications.run()):
                await wake.wait()
                wake.clear()
                with psycopg.connect(database_url, autocommit=True) as conn:
                    conn.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                        "datname = current_database() AND application_name = 'backlot listener'"
                    )
                await until(wake.is_set)

        run(scenario)
