"""Likes with their counters in Redis: speed, one hot video, how soon a like is seen, reads."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import ExitStack
from statistics import median

import redis
import redis.asyncio

from benchmarks.bench import Bench
from benchmarks.delays import Delays, pace, percentiles
from benchmarks.like import PATHS, Clients, Server, backlot, crud, side
from benchmarks.redis_server import redis_server
from benchmarks.results import Comparison, Side
from infra.http.auth import mint_token
from projections.like_counters import PUBLISHED

LIKE, NOOP = "like, counters on", "no-op POST, same process"
CRUD, CRUD_TIGHT = "like, CRUD as planned with Redis INCR", "like, CRUD as tight as it goes"
HOT = "like, all on one video"
READ, PLAIN = "GET like, from the counter", "GET that asks Redis once, same API"


def run(bench: Bench) -> list[Comparison]:
    """As `like`, with a real Redis beside it."""
    secret = secrets.token_urlsafe(32)
    viewers = [f"viewer-{number}" for number in range(bench.size(3_000, 100))]
    tokens = [mint_token(secret, viewer) for viewer in viewers]
    clients = Clients(tokens, 0.5, bench.size(3, 1))
    with ExitStack() as stack:
        ours = stack.enter_context(redis_server(bench.folder / "redis-ours"))
        theirs = stack.enter_context(redis_server(bench.folder / "redis-crud"))
        one = stack.enter_context(backlot(bench, secret, "counting", REDIS_URL=ours))
        planned = stack.enter_context(crud(bench, secret, "crud-redis", REDIS_URL=theirs))
        tight = stack.enter_context(
            crud(bench, secret, "crud-redis-tight", tight=True, REDIS_URL=theirs)
        )
        measured = bench.interleave(
            bench.size(4, 1),
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


async def watch(server: Server, tokens: list[str], url: str, seconds: float) -> Delays:
    """Likes at a steady pace, seen in the counters."""
    async with redis.asyncio.from_url(url) as client:

        async def look() -> int:
            return int(await client.get(PUBLISHED) or 0)

        return await pace(server, tokens, seconds, look)


def _delays(name: str, delays: list[float]) -> Side:
    return Side(name, [median(delays)], percentiles(delays))
