"""The original plan's likes, which Backlot is measured against: rows, a counter and an outbox.

As the plan says: in one transaction look whether the like exists, create or delete it, write the
outbox row, and move the counter. It has the same frame as Backlot (edge, identity, one write per
answer), the prepared statements of its driver, and the counter last, so that its row is locked
briefly. With the variable `BENCH_TIGHT` set it is as fast as the design can be made: without the
look, which PostgreSQL does not need, and with Backlot's settings of the garbage collector.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg
import uvicorn
from fastapi import FastAPI, Request
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from backlot.up import calm_garbage_collector, serving
from infra.http.app import HttpApp
from infra.http.auth import Caller, make_authenticator
from infra.http.problems import Problem
from infra.http.shapes import LikeState
from infra.redis import open_redis
from infra.settings import Settings, load_settings

CONNECTIONS = 20
TIGHT = "BENCH_TIGHT"
TABLES = """
CREATE TABLE videos (id uuid PRIMARY KEY, title text NOT NULL, likes bigint NOT NULL DEFAULT 0)
    WITH (fillfactor = 70);
CREATE TABLE video_likes (
    user_id text NOT NULL, video_id uuid NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, video_id));
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text NOT NULL, key text NOT NULL,
    payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
"""
FIND = "SELECT FROM video_likes WHERE user_id = %s AND video_id = %s"
LIKE = "INSERT INTO video_likes (user_id, video_id) VALUES (%s, %s) ON CONFLICT DO NOTHING"
UNLIKE = "DELETE FROM video_likes WHERE user_id = %s AND video_id = %s"
PUBLISH = "INSERT INTO outbox (topic, key, payload) VALUES (%s, %s, %s)"
COUNT = "UPDATE videos SET likes = likes + %s WHERE id = %s RETURNING likes"

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


async def toggle(
    conn: AsyncConnection[TupleRow], video_id: UUID, user_id: str, *, look: bool
) -> bool:
    """Like, or take the like back, in the transaction of the connection.

    Of two rivals that both saw no like, the later one takes the like back: both were toggles.
    """
    pair = (user_id, video_id)
    exists = look and (await conn.execute(FIND, pair)).rowcount == 1
    liked = not exists and (await conn.execute(LIKE, pair)).rowcount == 1
    if not liked:
        await conn.execute(UNLIKE, pair)
    topic = "video.liked" if liked else "video.unliked"
    payload = Jsonb({"videoId": str(video_id), "userId": user_id, "action": topic[6:-1]})
    await conn.execute(PUBLISH, (topic, str(video_id), payload))
    return liked


async def count(conn: AsyncConnection[TupleRow], video_id: UUID, delta: int) -> int:
    """Move the counter in the video's row, where there is no Redis; last, so that it is brief."""
    row = await (await conn.execute(COUNT, (delta, video_id))).fetchone()
    if row is None:
        raise Problem(404, "not-found", "There is no such video.")
    return int(row[0])


def make_app(settings: Settings, database_url: str, *, look: bool) -> FastAPI:
    """The application; its database has the tables already."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Pool(
            database_url,
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            open=False,
            kwargs={"prepare_threshold": 0},
        ) as pool:
            app.state.pool = pool
            app.state.redis = open_redis(settings.redis.url)
            yield
            await app.state.redis.aclose()

    app = HttpApp(
        title="CRUD",
        authenticator=make_authenticator(settings.auth),
        body_limit=settings.server.body_limit_bytes,
        translate={},
        lifespan=lifespan,
    )

    @app.post("/videos/{video_id}/like")
    async def like(video_id: UUID, caller: Caller, request: Request) -> LikeState:
        async with request.app.state.pool.connection() as conn:
            liked = await toggle(conn, video_id, caller.person, look=look)
            delta = 1 if liked else -1
            if settings.redis.url is None:
                return LikeState(has_liked=liked, likes_count=await count(conn, video_id, delta))
        # The plan's hot counter; a job of its own brings it into the rows now and then.
        likes = await request.app.state.redis.incrby(f"video:likes:{video_id}", delta)
        return LikeState(has_liked=liked, likes_count=likes)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def prepare(database_url: str, videos: list[UUID]) -> None:
    """Make the tables and the videos."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(TABLES)
        conn.execute("INSERT INTO videos (id, title) SELECT unnest(%s::uuid[]), 'Video'", (videos,))


if __name__ == "__main__":
    settings = load_settings()
    tight = TIGHT in os.environ
    app = make_app(settings, os.environ["DATABASE_URL"], look=not tight)
    if tight:
        calm_garbage_collector()
    uvicorn.Server(serving(app, host=settings.server.host, port=settings.server.port)).run()
