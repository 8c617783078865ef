"""Forgetting users who have done much: how long that takes, and what likes of others lose."""

from __future__ import annotations

import secrets
import time
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from statistics import mean
from typing import NamedTuple
from uuid import UUID

import httpx
import psycopg
from eventsourcing.persistence import StoredEvent

from benchmarks.bench import Bench, say
from benchmarks.like import BACKLOT_PROJECTED, BACKLOT_RECORDED, PATHS, Clients, Lost, Server
from benchmarks.load import SLICE_SECONDS, Report
from benchmarks.log import FORMER, VIDEOS, fill, first_comment, first_like
from benchmarks.processes import serving
from benchmarks.results import Comparison, Side
from infra.http.auth import mint_token

ROLES = "commands,queries,projections,consumers,workers"
CATCH_UP_SECONDS = 600.0
MINUTE = 60.0
LEAST_LIKES = 0.9
# The next user is asked for while the one before waits in the pause: work and quiet take turns.
QUIET_SECONDS, EVERY_SECONDS, LAST_SECONDS = 10.0, 25.0, 60.0
LOOK_SECONDS = 0.05
# So much of a stretch is needed to tell a rate.
LEAST_SLICES = 4
BOTH = (True, False)
BEHIND = """
SELECT count(*) FROM backlot_checkpoints
WHERE source = 'events' AND position < (SELECT max(notification_id) FROM backlot_events)
"""
# Whoever is asked for waits for the worker's next turn, and in the pause for its end.
STATE = """
SELECT count(*) FILTER (WHERE finished_at IS NULL AND step NOT IN ('request', 'settling')),
       count(finished_at), sum(failures),
       (SELECT max(notification_id) FROM backlot_events),
       (SELECT min(position) FROM backlot_checkpoints
        WHERE kind = 'projection' AND subscription = projection)
FROM backlot_erasures
"""
TOOK = """
SELECT extract(epoch FROM finished_at - fenced_at)::float8
FROM backlot_erasures JOIN backlot_persons USING (pseudonym) ORDER BY fenced_at
"""


def run(bench: Bench) -> list[Comparison]:
    """Seconds from the request to `forgotten`, and likes/s of others at work and in between.

    Users, with 100,000 likes and 1,000 comments each, are forgotten while others like without a
    pause. Likes are counted by quarters of a second. A pair is from one request to the next one:
    the quarters in which the program was at work for anybody, and those in which it was not.
    """
    secret, users = secrets.token_urlsafe(32), bench.size(5, 1)
    likes, comments = bench.size(100_000, 2_000), bench.size(1_000, 100)
    tokens = [mint_token(secret, f"viewer-{n}") for n in range(bench.size(3_000, 100))]
    with _backlot(bench, secret, users, likes, comments) as server:
        # Every token is verified once before it counts.
        Clients(tokens, 0.0, bench.size(5, 2)).report(server.served, PATHS, 0)
        whole = QUIET_SECONDS + (users - 1) * EVERY_SECONDS + LAST_SECONDS
        with ThreadPoolExecutor(1) as pool:
            loaded = pool.submit(Clients(tokens, 0.0, whole).report, server.served, PATHS, 1)
            watched = _forget(server, secret, users, loaded)
        with psycopg.connect(server.url) as conn:
            seconds = [took for (took,) in conn.execute(TOOK).fetchall()]
    if None in seconds:
        raise TimeoutError("Not everybody was forgotten in time.")
    pairs = list(_pairs(loaded.result(), watched))
    if not pairs:
        raise Lost("Work and quiet could not be told apart.")
    busy, quiet = zip(*pairs, strict=True)
    return [
        Comparison(
            "erasure",
            "seconds",
            Side(f"forgetting a user with {likes:,} likes and {comments:,} comments", seconds),
            Side("a minute", [MINUTE] * users),
            at_most=1,
        ),
        Comparison(
            "erasure",
            "likes/s",
            Side("likes, while a user is forgotten", busy, {"pairs": len(pairs)}),
            Side("likes, while nobody is", quiet),
            at_least=LEAST_LIKES,
            paired=True,
        ),
    ]


class Watched(NamedTuple):
    """When users were asked for, and whether the program was at work, each time one looked."""

    asked: list[float]
    looks: list[tuple[float, bool]]


def _forget(server: Server, secret: str, users: int, loaded: Future[Report]) -> Watched:
    """Ask for one user after the other to be forgotten, and watch until the load is over."""
    watched, finished, reached = Watched([], []), 0, 0
    headers = {"Authorization": f"Bearer {mint_token(secret, 'root', ['admin'])}"}
    url, began = f"http://127.0.0.1:{server.served.port}", time.perf_counter()
    with (
        httpx.Client(base_url=url, headers=headers, trust_env=False) as http,
        psycopg.connect(server.url, autocommit=True) as conn,
    ):
        while not loaded.done():
            number, now = len(watched.asked), time.perf_counter()
            if number < users and now - began >= QUIET_SECONDS + number * EVERY_SECONDS:
                say(f"user {number + 1} of {users}")
                watched.asked.append(now)
                http.delete(f"/users/fan-{number}").raise_for_status()
            ((working, done, failures, head, projected),) = conn.execute(STATE).fetchall()
            if failures:
                raise Lost("A step of forgetting somebody failed.")
            if done > finished:
                # What read models do about it is work, too.
                finished, reached = done, head
            watched.looks.append((time.perf_counter(), working > 0 or projected < reached))
            time.sleep(LOOK_SECONDS)
    return watched


def _pairs(report: Report, watched: Watched) -> Iterator[tuple[float, float]]:
    """Yield likes/s at work and in between, from one request to the next, as far as told."""
    rates: dict[bool, list[list[float]]] = {state: [[] for _ in watched.asked] for state in BOTH}
    for number, answers in enumerate(report.slices):
        begin = report.measured_from + number * SLICE_SECONDS
        seen = {state for at, state in watched.looks if begin <= at < begin + SLICE_SECONDS}
        if len(seen) == 1:
            place = max(0, bisect_right(watched.asked, begin) - 1)
            rates[seen.pop()][place].append(answers / SLICE_SECONDS)
    for busy, quiet in zip(rates[True], rates[False], strict=True):
        if min(len(busy), len(quiet)) >= LEAST_SLICES:
            yield mean(busy), mean(quiet)


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
