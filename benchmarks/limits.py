"""What rate limits cost a like: CPU of the server with them and without, in short paired rounds."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from statistics import median, quantiles

from benchmarks.bench import Bench
from benchmarks.like import CPU_NOTE, Clients, Rounds, backlot, side
from benchmarks.redis_server import redis_server
from benchmarks.results import Comparison, Side
from infra.http.auth import mint_token

PLACES = {"in the process": False, "in Redis": True}
# So high that nobody ever meets them: what is measured is the looking.
HIGH = "60000000/1000000"
SWITCHES = {
    "off": {"RATE_LIMITS": "off"},
    "on": {
        "RATE_LIMITS": "on",
        "RATE_LIMIT_WRITE": HIGH,
        "QUOTA_LIKED_VIDEOS_PER_MINUTE": "10000000",
        "TRUSTED_PROXIES": "127.0.0.0/8",
    },
}
MOST_RATIO = 1.05


def run(bench: Bench) -> list[Comparison]:
    """CPU per like, with the buckets in the process and in Redis; the contenders go ABBA."""
    secret = secrets.token_urlsafe(32)
    viewers = range(bench.size(3_000, 100))
    clients = Clients(
        [mint_token(secret, f"viewer-{number}") for number in viewers],
        warmup_seconds=0.0,
        seconds=bench.size(20, 5) / 10,
        addresses=[f"198.51.{number // 250}.{number % 250 + 1}" for number in viewers],
    )
    with ExitStack() as stack:
        contenders = {}
        for place, shared in PLACES.items():
            for switch, settings in SWITCHES.items():
                folder = f"{switch}-{place}".replace(" ", "-")
                more = dict(settings)
                if shared:
                    more["REDIS_URL"] = stack.enter_context(
                        redis_server(bench.folder / f"redis-{folder}")
                    )
                server = stack.enter_context(backlot(bench, secret, folder, **more))
                contenders[_name(switch, place)] = partial(clients.like, server)
                # Every token is verified once before it counts.
                replace(clients, seconds=bench.size(3, 1)).like(server, 0)
        measured = bench.interleave(bench.size(12, 1), contenders, mirrored=True)
    return [
        _compare(*(_side(_name(switch, place), measured) for switch in ("on", "off")))
        for place in PLACES
    ]


def _name(switch: str, place: str) -> str:
    return f"like, rate limits {switch}, {place}"


def _side(name: str, measured: dict[str, Rounds]) -> Side:
    rounds = measured[name]
    notes = {**side(name, rounds).notes, "requests/s": median(rate for rate, _ in rounds)}
    del notes[CPU_NOTE]
    return Side(name, [each[CPU_NOTE] for _, each in rounds], notes)


def _compare(limited: Side, free: Side) -> Comparison:
    """Return both, and between what values half of the ratios of neighbours in time lie."""
    ratios = [on / off for on, off in zip(limited.rounds, free.rounds, strict=True)]
    if len(ratios) > 1:
        low, _, high = quantiles(ratios, n=4)
        limited = replace(limited, notes={**limited.notes, "half the ratios from": low, "to": high})
    return Comparison("limits", CPU_NOTE, limited, free, at_most=MOST_RATIO, paired=True)
