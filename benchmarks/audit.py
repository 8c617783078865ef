"""Searching a long log in every way that the audit offers, against reading one event of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import md5
from secrets import token_urlsafe
from statistics import median, quantiles
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from benchmarks import like
from benchmarks.bench import Bench, say
from benchmarks.results import Comparison, Side
from engine.checkpoints import pause, resume
from engine.connections import connect
from engine.inspection.index import Audit, Search, find, stats
from engine.inspection.streams import at_position
from engine.installation import install
from engine.projection import Applier
from infra.http.auth import mint_token

PAGE = 50
AT = datetime(2026, 1, 1, tzinfo=UTC)
ACTORS = 50_000
BATCH_EVENTS = 5_000
LIMIT = Side("the limit", [50.0])

# One event a second. A busy actor does a fifth of everything, a request leads to three events, one
# topic is a thousandth of all; streams have four events.
FILL = b"""
INSERT INTO backlot_events (originator_id, originator_version, topic, state, notification_id)
SELECT md5('stream ' || (n - 1) / 4)::uuid, mod(n - 1, 4) + 1, topic,
       convert_to(json_build_object(
           'timestamp', to_char('2026-01-01'::timestamp + n * interval '1 second',
                                'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
           'actor', CASE WHEN mod(n, 5) = 0 THEN 'busy' ELSE viewer END,
           'correlation_id', md5('request ' || n / 3), 'causation_id', md5('request ' || n / 3),
           'video_id', md5('video ' || mod(n, 20000))::uuid, 'viewer', viewer)::text, 'UTF8'), n
FROM (SELECT n, 'actor-' || mod(n * 7919, %(actors)s) AS viewer,
             CASE WHEN mod(n, 1000) = 0 THEN 'comment.deleted.v1'
                  WHEN mod(n, 10) = 0 THEN 'comment.posted.v1'
                  WHEN mod(n, 10) = 1 THEN 'video_likes.unliked.v1'
                  ELSE 'video_likes.liked.v1' END AS topic
      FROM generate_series(1, %(events)s::bigint) AS n) AS e
"""

LOOK_SECONDS = 0.1
BEHIND = b"""
SELECT (SELECT max(notification_id) FROM backlot_events) - position
FROM backlot_checkpoints WHERE subscription = 'audit'
"""
ON, OFF = "like, with the audit's index", "like, the audit's index paused"
POINT = "one event by its position"

Draw = Callable[[random.Random], Search]


def run(bench: Bench) -> list[Comparison]:
    """p99 in ms of a page of 50, of counting everything, and how fast the index is made."""
    events = bench.size(250_000, 5_000, 1_000_000)
    url = bench.database()
    say(f"filling a log with {events:,} events")
    fill(url, events)
    say("indexing it")
    made = Side("making the audit's index", [index(url, events)])
    taken = asyncio.run(measure(url, events, bench.size(300, 3)))
    point = p99(taken.pop(POINT))
    found = [
        Comparison("audit", "ms p99", _side(name, times, point), LIMIT, at_most=1)
        for name, times in taken.items()
    ]
    return [
        *found,
        Comparison("audit", "events/s", made, Side("most likes recorded", [10_000])),
        *beside_likes(bench),
    ]


def beside_likes(bench: Bench) -> list[Comparison]:
    """What the index costs while likes are recorded: with its projection running, and paused."""
    secret = token_urlsafe(32)
    tokens = [mint_token(secret, f"viewer-{n}") for n in range(bench.size(3_000, 100))]
    clients = like.Clients(tokens, 0.5, bench.size(3, 1))
    with like.backlot(bench, secret, "audited") as server:

        def with_index(running: bool, number: int) -> tuple[float, dict[str, float]]:
            with psycopg.connect(server.url, autocommit=True) as conn:
                (resume if running else pause)(conn, Audit.name)
                while running and conn.execute(BEHIND).fetchone() != (0,):
                    time.sleep(LOOK_SECONDS)
            return clients.like(server, number)

        measured = bench.interleave(
            bench.size(5, 1), {ON: partial(with_index, True), OFF: partial(with_index, False)}
        )
    rates = {name: like.side(name, rounds[1:] or rounds) for name, rounds in measured.items()}
    costs = {
        name: Side(name, [notes["server CPU µs"] for _, notes in rounds[1:] or rounds])
        for name, rounds in measured.items()
    }
    return [
        Comparison("audit", "µs of the server's CPU a like", costs[ON], costs[OFF], at_most=1.1),
        Comparison("audit", "requests/s", rates[ON], rates[OFF]),
    ]


def fill(url: str, events: int) -> None:
    """A log of many kinds of events, made by PostgreSQL."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(FILL, {"events": events, "actors": ACTORS})
        conn.execute("VACUUM (ANALYZE) backlot_events")


def index(url: str, events: int) -> float:
    """Take the whole log into the audit's index, as its runner does; events/s."""
    audit = Audit()
    applier = Applier(audit, batch_events=BATCH_EVENTS)
    with connect(url, "benchmark") as conn:
        install(conn, [audit])
        started = time.perf_counter()
        for before in range(0, events, BATCH_EVENTS):
            applier.advance(conn, before, events)
        rate = events / (time.perf_counter() - started)
        conn.execute("VACUUM (ANALYZE)")
    return rate


async def measure(url: str, events: int, rounds: int) -> dict[str, list[float]]:
    """Ask everything in turns, each time with other values; ms."""
    audit, chance, draws = Audit(), random.Random(5), searches(events)
    taken: dict[str, list[float]] = {name: [] for name in (POINT, *draws, "counting everything")}
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        for _ in range(rounds):
            position = chance.randint(1, events)
            taken[POINT].append(await _clocked(at_position(conn, position)))
            for name, draw in draws.items():
                taken[name].append(await _clocked(find(conn, audit, draw(chance), PAGE)))
            taken["counting everything"].append(await _clocked(stats(conn, audit)))
    return taken


def searches(events: int) -> dict[str, Draw]:
    """Each filter alone, and the pairs that are asked for most."""
    return {**_alone(events), **_pairs(events)}


def _alone(events: int) -> dict[str, Draw]:
    streams = events // 4
    return {
        "newest": lambda _: Search(),
        "position": lambda chance: Search(after=chance.randrange(events), newest_first=False),
        "stream": lambda chance: Search(stream=UUID(_md5("stream", chance.randrange(streams)))),
        "common type": lambda _: Search(types=["video_likes.liked"]),
        "rare type": lambda _: Search(types=["comment.deleted.v1"]),
        "aggregate": lambda _: Search(aggregate="comment"),
        "rare actor": lambda chance: Search(actor=_actor(chance)),
        "busy actor": lambda _: Search(actor="busy"),
        "correlation": lambda chance: Search(correlation_id=_request(chance, events)),
        "an hour": lambda chance: _hour(Search(), chance, events),
        "what is not there": lambda _: Search(actor="nobody"),
    }


def _pairs(events: int) -> dict[str, Draw]:
    busy, rare = Search(actor="busy"), Search(types=["comment.deleted.v1"])
    liked, unliked = ["video_likes.liked"], ["video_likes.unliked.v1"]
    return {
        "rare actor, common type": lambda chance: Search(actor=_actor(chance), types=liked),
        "busy actor, rare type": lambda _: replace(busy, types=rare.types),
        "busy actor, a type of others": lambda _: replace(busy, types=unliked),
        "busy actor, an hour": lambda chance: _hour(busy, chance, events),
        "rare type, an hour": lambda chance: _hour(rare, chance, events),
        "rare actor, an hour": lambda chance: _hour(Search(actor=_actor(chance)), chance, events),
        "busy actor, correlation": lambda chance: replace(
            busy, correlation_id=_request(chance, events)
        ),
    }


def _actor(chance: random.Random) -> str:
    return f"actor-{chance.randrange(ACTORS)}"


def _request(chance: random.Random, events: int) -> str:
    return _md5("request", chance.randrange(events // 3))


def _hour(search: Search, chance: random.Random, events: int) -> Search:
    since = AT + timedelta(seconds=chance.randrange(events))
    return replace(search, since=since, until=since + timedelta(hours=1))


def _md5(kind: str, number: int) -> str:
    return md5(f"{kind} {number}".encode(), usedforsecurity=False).hexdigest()


async def _clocked(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return (time.perf_counter() - started) * 1000


def p99(times: Sequence[float]) -> float:
    """The time that one in a hundred takes longer than."""
    return quantiles(times, n=100, method="inclusive")[-1]


def _side(name: str, times: Sequence[float], point: float) -> Side:
    notes = {"p50 ms": median(times), "ratio to " + POINT: p99(times) / point}
    return Side(f"audit: {name}", [p99(times)], notes)
