"""Appending by 64 concurrent callers: against the stock recorder, and against raw INSERTs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from threading import Barrier, Thread

import psycopg
import uvloop
from eventsourcing.persistence import IntegrityError, StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder

from benchmarks.bench import Bench
from benchmarks.log import columns, first_likes
from benchmarks.results import Comparison, Side
from benchmarks.stock import stock_recorder
from engine.event_store import GroupCommitRecorder, Save, open_recorder
from infra.batcher import Batcher

CALLERS = 64
OURS_THREADS, STOCK = "ours, 64 threads", "stock recorder, 64 threads"
OURS_ASYNC, RAW = "ours, 64 async callers", "raw INSERTs of 64 rows"
RAW_INSERT = """
INSERT INTO backlot_events (originator_id, originator_version, topic, state, notification_id)
SELECT * FROM unnest(%b::uuid[], %b::bigint[], %b::text[], %b::bytea[], %b::bigint[])
"""


def run(bench: Bench) -> list[Comparison]:
    """Rates in events/s. Every contender gets the same rows; slow ones get the first of them."""
    # The stock recorder is slow, the others need many rows for a round of a second or more.
    few, many = CALLERS * bench.size(20, 2), CALLERS * bench.size(500, 4)
    sets = [first_likes(many, prefix=f"round-{number}") for number in range(bench.size(6, 2))]
    with ExitStack() as stack:
        ours, ours_async = (open_recorder(bench.database()) for _ in range(2))
        stock = stock_recorder(bench.database())
        raw = stack.enter_context(closing(Raw(bench.database())))
        for recorder in (ours, ours_async, stock):
            stack.callback(recorder.datastore.close)
        rates = bench.interleave(
            len(sets),
            {
                OURS_THREADS: lambda number: by_threads(ours, sets[number]),
                STOCK: lambda number: by_threads(stock, sets[number][:few]),
                OURS_ASYNC: lambda number: by_tasks(ours_async, sets[number]),
                RAW: lambda number: raw.insert(sets[number]),
            },
        )
    # The first round warms up.
    sides = {name: Side(name, values[1:]) for name, values in rates.items()}
    return [
        Comparison("append", "events/s", sides[OURS_THREADS], sides[STOCK], at_least=10),
        Comparison("append", "events/s", sides[OURS_ASYNC], sides[RAW], at_least=0.5),
    ]


def by_threads(recorder: PostgresApplicationRecorder, rows: Sequence[StoredEvent]) -> float:
    """Each of 64 threads records its share of the rows one by one."""
    barrier = Barrier(CALLERS + 1)

    def work(mine: Sequence[StoredEvent]) -> None:
        barrier.wait()
        for row in mine:
            recorder.insert_events([row])

    threads = [Thread(target=work, args=(rows[i::CALLERS],)) for i in range(CALLERS)]
    for thread in threads:
        thread.start()

    def until_done() -> None:
        barrier.wait()
        for thread in threads:
            thread.join()

    return _rate(len(rows), until_done)


def by_tasks(recorder: GroupCommitRecorder, rows: Sequence[StoredEvent]) -> float:
    """Each of 64 tasks records its share one by one, through batches as the command bus does."""

    def process(saves: Sequence[Save]) -> list[range | BaseException]:
        outcomes = recorder.append(saves).outcomes
        return [IntegrityError() if outcome is None else outcome for outcome in outcomes]

    async def work(batcher: Batcher[Save, range], mine: Sequence[StoredEvent]) -> None:
        for row in mine:
            await batcher.submit(Save([row]))

    async def all_of_them() -> None:
        batcher = Batcher(process, name="appends", max_batch=256, max_waiting=10_000)
        await asyncio.gather(*(work(batcher, rows[i::CALLERS]) for i in range(CALLERS)))
        await batcher.close()

    return _rate(len(rows), lambda: uvloop.run(all_of_them()))


class Raw:
    """What the server can do at best: nothing is checked, and positions are given beforehand."""

    def __init__(self, url: str) -> None:
        # The same table with the same indexes.
        self._conn = psycopg.connect(url, autocommit=True)
        self._position = 0

    def insert(self, rows: Sequence[StoredEvent]) -> float:
        batches = [self._batch(rows[i : i + CALLERS]) for i in range(0, len(rows), CALLERS)]

        def insert_all() -> None:
            with self._conn.cursor(binary=True) as cursor:
                for batch in batches:
                    cursor.execute(RAW_INSERT, batch, prepare=True)

        return _rate(len(rows), insert_all)

    def close(self) -> None:
        self._conn.close()

    def _batch(self, rows: Sequence[StoredEvent]) -> list[list[object]]:
        first = self._position + 1
        self._position += len(rows)
        given = [list(column) for column in zip(*map(columns, rows), strict=True)]
        return [*given, list(range(first, self._position + 1))]


def _rate(rows: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return rows / (time.perf_counter() - started)
