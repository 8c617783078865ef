"""Recommendations over HTTP: kept ones, and ones that have to be made, without a language model."""

from __future__ import annotations

import random
import secrets
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import httpx
import psycopg

from benchmarks.bench import Bench
from benchmarks.like import Clients, Server, backlot, side
from benchmarks.log import VIDEOS, name_viewers
from benchmarks.redis_server import redis_server
from benchmarks.results import Comparison
from infra.http.auth import mint_token
from projections.recommendations.co_occurrence import Engagement, keep, rank_categories
from projections.recommendations.model import EngagementKind, Weighing

PATH = "/recommendations?limit=10"
KEPT, MADE = "GET recommendations, kept", "GET recommendations, made for each request"
PLAIN, PAGE = "GET that asks Redis once, same API", "GET a page of 10 videos"
NEIGHBOURS_OF = 1_000
WATCHED = 10
FILL = """
INSERT INTO analytics.videos (video_id, owner, category, completed_at)
SELECT id, 'owner', 'category-' || mod(number, 6), %s
FROM unnest(%s::uuid[]) WITH ORDINALITY AS v (id, number)
"""
# Some videos are watched by far more people than others.
SEEN = """
WITH drawn AS (
    SELECT DISTINCT ON (1, 2) 'viewer-' || viewer AS viewer,
           (%s::uuid[])[1 + floor(%s * random() ^ 2)] AS video_id,
           %s - random() * interval '30 days' AS at
    FROM generate_series(0, %s - 1) AS viewer, generate_series(1, %s) AS n),
turns AS (
    SELECT viewer, video_id, at, extract(epoch FROM at)::float8 AS seconds,
           row_number() OVER (PARTITION BY viewer ORDER BY at) AS turn
    FROM drawn),
engaged AS (
    INSERT INTO analytics.engaged (viewer, video_id, watched_at, turn)
    SELECT viewer, video_id, at, turn FROM turns)
INSERT INTO analytics.viewers
SELECT viewer, date_trunc('hour', max(at), 'UTC'), 1, 0, array_agg(number ORDER BY turn),
       array_agg(seconds ORDER BY turn), array_agg(NULL::float8), array_agg(NULL::float8),
       array_agg(video_id ORDER BY turn DESC), array_agg(seconds ORDER BY turn DESC)
FROM turns JOIN analytics.engagement USING (video_id) GROUP BY viewer
"""


def run(bench: Bench) -> list[Comparison]:
    """Requests/s at 64 connections, of viewers who have each watched ten of several hundred videos.

    Those that have to be made are of viewers who have not asked before.
    """
    secret, rounds = secrets.token_urlsafe(32), bench.size(3, 1)
    crowd = bench.size(5_000, 200)
    tokens = [mint_token(secret, f"viewer-{number}") for number in range((rounds + 1) * crowd)]
    warm, seconds = 0.5, bench.size(3, 1)
    few = Clients(tokens[: bench.size(300, 20)], warm, seconds)
    with ExitStack() as stack:
        url = stack.enter_context(redis_server(bench.folder / "redis-recommended"))
        server = stack.enter_context(backlot(bench, secret, "recommended", REDIS_URL=url))
        name_viewers(server.url, len(tokens))
        fill(server.url, len(tokens))
        ask_once(server, few.tokens)

        def made(number: int) -> tuple[float, dict[str, float]]:
            begin = (number + 1) * crowd
            fresh = Clients(tokens[begin : begin + crowd], 0.0, seconds)
            return fresh.get(server, number, PATH, known=True)

        measured = bench.interleave(
            rounds,
            {
                KEPT: lambda number: few.get(server, number, PATH, known=True),
                PLAIN: lambda number: few.get(server, number, "/plain/{}"),
                MADE: made,
                PAGE: lambda number: few.get(server, number, "/videos?limit=10"),
            },
        )
    sides = {name: side(name, found[1:] or found) for name, found in measured.items()}
    return [
        Comparison("recommended", "requests/s", sides[KEPT], sides[PLAIN]),
        Comparison("recommended", "requests/s", sides[MADE], sides[PAGE]),
    ]


def ask_once(server: Server, tokens: list[str]) -> None:
    """Let each viewer ask once, so that the API keeps what it answers."""
    with httpx.Client(base_url=f"http://127.0.0.1:{server.served.port}", timeout=60) as client:
        for token in tokens:
            authorization = {"Authorization": f"Bearer {token}"}
            client.get(PATH, headers=authorization).raise_for_status()


def fill(url: str, viewers: int) -> None:
    """What the consumers would have kept of so many viewers."""
    now, chance = datetime.now(UTC), random.Random(7)
    videos = [str(video) for video in VIDEOS]
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(FILL, (now - timedelta(days=60), videos))
        for number in range(NEIGHBOURS_OF):
            seen = chance.sample(videos, WATCHED)
            at = now - timedelta(minutes=number)
            told = [
                Engagement(f"other-{number}", video, EngagementKind.WATCHED, at) for video in seen
            ]
            with conn.transaction():
                keep(conn, told, Weighing())
        conn.execute(SEEN, (videos, len(videos), now, viewers, WATCHED))
        rank_categories(conn, Weighing())
        conn.execute("VACUUM (ANALYZE)")
