"""What an append and a like cost in a store of 10,000 events, and in one of half a million."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import psycopg
import uvloop

from benchmarks.append import CALLERS
from benchmarks.bench import Bench, say
from benchmarks.log import VIDEOS, first_likes
from benchmarks.projecting import await_position, projecting
from benchmarks.results import Comparison, Side
from commands.likes import ChangeLike, LikesOf, Wish
from engine.command_bus import CommandBus
from engine.event_store import GroupCommitRecorder, Save, open_recorder
from projections.likes import Likes

MICROSECONDS = 1e6
APPEND, LIKE = "append", "like command"


def run(bench: Bench) -> list[Comparison]:
    """Costs in µs per event and per command, 64 of them at a time."""
    few, many = bench.size(10_000, 1_000), bench.size(500_000, 10_000, 1_000_000)
    rounds, count = bench.size(9, 3), CALLERS * bench.size(100, 2)
    contenders: dict[str, Callable[[int], float]] = {}
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        for size in (few, many):
            store = stack.enter_context(_opened(bench, size))
            contenders[_name(APPEND, size)] = partial(_appends, store, count)
            contenders[_name(LIKE, size)] = partial(_likes, runner, store, count)
        costs = bench.interleave(rounds, contenders)
    # The first round warms up.
    sides = {name: Side(name, values[1:]) for name, values in costs.items()}
    return [
        Comparison("growth", "µs", sides[_name(what, many)], sides[_name(what, few)], at_most=1.5)
        for what in (APPEND, LIKE)
    ]


def _name(what: str, events: int) -> str:
    return f"{what}, {events:,} events"


@contextmanager
def _opened(bench: Bench, events: int) -> Iterator[GroupCommitRecorder]:
    """A store of that size, with the likes projected to its end."""
    url = bench.log(events)
    say(f"projecting its {events:,} events")
    with psycopg.connect(url, autocommit=True) as conn, projecting(url, Likes()) as host:
        await_position(conn, host, events)
        conn.execute("VACUUM (ANALYZE)")
    recorder = open_recorder(url)
    try:
        yield recorder
    finally:
        recorder.close()


def _appends(recorder: GroupCommitRecorder, count: int, number: int) -> float:
    saves = [Save([event]) for event in first_likes(count, prefix=f"append-{number}")]
    started = time.perf_counter()
    for first in range(0, count, CALLERS):
        recorder.append(saves[first : first + CALLERS])
    return (time.perf_counter() - started) / count * MICROSECONDS


def _likes(runner: asyncio.Runner, recorder: GroupCommitRecorder, count: int, number: int) -> float:
    wishes = [
        ChangeLike(VIDEOS[place % len(VIDEOS)], f"like-{number}-{place // len(VIDEOS)}", Wish.LIKE)
        for place in range(count)
    ]
    started = time.perf_counter()
    runner.run(_execute(recorder, wishes))
    return (time.perf_counter() - started) / count * MICROSECONDS


async def _execute(recorder: GroupCommitRecorder, wishes: Sequence[ChangeLike]) -> None:
    async def work(mine: Sequence[ChangeLike]) -> None:
        for wish in mine:
            await bus.execute(wish, actor=wish.viewer, correlation_id="bench")

    bus = CommandBus(recorder, readers={LikesOf: Likes().tally()})
    await asyncio.gather(*(work(wishes[i::CALLERS]) for i in range(CALLERS)))
    await bus.close()
