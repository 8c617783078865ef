"""The reads of the design without events: plain tables, and one joined statement per answer.

It stands on the same frame as Backlot (edge, identity, event loop), with the prepared statements of
its driver, counts in the video's row and Backlot's settings of the garbage collector, and says the
same JSON.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, LiteralString
from uuid import UUID

import orjson
import psycopg
import uvicorn
from fastapi import FastAPI, Request, Response
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from backlot.up import calm_garbage_collector, serving
from infra.http.app import HttpApp
from infra.http.auth import Caller, MaybeCaller, make_authenticator
from infra.http.problems import Problem
from infra.http.responses import JsonResponse
from infra.settings import Settings, load_settings
from readapi.pages import decode_cursor, encode_cursor

CONNECTIONS = 20
TABLES = """
CREATE TABLE videos (
    id uuid PRIMARY KEY, owner text NOT NULL, title text NOT NULL, description text, category text,
    status text NOT NULL, visibility text NOT NULL, duration_seconds double precision,
    spoken_language text, created_at timestamptz NOT NULL, position bigint NOT NULL UNIQUE,
    likes bigint NOT NULL, comments bigint NOT NULL, views bigint NOT NULL);
CREATE TABLE video_likes (
    user_id text COLLATE "C" NOT NULL, video_id uuid NOT NULL, position bigint NOT NULL,
    PRIMARY KEY (user_id, video_id));
CREATE INDEX newest_likes ON video_likes (user_id, position);
CREATE TABLE comments (
    id uuid PRIMARY KEY, video_id uuid NOT NULL, user_id text NOT NULL, content text NOT NULL,
    translation_status text NOT NULL, edited boolean NOT NULL, created_at timestamptz NOT NULL,
    position bigint NOT NULL, likes bigint NOT NULL, replies bigint NOT NULL, parent_id uuid);
CREATE INDEX newest_comments ON comments (video_id, position) WHERE parent_id IS NULL;
"""
# Each table from the read models of Backlot, so that both have the same.
COPIES = {
    "videos": """
SELECT upload_id, owner, title, description, category, status, visibility, duration_seconds,
       spoken_language, completed_at, completed_position, coalesce(likes, 0),
       coalesce(comments, 0), 0::bigint
FROM catalog.uploads AS u LEFT JOIN likes.counts AS l ON l.video_id = upload_id
LEFT JOIN comments.counts AS c ON c.video_id = upload_id WHERE completed_position IS NOT NULL
""",
    "video_likes": "SELECT viewer, video_id, position FROM likes.likes",
    "comments": """
SELECT comment_id, c.video_id, author, content, translation_status, edited, created_at, c.position,
       coalesce(likes, 0), coalesce(replies, 0), parent_id
FROM comments.comments AS c LEFT JOIN comments.tallies USING (comment_id)
""",
}
SHOWN: LiteralString = """
v.id AS "videoId", v.title, v.description, v.category, v.owner AS "ownerId", v.status, v.visibility,
v.duration_seconds AS "durationSeconds", v.spoken_language AS "spokenLanguage",
v.created_at AS "createdAt", v.likes, v.comments, v.views,
CASE WHEN %(user)s::text IS NOT NULL THEN l.user_id IS NOT NULL END AS "hasLiked"
"""
MAY_SEE: LiteralString = "(v.visibility <> 'private' OR v.owner = %(user)s)"
VIDEO: LiteralString = f"""
SELECT {SHOWN} FROM videos AS v
LEFT JOIN video_likes AS l ON l.video_id = v.id AND l.user_id = %(user)s
WHERE v.id = %(video)s AND {MAY_SEE}
"""
NEWEST: LiteralString = f"""
SELECT {SHOWN}, v.position FROM videos AS v
LEFT JOIN video_likes AS l ON l.video_id = v.id AND l.user_id = %(user)s
WHERE v.position < %(before)s AND v.visibility = 'public'
ORDER BY v.position DESC LIMIT %(limit)s + 1
"""
LIKED: LiteralString = f"""
SELECT {SHOWN}, l.position FROM video_likes AS l JOIN videos AS v ON v.id = l.video_id
WHERE l.user_id = %(user)s AND l.position < %(before)s
  AND (v.visibility = 'public' OR v.owner = %(user)s)
