"""What rate limits cost a like: CPU of a server that has them switched on and off all the time."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from typing import Any

from benchmarks.bench import Bench, say
from benchmarks.like import Clients, Server, backlot
from benchmarks.redis_server import redis_server
from benchmarks.results import Comparison
from benchmarks.stretches import compared, stretches
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
MOST_RATIO = 1.05


def run(bench: Bench) -> list[Comparison]:
    """Likes without a pause, as in `like`, by 3,000 viewers with an address each."""
    secret = secrets.token_urlsafe(32)
    viewers = range(bench.size(3_000, 100))
    clients = Clients(
        [mint_token(secret, f"viewer-{number}") for number in viewers],
        # Every token is verified once before it counts.
        warmup_seconds=bench.size(6, 1),
        seconds=bench.size(45, 15),
        addresses=[f"198.51.{number // 250}.{number % 250 + 1}" for number in viewers],
    )
    found = []
    with backlot(bench, secret, "limits", **SETTINGS) as server:
        found.append(_compare(IN_PROCESS, clients, server))
    with ExitStack() as stack:
        url = stack.enter_context(redis_server(bench.folder / "limits-redis"))
        server = stack.enter_context(
            backlot(bench, secret, "limits-shared", **SETTINGS, REDIS_URL=url)
        )
        found.append(_compare(IN_REDIS, clients, server))
    return found


def _compare(place: str, clients: Clients, server: Server) -> Comparison:
    say("liking, while limits are switched on and off")
    found = stretches(
        server,
        "limits",
        "likes",
        lambda: clients.like(server, 0),
        warmup_seconds=clients.warmup_seconds,
        seconds=clients.seconds,
    )
    names = f"like, rate limits on, {place}", f"like, rate limits off, {place}"
    return compared("limits", UNIT, names, found, at_most=MOST_RATIO)
