"""The design that Backlot was measured against: a unique row and an outbox row per toggle.

Written as fast as that design goes: prepared statements, no query that could be left out, the
counter updated last so that its row is locked briefly, and none of Backlot's edge around it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import psycopg
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from infra.auth import Authenticator, make_authenticator
from infra.contract import LikeState
from infra.http import require_identity
from infra.settings import load_settings

CONNECTIONS = 20
# The design says nothing of the garbage collector; this variable gives it Backlot's settings.
CALM_GC = "BENCH_CALM_GC"
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
LIKE = "INSERT INTO video_likes (user_id, video_id) VALUES (%s, %s) ON CONFLICT DO NOTHING"
UNLIKE = "DELETE FROM video_likes WHERE user_id = %s AND video_id = %s"
PUBLISH = "INSERT INTO outbox (topic, key, payload) VALUES (%s, %s, %s)"
COUNT = "UPDATE videos SET likes = likes + %s WHERE id = %s RETURNING likes"

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


async def toggle(conn: AsyncConnection[TupleRow], video_id: UUID, user_id: str) -> LikeState:
    """Like, or take the like back, in the transaction of the connection."""
    liked = (await conn.execute(LIKE, (user_id, video_id))).rowcount == 1
    if not liked:
        await conn.execute(UNLIKE, (user_id, video_id))
    topic = "video.liked" if liked else "video.unliked"
    payload = Jsonb({"videoId": str(video_id), "userId": user_id, "action": topic[6:-1]})
    await conn.execute(PUBLISH, (topic, str(video_id), payload))
    row = await (await conn.execute(COUNT, (1 if liked else -1, video_id))).fetchone()
    if row is None:
        raise HTTPException(404)
    return LikeState(has_liked=liked, likes_count=row[0])


def make_app(database_url: str, authenticator: Authenticator) -> FastAPI:
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
            yield

    app = FastAPI(lifespan=lifespan)
    app.state.authenticator = authenticator

    @app.post("/videos/{video_id}/like")
    async def like(video_id: UUID, request: Request) -> LikeState:
        caller = await require_identity(request)
        async with request.app.state.pool.connection() as conn:
            return await toggle(conn, video_id, caller.user_id)

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
    app = make_app(os.environ["DATABASE_URL"], make_authenticator(settings))
    if CALM_GC in os.environ:
        gc.freeze()
        gc.set_threshold(20_000, 50, 50)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=settings.port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
    )
