"""What rate limits cost a like: CPU of a server that has them switched on and off all the time."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle, pairwise
from statistics import median, quantiles
from typing import Any, NamedTuple

import httpx

from benchmarks.bench import Bench, say
from benchmarks.like import Clients, Server, backlot, redis_seconds
from benchmarks.redis_server import redis_server
from benchmarks.results import Comparison, Side
from infra.http.auth import mint_token

IN_PROCESS, IN_REDIS = "in the process", "in Redis"
# So high that nobody ever meets them: what is measured is the looking.
SETTINGS: dict[str, Any] = {
    "RATE_LIMITS": "on",
    "RATE_LIMIT_WRITE": "60000000/1000000",
    "QUOTA_LIKED_VIDEOS_PER_MINUTE": "10000000",
    "TRUSTED_PROXIES": "127.0.0.0/8",
}
UNIT = "µs of CPU per like"
# Of each four stretches of time, so that neither comes after the other more often (ABBA).
ORDER = ("on", "off", "off", "on")
MOST_RATIO = 1.05


class Stretch(NamedTuple):
    """What a like cost in a stretch of time: CPU of the server and of Redis, in µs."""

    switch: str
    server: float
    redis: float


def run(bench: Bench) -> list[Comparison]:
    """Likes without a pause, as in `like`, by 3,000 viewers with an address each."""
    secret = secrets.token_urlsafe(32)
    viewers = range(bench.size(3_000, 100))
    clients = Clients(
        [mint_token(secret, f"viewer-{number}") for number in viewers],
        # Every token is verified once before it counts.
        warmup_seconds=bench.size(10, 1),
        seconds=bench.size(60, 15),
        addresses=[f"198.51.{number // 250}.{number % 250 + 1}" for number in viewers],
    )
    found = []
    with backlot(bench, secret, "limits", **SETTINGS) as server:
        found.append(_compare(IN_PROCESS, _stretches(clients, server)))
    with ExitStack() as stack:
        url = stack.enter_context(redis_server(bench.folder / "limits-redis"))
        server = stack.enter_context(
            backlot(bench, secret, "limits-shared", **SETTINGS, REDIS_URL=url)
        )
        found.append(_compare(IN_REDIS, _stretches(clients, server)))
    return found


def _stretches(clients: Clients, server: Server) -> list[Stretch]:
    """Switch every second, while clients like.

    What a process reports to Redis every few seconds falls on both kinds of stretches alike: it is
    a fifth of a bucket per like.
    """
    say("liking, while limits are switched on and off")
    marks, switches = [], cycle(ORDER)
    with ThreadPoolExecutor(1) as pool, httpx.Client(trust_env=False) as http:
        load = pool.submit(clients.like, server, 0)
        time.sleep(clients.warmup_seconds)
        # Not the last of it, when the first clients have stopped already.
        end = time.monotonic() + clients.seconds - 1.0
        while time.monotonic() < end:
            answer = http.post(f"http://127.0.0.1:{server.served.port}/limits/{next(switches)}")
            mark = answer.raise_for_status().json()
            marks.append((mark["cpuSeconds"], mark["likes"], redis_seconds(server)))
            time.sleep(1.0)
        load.result()
    whole = (len(marks) - 1) // len(ORDER) * len(ORDER)
    return [
        Stretch(
            switch,
            (after[0] - before[0]) / (after[1] - before[1]) * 1e6,
            (after[2] - before[2]) / (after[1] - before[1]) * 1e6,
        )
        for switch, (before, after) in zip(cycle(ORDER), pairwise(marks[: whole + 1]), strict=False)
    ]


def _compare(place: str, stretches: list[Stretch]) -> Comparison:
    """Pair neighbours in time, and tell between what values half of the ratios lie."""
    limited, free = ([each for each in stretches if each.switch == s] for s in ("on", "off"))
    ratios = [on.server / off.server for on, off in zip(limited, free, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    notes = {"half the ratios from": low, "to": high}
    return Comparison(
        "limits",
        UNIT,
        _side(f"like, rate limits on, {place}", limited, notes),
        _side(f"like, rate limits off, {place}", free, {}),
        at_most=MOST_RATIO,
        paired=True,
    )


def _side(name: str, stretches: list[Stretch], notes: dict[str, float]) -> Side:
    redis = median(each.redis for each in stretches)
    told = {**notes, "Redis CPU µs": redis} if redis else notes
    return Side(name, [each.server for each in stretches], told)
