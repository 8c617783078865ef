"""Likes with their counters in Redis: speed, one hot video, how soon a like is seen, reads."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import quantiles

import httpx
import redis
import redis.asyncio

from backlot.demo.lanes import Lanes
from benchmarks.bench import Bench, medians
from benchmarks.like import PATHS, Clients, Server, backlot, crud, side
from benchmarks.log import VIDEOS
from benchmarks.redis_server import redis_server
from benchmarks.results import Comparison, Side
from infra.auth import mint_token
from infra.counters import PUBLISHED
from infra.position import decode_position

LIKE, NOOP = "like, counters on", "no-op POST, same process"
CRUD, CRUD_TIGHT = "like, CRUD as planned with Redis INCR", "like, CRUD as tight as it goes"
HOT = "like, all on one video"
READ, PLAIN = "GET like, from the counter", "GET that asks Redis once, same API"
LIKES_PER_SECOND = 500
LOOK_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Seen:
    """Delays in ms: until the answer, and from there until every reader sees the like."""

    answered: list[float]
    visible: list[float]


def run(bench: Bench) -> list[Comparison]:
    """As `like`, with a real Redis beside it."""
    secret = secrets.token_urlsafe(32)
    viewers = [f"viewer-{number}" for number in range(bench.size(3_000, 100))]
    tokens = [mint_token(secret, viewer) for viewer in viewers]
    clients = Clients(tokens, bench.size(2, 1) / 2, bench.size(5, 1))
    with ExitStack() as stack:
        ours = stack.enter_context(redis_server(bench.folder / "redis-ours"))
        theirs = stack.enter_context(redis_server(bench.folder / "redis-crud"))
        one = stack.enter_context(backlot(bench, secret, "counting", REDIS_URL=ours))
        planned = stack.enter_context(crud(bench, secret, "crud-redis", REDIS_URL=theirs))
        tight = stack.enter_context(
            crud(bench, secret, "crud-redis-tight", tight=True, REDIS_URL=theirs)
        )
        measured = bench.interleave(
            bench.size(6, 1),
            {
                NOOP: lambda number: clients.noop(one, number),
                LIKE: lambda number: clients.like(one, number),
                CRUD: lambda number: clients.like(planned, number),
                CRUD_TIGHT: lambda number: clients.like(tight, number),
                HOT: lambda number: clients.like(one, number, PATHS[:1]),
                PLAIN: lambda number: clients.get(one, number, "/plain/{}"),
                READ: lambda number: clients.get(one, number, "/videos/{}/like"),
            },
        )
        seen = asyncio.run(watch(one, tokens, ours, bench.size(10, 1)))
    sides = {name: side(name, rounds[1:] or rounds) for name, rounds in measured.items()}
    return [
        Comparison("counters", "requests/s", sides[LIKE], sides[NOOP], at_least=0.45),
        Comparison("counters", "requests/s", sides[LIKE], sides[CRUD], at_least=4),
        Comparison("counters", "requests/s", sides[LIKE], sides[CRUD_TIGHT]),
        Comparison("counters", "requests/s", sides[HOT], sides[LIKE], at_least=0.8),
        Comparison("counters", "requests/s", sides[READ], sides[PLAIN]),
        Comparison(
            "counters",
            "ms (median)",
            _delays("from answer to visible count, 500 likes/s", seen.visible),
            _delays("from request to answer, 500 likes/s", seen.answered),
        ),
    ]


async def watch(server: Server, tokens: list[str], url: str, seconds: float) -> Seen:
    """Like 500 times a second, whatever the answers take, and see when each count is there."""
    seen = Seen([], [])
    waiting: dict[int, float] = {}
    count = int(LIKES_PER_SECOND * seconds)
    base = f"http://127.0.0.1:{server.served.port}"
    async with (
        httpx.AsyncClient(transport=Lanes(64), timeout=30, base_url=base) as http,
        redis.asyncio.from_url(url) as client,
    ):
        watcher = asyncio.create_task(_look(client, waiting, seen, count))
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await asyncio.sleep(began + number / LIKES_PER_SECOND - time.perf_counter())
                token = tokens[number % len(tokens)]
                video = VIDEOS[number // len(tokens) % len(VIDEOS)]
                group.create_task(_like(http, token, f"/videos/{video}/like", waiting, seen))
        await asyncio.wait_for(watcher, 30)
    return seen


async def _like(
    http: httpx.AsyncClient, token: str, path: str, waiting: dict[int, float], seen: Seen
) -> None:
    started = time.perf_counter()
    answer = await http.post(path, headers={"Authorization": f"Bearer {token}"})
    ended = time.perf_counter()
    answer.raise_for_status()
    seen.answered.append((ended - started) * 1000)
    waiting[decode_position(answer.headers["Backlot-Position"])] = ended


async def _look(
    client: redis.asyncio.Redis, waiting: dict[int, float], seen: Seen, count: int
) -> None:
    while len(seen.visible) < count:
        await asyncio.sleep(LOOK_SECONDS)
        published = int(await client.get(PUBLISHED) or 0)
        now = time.perf_counter()
        for position in [position for position in waiting if position <= published]:
            seen.visible.append(max(0.0, now - waiting.pop(position)) * 1000)


def _delays(name: str, delays: list[float]) -> Side:
    cuts = quantiles(delays, n=100)
    return Side(name, delays, medians([{"p50 ms": cuts[49], "p99 ms": cuts[98]}]))
