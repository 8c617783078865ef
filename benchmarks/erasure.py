"""Forgetting users who have done much: how long that takes, and what likes of others lose."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean
from uuid import UUID

import httpx
import psycopg
from eventsourcing.persistence import StoredEvent

from benchmarks.bench import Bench, say
from benchmarks.like import BACKLOT_PROJECTED, BACKLOT_RECORDED, PATHS, Clients, Server
from benchmarks.log import FORMER, VIDEOS, fill, first_comment, first_like
from benchmarks.processes import serving
from benchmarks.results import Comparison, Side
from infra.http.auth import mint_token

ROLES = "commands,queries,projections,consumers,workers"
CATCH_UP_SECONDS, LONGEST_SECONDS = 600.0, 600.0
MINUTE = 60.0
PAUSE = "settling"
LEAST_LIKES = 0.9
BEHIND = """
SELECT count(*) FROM backlot_checkpoints
WHERE source = 'events' AND position < (SELECT max(notification_id) FROM backlot_events)
"""


def run(bench: Bench) -> list[Comparison]:
    """Seconds from the request to `forgotten`, and likes/s of others while there is work.

    Each round forgets another user, with 100,000 likes and 1,000 comments. Stretches of likes that
    begin in the pause before everything is looked for once more don't count.
    """
    secret, rounds = secrets.token_urlsafe(32), bench.size(3, 1)
    likes, comments = bench.size(100_000, 2_000), bench.size(1_000, 100)
    tokens = [mint_token(secret, f"viewer-{n}") for n in range(bench.size(3_000, 100))]
    clients = Clients(tokens, 0.0, bench.size(5, 2))
    seconds, busy, quiet = [], [], []
    with _backlot(bench, secret, rounds, likes, comments) as server:
        # Every token is verified once before it counts.
        clients.load(server.served, PATHS, 0)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            quiet.append(clients.load(server.served, PATHS, number)[0][0])
            rates = []
            started = time.monotonic()
            for step in _steps(server, secret, f"fan-{number}"):
                rate = clients.load(server.served, PATHS, number)[0][0]
                if step != PAUSE:
                    rates.append(rate)
            seconds.append(time.monotonic() - started)
            busy.append(mean(rates))
    what = f"{likes:,} likes and {comments:,} comments"
    return [
        Comparison(
            "erasure",
            "seconds",
            Side(f"forgetting a user with {what}", seconds),
            Side("a minute", [MINUTE] * rounds),
            at_most=1,
        ),
        Comparison(
            "erasure",
            "likes/s",
            Side("likes, while a user is forgotten", busy),
            Side("likes, while nobody is", quiet),
            at_least=LEAST_LIKES,
            paired=True,
        ),
    ]


def _steps(server: Server, secret: str, user: str) -> Iterator[str]:
    """Ask for a user to be forgotten; yield the step that it is at, until it is done."""
    headers = {"Authorization": f"Bearer {mint_token(secret, 'root', ['admin'])}"}
    url, until = f"http://127.0.0.1:{server.served.port}", time.monotonic() + LONGEST_SECONDS
    with httpx.Client(base_url=url, headers=headers) as client:
        client.delete(f"/users/{user}").raise_for_status()
        while time.monotonic() < until:
            told = client.get(f"/users/{user}/forgetting").raise_for_status().json()
            if told["status"] == "forgotten":
                return
            yield told["step"]
    raise TimeoutError(f"{user} is not forgotten.")


@contextmanager
def _backlot(bench: Bench, secret: str, users: int, likes: int, comments: int) -> Iterator[Server]:
    """Backlot with consumers, on a log of which all read models have seen everything."""
    url = _filled(bench, users, likes, comments)
    settings = {
        "DATABASE_URL": url,
        "JWT_SECRET": secret,
        "KEY_ENCRYPTION_KEY": secrets.token_hex(32),
        "LOG_LEVEL": "warning",
        "BACKLOT_ROLES": ROLES,
        "BACKLOT_DATA_DIR": "data",
    }
    folder = bench.folder / "erasure"
    with serving("server", folder, health="/readyz", settings=settings) as served:
        until = time.monotonic() + CATCH_UP_SECONDS
        with psycopg.connect(url, autocommit=True) as conn:
            while conn.execute(BEHIND).fetchall() != [(0,)]:
                if time.monotonic() > until:
                    raise TimeoutError("What follows the log has not caught up.")
                time.sleep(0.1)
        yield Server(served, url, BACKLOT_RECORDED, BACKLOT_PROJECTED, None)


def _filled(bench: Bench, users: int, likes: int, comments: int) -> str:
    """A log as an older release has left it: user ids are pseudonyms, and texts in the clear."""
    url, fans = bench.database(), [f"fan-{number}" for number in range(users)]

    def make(index: int) -> StoredEvent:
        number, fan = divmod(index, users)
        if number < likes:
            return first_like(UUID(int=0xFA7 << 96 | number), fans[fan])
        return first_comment(UUID(int=0xFAC << 96 | index), VIDEOS[number % len(VIDEOS)], fans[fan])

    fill(url, len(VIDEOS) * 2 + users * (likes + comments), make)
    with psycopg.connect(url, autocommit=True) as conn, conn.cursor() as cursor:
        cursor.executemany(FORMER, [(fan,) for fan in fans])
    return url
