"""Forgetting users who have done much: how long that takes, and what likes of others lose."""

from __future__ import annotations

import secrets
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from statistics import mean
from threading import Event
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
# So long nobody is at work before the next user is asked for: work and quiet take turns.
QUIET_SECONDS, LONGEST_SECONDS = 8.0, 600.0
LOAD_SECONDS, LOOK_SECONDS = 20.0, 0.05
# So many slices of one kind are a stretch, and so many on either side are what it is compared with.
LEAST_SLICES, NEAR_SLICES = 4, 20
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
    pause. Likes are counted by quarters of a second. A pair is a stretch in which the program was
    at work for anybody, and what lies before and behind it.
    """
    secret, users = secrets.token_urlsafe(32), bench.size(3, 1)
    likes, comments = bench.size(100_000, 2_000), bench.size(1_000, 100)
    tokens = [mint_token(secret, f"viewer-{n}") for n in range(bench.size(3_000, 100))]
    clients = Clients(tokens, 1.0, LOAD_SECONDS)
    with _backlot(bench, secret, users, likes, comments) as server:
        # Every token is verified once before it counts.
        clients.report(server.served, PATHS, 0)
        reports, over = list[Report](), Event()

        def load() -> None:
            while not over.is_set():
                reports.append(clients.report(server.served, PATHS, len(reports)))

        with ThreadPoolExecutor(1) as pool:
            loaded = pool.submit(load)
            try:
                looks = _forget(server, secret, users, loaded)
            finally:
                over.set()
        loaded.result()
        with psycopg.connect(server.url) as conn:
            seconds = [took for (took,) in conn.execute(TOOK).fetchall()]
    pairs = list(_pairs(reports, looks))
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


class Look(NamedTuple):
    """Whether the program was at work to forget anybody, by `time.perf_counter`."""

    at: float
    busy: bool


def _forget(server: Server, secret: str, users: int, loaded: Future[None]) -> list[Look]:
    """Ask for one user after the other to be forgotten, and watch until it is quiet again."""
    looks, asked, finished, reached = list[Look](), 0, 0, 0
    headers = {"Authorization": f"Bearer {mint_token(secret, 'root', ['admin'])}"}
    url = f"http://127.0.0.1:{server.served.port}"
    began = quiet_since = time.perf_counter()
    with (
        httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as http,
        psycopg.connect(server.url, autocommit=True) as conn,
    ):
        while asked < users or finished < users or looks[-1].at - quiet_since < QUIET_SECONDS:
            if loaded.done():
                loaded.result()
            if time.perf_counter() - began > LONGEST_SECONDS:
                raise TimeoutError("Not everybody is forgotten.")
            if asked < users and time.perf_counter() - quiet_since > QUIET_SECONDS:
                say(f"user {asked + 1} of {users}")
                http.delete(f"/users/fan-{asked}").raise_for_status()
                asked, quiet_since = asked + 1, time.perf_counter()
            ((working, done, failures, head, projected),) = conn.execute(STATE).fetchall()
            if failures:
                raise Lost("A step of forgetting somebody failed.")
            if done > finished:
                # What read models do about it is work, too.
                finished, reached = done, head
            looks.append(Look(time.perf_counter(), working > 0 or projected < reached))
            if looks[-1].busy:
                quiet_since = looks[-1].at
            time.sleep(LOOK_SECONDS)
    return looks


def _pairs(reports: Iterable[Report], looks: Sequence[Look]) -> Iterator[tuple[float, float]]:
    """Yield likes/s in each stretch of work, and near it on either side."""
    stretches = [
        (busy, [rate for _, rate in rates])
        for busy, rates in groupby(_told(reports, looks), itemgetter(0))
    ]
    long = [each for each in stretches if len(each[1]) >= LEAST_SLICES]
    whole = [
        (busy, [rate for _, rates in some for rate in rates])
        for busy, some in groupby(long, itemgetter(0))
    ]
    for (_, before), (busy, rates), (_, behind) in zip(whole, whole[1:], whole[2:], strict=False):
        if busy:
            yield mean(rates), mean(before[-NEAR_SLICES:] + behind[:NEAR_SLICES])


def _told(reports: Iterable[Report], looks: Sequence[Look]) -> Iterator[tuple[bool, float]]:
    """Yield likes/s of each slice in which it was one or the other the whole time, in order."""
    for report in reports:
        for number, answers in enumerate(report.slices):
            begin = report.measured_from + number * SLICE_SECONDS
            first = bisect_left(looks, begin, key=itemgetter(0))
            last = bisect_left(looks, begin + SLICE_SECONDS, key=itemgetter(0))
            seen = {look.busy for look in looks[first:last]}
            if len(seen) == 1:
                yield seen.pop(), answers / SLICE_SECONDS


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
