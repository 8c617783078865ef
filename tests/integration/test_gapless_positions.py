"""However writers interleave, a reader that follows the log never skips an event.

Here gaps are made on purpose: a writer has its positions, and is held open before its commit,
while others write. The stock recorder with database functions shows that the check can fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from uuid import UUID

import psycopg
import pytest
from eventsourcing.persistence import InfrastructureFactory, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresFactory
from psycopg.rows import TupleRow

from engine.event_store import GroupCommitRecorder, Save, arguments
from tests.integration.event_log import (
    Tail,
    appends_wait,
    environment,
    events,
    gate,
    rows,
    write,
)
from tests.support import eventually

Acknowledged = list[tuple[UUID, list[int]]]


@contextmanager
def held_open(
    recorder: GroupCommitRecorder,
    log_url: str,
    save: list[StoredEvent],
    others: Callable[[], Future[Acknowledged]],
) -> Iterator[tuple[psycopg.Connection[TupleRow], Future[Acknowledged]]]:
    """A writer that has got its positions and does not commit, while another one wants to write."""
    with psycopg.connect(log_url) as writer:
        with gate(log_url) as await_ready:
            other = others()
            await_ready(1)
            writer.execute(recorder.append_statement, arguments([Save(save)]))
        eventually(lambda: appends_wait(log_url))
        yield writer, other


@pytest.fixture
def others(processes: ProcessPoolExecutor, log_url: str) -> Callable[[], Future[Acknowledged]]:
    """Starts another process that saves fifty events."""
    return lambda: processes.submit(write, log_url, saves=50)


def test_a_writer_held_open_before_its_commit_holds_back_all_others(
    recorder: GroupCommitRecorder,
    log_url: str,
    others: Callable[[], Future[Acknowledged]],
) -> None:
    first, held = events(2), events(3)
    with Tail(recorder) as tail:
        recorder.insert_events(first)
        with held_open(recorder, log_url, held, others) as (writer, other):
            time.sleep(0.1)
            assert tail.positions == [1, 2]
            assert not other.done()
            writer.commit()
        acknowledged = other.result()
        tail.await_position(55)
    assert tail.skipped == []
    assert tail.positions == [*range(1, 56)]
    assert [event.state for event in tail.seen[:5]] == [event.state for event in first + held]
    assert sorted(p for _, positions in acknowledged for p in positions) == [*range(6, 56)]


def test_positions_of_a_writer_that_rolls_back_are_given_again(
    recorder: GroupCommitRecorder,
    log_url: str,
    others: Callable[[], Future[Acknowledged]],
) -> None:
    with Tail(recorder) as tail:
        with held_open(recorder, log_url, events(3), others) as (writer, other):
            writer.rollback()
        acknowledged = other.result()
        tail.await_position(50)
    assert tail.skipped == []
    assert tail.positions == [*range(1, 51)]
    assert {n.originator_id for n in tail.seen} == {stream for stream, _ in acknowledged}


def test_a_writer_that_dies_before_its_commit_holds_nobody_back(
    recorder: GroupCommitRecorder,
    log_url: str,
    others: Callable[[], Future[Acknowledged]],
) -> None:
    with Tail(recorder) as tail:
        with held_open(recorder, log_url, events(3), others) as (writer, other):
            rows(log_url, "SELECT pg_terminate_backend(%s)", [writer.info.backend_pid])
            other.result()
            writer.close()
        tail.await_position(50)
    assert tail.skipped == []
    assert tail.positions == [*range(1, 51)]


def test_two_processes_at_full_speed_leave_one_contiguous_log(
    recorder: GroupCommitRecorder, log_url: str, processes: ProcessPoolExecutor
) -> None:
    with Tail(recorder) as tail:
        with gate(log_url) as await_ready:
            writers = [processes.submit(write, log_url, saves=400, size=size) for size in (1, 3)]
            await_ready(2)
        single, triple = (dict(writer.result()) for writer in writers)
        tail.await_position(1_600)
    assert tail.skipped == []
    assert tail.positions == [*range(1, 1_601)]
    for stream, positions in {**single, **triple}.items():
        seen = [n for n in tail.seen if n.originator_id == stream]
        assert [n.id for n in seen] == positions == [*range(positions[0], positions[-1] + 1)]
        assert [n.originator_version for n in seen] == [*range(1, len(positions) + 1)]
    writer_of = [n.originator_id in single for n in tail.seen]
    turns = sum(before != after for before, after in pairwise(writer_of))
    assert turns > 2, "the processes did not write at the same time"


@pytest.fixture
def stock(database_url: str) -> Iterator[PostgresApplicationRecorder]:
    """The library's own recorder, inserting by database functions, without a lock."""
    env = environment(database_url)
    env["PERSISTENCE_MODULE"] = "eventsourcing.postgres"
    env["POSTGRES_ENABLE_DB_FUNCTIONS"] = "y"
    factory = InfrastructureFactory.construct(env)
    assert isinstance(factory, PostgresFactory)
    recorder = factory.application_recorder()
    assert isinstance(recorder, PostgresApplicationRecorder)
    with factory:
        yield recorder


def test_the_same_reader_skips_an_event_of_the_stock_recorder(
    stock: PostgresApplicationRecorder,
) -> None:
    late, early = (
        [stock.construct_pg_stored_event(e.originator_id, 1, e.topic, e.state) for e in events()]
        for _ in range(2)
    )
    with Tail(stock) as tail:
        with stock.datastore.transaction(commit=True) as held:
            held.execute(stock.sql_invoke_pg_function_insert_events, (late,))
            with stock.datastore.transaction(commit=True) as other:
                other.execute(stock.sql_invoke_pg_function_insert_events, (early,))
            tail.await_position(2)
        eventually(lambda: stock.select_notifications(start=1, limit=1, stop=1))
        time.sleep(0.1)
    assert tail.skipped == [1]
    assert tail.positions == [2]
