"""What an append and a like cost in a store of 10,000 events, and in one of a million."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import psycopg
import uvloop
from psycopg import Cursor
from psycopg.rows import TupleRow

from benchmarks.append import CALLERS
from benchmarks.bench import Bench, say
from benchmarks.log import VIDEOS, first_likes
from benchmarks.projecting import await_position, projecting
from benchmarks.results import Comparison, Side
from commands.bus import CommandBus
from commands.likes import ChangeLike, Wish
from infra.event_store import GroupCommitRecorder, Save, open_recorder
from projections.likes import Likes

BATCHES = 100
MICROSECONDS = 1e6


def run(bench: Bench) -> list[Comparison]:
    """Costs in µs per event and per command, 64 at a time."""
    few, many = bench.size(10_000, 1_000), bench.size(1_000_000, 10_000)
    rounds, batches = bench.size(8, 3), bench.size(BATCHES, 4)
    with ExitStack() as stack:
        stores = {size: stack.enter_context(_store(bench, size)) for size in (few, many)}
        contenders = {}
        for size, store in stores.items():
            contenders[f"append to {size:,} events"] = store.appends
            contenders[f"like command on {size:,} events"] = store.likes
        costs = bench.interleave(rounds, {name: ... for name in contenders})
    ...
