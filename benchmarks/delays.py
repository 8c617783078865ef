"""Likes at a steady pace, whatever the answers take, and how soon each of them can be seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import quantiles

import httpx
from psycopg import AsyncConnection

from backlot.demo.client import Lanes
from benchmarks.like import Server
from benchmarks.log import VIDEOS
from infra.http.shapes import decode_position

LIKES_PER_SECOND = 500
LOOK_SECONDS = 0.001

Look = Callable[[], Awaitable[int]]
"""Tells up to which position every reader sees everything."""


@dataclass(frozen=True, slots=True)
class Delays:
    """In ms: until the answer, and from there until every reader sees the like."""

    answered: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)

    def notes(self) -> dict[str, float]:
        """p50 and p99 until a like is seen."""
        return percentiles(self.visible)


def percentiles(delays: list[float]) -> dict[str, float]:
    """What the table shows of a list of delays in ms."""
    cuts = quantiles(delays, n=100)
    return {"p50 ms": cuts[49], "p99 ms": cuts[98]}


async def paced_likes(server: Server, tokens: list[str], seconds: float) -> Delays:
    """The same, seen in the read model."""
    async with await AsyncConnection.connect(server.url, autocommit=True) as conn:

        async def look() -> int:
            row = await (await conn.execute(server.projected)).fetchone()
            return int(row[0]) if row else 0

        return await pace(server, tokens, seconds, look)


async def pace(server: Server, tokens: list[str], seconds: float, look: Look) -> Delays:
    """Like 500 times a second, and see when `look` has reached each."""
    delays = Delays()
    waiting: dict[int, float] = {}
    count = int(LIKES_PER_SECOND * seconds)
    base = f"http://127.0.0.1:{server.served.port}"
    async with httpx.AsyncClient(transport=Lanes(64), timeout=30, base_url=base) as http:
        watcher = asyncio.create_task(_watch(look, waiting, delays, count))
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await asyncio.sleep(began + number / LIKES_PER_SECOND - time.perf_counter())
                token = tokens[number % len(tokens)]
                video = VIDEOS[number // len(tokens) % len(VIDEOS)]
                group.create_task(_like(http, token, f"/videos/{video}/like", waiting, delays))
        await asyncio.wait_for(watcher, 30)
    return delays


async def _like(
    http: httpx.AsyncClient, token: str, path: str, waiting: dict[int, float], delays: Delays
) -> None:
    started = time.perf_counter()
    answer = await http.post(path, headers={"Authorization": f"Bearer {token}"})
    ended = time.perf_counter()
    answer.raise_for_status()
    delays.answered.append((ended - started) * 1000)
    waiting[decode_position(answer.headers["Backlot-Position"]).events] = ended


async def _watch(look: Look, waiting: dict[int, float], delays: Delays, count: int) -> None:
    while len(delays.visible) < count:
        await asyncio.sleep(LOOK_SECONDS)
        reached = await look()
        now = time.perf_counter()
        for position in [position for position in waiting if position <= reached]:
            delays.visible.append(max(0.0, now - waiting.pop(position)) * 1000)