ORDER BY l.position DESC LIMIT %(limit)s + 1
"""
COMMENTS: LiteralString = f"""
SELECT c.* FROM videos AS v LEFT JOIN LATERAL (
    SELECT id AS "commentId", video_id AS "videoId", user_id AS "userId", content,
           translation_status AS "translationStatus", edited, created_at AS "createdAt",
           likes AS "likeCount", replies AS "replyCount", position
    FROM comments WHERE video_id = v.id AND parent_id IS NULL AND position < %(before)s
    ORDER BY position DESC LIMIT %(limit)s + 1) AS c ON true
WHERE v.id = %(video)s AND {MAY_SEE}
"""

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]


async def rows_of(request: Request, statement: LiteralString, **given: Any) -> list[DictRow]:
    """Return what the one statement of an answer finds."""
    pool: Pool = request.app.state.pool
    async with pool.connection() as conn:
        return await (await conn.execute(statement, given)).fetchall()


def answer(body: object) -> Response:
    """Return the JSON of an answer."""
    return JsonResponse(orjson.dumps(body, option=orjson.OPT_UTC_Z), 200, {})


def item(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as clients see it: without what has no value."""
    return {name: value for name, value in row.items() if value is not None and name != "position"}


def page(kind: str, rows: list[DictRow], limit: int) -> Response:
    """Return a page of rows, of which one more than fit says that there is another."""
    shown = rows[:limit]
    body: dict[str, Any] = {"items": [item(row) for row in shown]}
    if len(rows) > limit:
        body["nextCursor"] = encode_cursor(kind, shown[-1]["position"])
    return answer(body)


def make_app(settings: Settings, database_url: str) -> FastAPI:
    """The application; its database has the tables already."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        options = {"prepare_threshold": 0, "row_factory": dict_row, "options": "-c TimeZone=UTC"}
        async with Pool(
            database_url,
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            open=False,
            kwargs={"autocommit": True, **options},
        ) as pool:
            app.state.pool = pool
            yield

    app = HttpApp(
        title="CRUD",
        authenticator=make_authenticator(settings.auth),
        body_limit=settings.server.body_limit_bytes,
        translate={},
        lifespan=lifespan,
    )

    @app.get("/videos")
    async def newest(
        request: Request, caller: MaybeCaller, cursor: str | None = None, limit: int = 20
    ) -> Response:
        before, user = decode_cursor("videos", cursor), caller and caller.person
        rows = await rows_of(request, NEWEST, user=user, before=before, limit=limit)
        return page("videos", rows, limit)

    @app.get("/videos/liked")
    async def liked(
        request: Request, caller: Caller, cursor: str | None = None, limit: int = 20
    ) -> Response:
        before = decode_cursor("liked", cursor)
        rows = await rows_of(request, LIKED, user=caller.person, before=before, limit=limit)
        return page("liked", rows, limit)

    @app.get("/videos/{video_id}")
    async def video(video_id: UUID, request: Request, caller: MaybeCaller) -> Response:
        rows = await rows_of(request, VIDEO, user=caller and caller.person, video=video_id)
        return answer(item(_there(rows)[0]))

    @app.get("/videos/{video_id}/comments")
    async def comments(
        video_id: UUID,
        request: Request,
        caller: MaybeCaller,
        cursor: str | None = None,
        limit: int = 20,
    ) -> Response:
        given = {"before": decode_cursor("comments", cursor), "limit": limit}
        user = caller and caller.person
        rows = _there(await rows_of(request, COMMENTS, user=user, video=video_id, **given))
        return page("comments", [row for row in rows if row["commentId"]], limit)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _there(rows: list[DictRow]) -> list[DictRow]:
    if not rows:
        raise Problem(404, "not-found", "There is no such video.")
    return rows


def prepare(database_url: str, source_url: str) -> None:
    """Make the tables, with the rows of the read models in a database of Backlot's."""
    with psycopg.connect(source_url) as source, psycopg.connect(database_url) as conn:
        conn.execute(TABLES)
        for table, select in COPIES.items():
            _copy(source, select, conn, table)
        conn.commit()
        conn.autocommit = True
        conn.execute("VACUUM (ANALYZE)")


def _copy(
    source: psycopg.Connection[Any], select: str, conn: psycopg.Connection[Any], table: str
) -> None:
    out = f"COPY ({select}) TO STDOUT (FORMAT binary)".encode()
    into = f"COPY {table} FROM STDIN (FORMAT binary)".encode()
    with source.cursor().copy(out) as given, conn.cursor().copy(into) as taken:
        for chunk in given:
            taken.write(chunk)


if __name__ == "__main__":
    settings = load_settings()
    app = make_app(settings, os.environ["DATABASE_URL"])
    calm_garbage_collector()
    uvicorn.Server(serving(app, host=settings.server.host, port=settings.server.port)).run()
