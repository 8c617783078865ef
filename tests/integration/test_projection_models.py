"""The rows of catalog, likes and comments, and what can be asked of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID, uuid4

import anyio
import psycopg
import pytest
from psycopg import AsyncConnection

from domain.upload import Upload
from projections.catalog import Catalog
from projections.comments import CommentRow, Comments
from projections.install import create, install
from projections.likes import Likes
from projections.log import Log
from projections.projection import Projection
from tests.integration.projection_support import Writer, origin, rows

T = TypeVar("T")
END = 2**63 - 1


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    writer = Writer(database_url)
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, [Catalog(), Likes(), Comments()])
    yield writer
    writer.close()


def project(database_url: str, writer: Writer, projection: Projection, size: int = 1000) -> None:
    """Apply the whole log in batches of one size, without a runner."""
    log = Log(projection.events, mapper=writer.mapper, batch_events=size)
    with psycopg.connect(database_url, autocommit=True) as conn:
        after, head = 0, writer.head
        while after < head:
            window = log.read(conn, after, head)
            with conn.transaction(), conn.cursor(binary=True) as cursor:
                if window.events:
                    projection.apply([log.decode(stored) for stored in window.events], cursor)
            after = window.until


def ask(database_url: str, query: Callable[[AsyncConnection[Any]], Coroutine[Any, Any, T]]) -> T:
    @asynccontextmanager
    async def connected() -> AsyncIterator[AsyncConnection[Any]]:
        async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
            yield conn

    async def main() -> T:
        async with connected() as conn:
            return await query(conn)

    return anyio.run(main)


def likes_rows(database_url: str, schema: str = "likes") -> tuple[object, object]:
    kept = rows(database_url, f"SELECT * FROM {schema}.likes ORDER BY video_id, viewer")
    return kept, rows(database_url, f"SELECT * FROM {schema}.counts ORDER BY likes DESC")


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_likes_are_the_same_in_batches_of_any_size(
    database_url: str, writer: Writer, size: int
) -> None:
    one, two = writer.video().id, writer.video().id
    first = writer.like(one, "alice")
    writer.unlike(one, "alice")
    again = writer.like(one, "alice")
    bob = writer.like(one, "bob")
    writer.like(two, "bob")
    writer.unlike(two, "bob")
    project(database_url, writer, Likes(), size)
    assert first < again
    kept, counts = likes_rows(database_url)
    assert kept == [(one, "alice", again), (one, "bob", bob)]
    assert counts == [(one, 2), (two, 0)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_removed_video_leaves_nothing_behind(
    database_url: str, writer: Writer, size: int
) -> None:
    video, other = writer.video(), writer.video()
    writer.like(video.id, "alice", "bob")
    writer.like(other.id, "alice")
    comment = writer.comment(video.id)
    kept = writer.comment(other.id)
    video.remove(origin())
    writer.save(video)
    # Decided elsewhere before the removal was seen there, and recorded after it.
    writer.unlike(video.id, "alice")
    writer.like(video.id, "eve")
    writer.comment(video.id, "eve")
    comment.edit("late", origin("bob"))
    comment.delete(origin("bob"))
    writer.save(comment)
    for projection in (Likes(), Comments(), Catalog()):
        project(database_url, writer, projection, size)
    assert rows(database_url, "SELECT video_id, viewer FROM likes.likes") == [(other.id, "alice")]
    assert rows(database_url, "SELECT * FROM likes.counts") == [(other.id, 1)]
    assert rows(database_url, "SELECT comment_id FROM comments.comments") == [(kept.id,)]
    assert rows(database_url, "SELECT * FROM comments.counts") == [(other.id, 1)]
    assert rows(database_url, "SELECT upload_id FROM catalog.uploads") == [(other.id,)]


def test_others_counts_everybody_else(database_url: str, writer: Writer) -> None:
    one, two = writer.video().id, writer.video().id
    writer.like(one, "alice", "bob", "eve")
    project(database_url, writer, likes := Likes())
    with psycopg.connect(database_url) as conn, conn.cursor(binary=True) as cursor:
        pairs = [(one, "alice"), (one, "mallory"), (two, "alice"), (one, "alice")]
        assert likes.others(cursor, pairs) == [2, 3, 0, 2]
        assert likes.others(cursor, []) == []


def test_who_likes_what_newest_first(database_url: str, writer: Writer) -> None:
    videos = [writer.video().id for _ in range(5)]
    places = {video: writer.like(video, "alice") for video in videos}
    writer.unlike(videos[1], "alice")
    places[videos[0]] = (writer.unlike(videos[0], "alice"), writer.like(videos[0], "alice"))[1]
    project(database_url, writer, likes := Likes())

    async def query(conn: AsyncConnection[Any]) -> None:
        page = await likes.liked_page(conn, "alice", END, 2)
        assert page == [(videos[0], places[videos[0]]), (videos[4], places[videos[4]])]
        rest = await likes.liked_page(conn, "alice", page[-1].position, 10)
        assert [like.video_id for like in rest] == [videos[3], videos[2]]
        assert await likes.liked_page(conn, "bob", END, 10) == []
        assert await likes.counts(conn, videos) == dict.fromkeys(videos, 1) | {videos[1]: 0}
        assert await likes.liked(conn, "alice", videos[:2]) == {videos[0]}
        assert await likes.counts(conn, []) == {}

    ask(database_url, query)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_the_catalog_follows_uploads(database_url: str, writer: Writer, size: int) -> None:
    started, video, aborted, expired = (
        writer.upload("alice", title="started"),
        writer.video("bob", title="before", description="said", category="nature"),
        writer.upload("alice"),
        writer.upload("alice"),
    )
    aborted.abort(origin())
    expired.expire(origin("housekeeping"))
    video.change_details(origin("bob"), title="after", description=None, category="cities")
    video.transcribe("es", "Llueve.", 61.5, "whisper/base", origin("transcription"))
    writer.save(aborted, expired, video)
    project(database_url, writer, catalog := Catalog(), size)

    async def query(conn: AsyncConnection[Any]) -> None:
        for upload, status in (
            (started, "started"),
            (video, "completed"),
            (aborted, "aborted"),
            (expired, "expired"),
        ):
            row = await catalog.upload(conn, upload.id)
            assert row is not None
            assert (row.status, row.owner, row.size_bytes) == (status, upload.owner, 2500)
            assert (row.object_key, row.store_upload_id, row.part_size_bytes) == (
                upload.object_key,
                upload.store_upload_id,
                1024,
            )
        assert await catalog.upload(conn, uuid4()) is None
        found = await catalog.videos(conn, [started.id, video.id, aborted.id, uuid4()])
        assert list(found) == [video.id]
        seen = found[video.id]
        assert (seen.title, seen.description, seen.category) == ("after", None, "cities")
        assert (seen.owner, seen.completed_at) == ("bob", video.completed_at)
        assert (seen.spoken_language, seen.duration_seconds) == ("es", 61.5)

    ask(database_url, query)


def test_pages_of_videos(database_url: str, writer: Writer) -> None:
    uploads: list[Upload] = []
    for n in range(6):
        owner, category = ("alice", "bob")[n % 2], ("nature", "cities", None)[n % 3]
        uploads.append(writer.upload(owner, category=category))
    # Completed in another order than started: the order of the list.
    for upload in reversed(uploads):
        upload.complete(2500, "etag", origin())
        writer.save(upload)
    project(database_url, writer, catalog := Catalog())
    ids = [upload.id for upload in uploads]

    async def query(conn: AsyncConnection[Any]) -> None:
        async def page(
            owner: str | None, category: str | None, before: int = END, limit: int = 10
        ) -> list[UUID]:
            found = await catalog.page(
                conn, owner=owner, category=category, before=before, limit=limit
            )
            places.extend(row.completed_position for row in found)
            return [row.video_id for row in found]

        places: list[int] = []
        assert await page(None, None, limit=4) == ids[:4]
        assert await page(None, None, before=places[-1]) == ids[4:]
        assert await page("alice", None) == ids[0::2]
        assert await page(None, "cities") == ids[1::3]
        assert await page("bob", "cities") == [ids[1]]
        assert await page("nobody", None) == []

    ask(database_url, query)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_comments_and_their_language(database_url: str, writer: Writer, size: int) -> None:
    video = writer.video().id
    robot = origin("translator")
    plain, english, translated, failed, edited, deleted, skipped, emoji = (
        writer.comment(video, "bob", content)
        for content in ("plain", "hello", "hola", "??", "first", "gone", "salut", "🎬")
    )
    english.detect_language(1, "en", 0.9, "lite", "en", robot)
    translated.detect_language(1, "es", 0.75, "lite", "en", robot)
    translated.translate(1, "es", "en", "hello", "model", "v1", robot)
    failed.fail_translation(1, "refused", robot)
    edited.detect_language(1, "de", 0.5, "lite", "en", robot)
    edited.translate(1, "de", "en", "once", "model", "v1", robot)
    edited.edit("second", origin("bob"))
    edited.translate(1, "de", "en", "stale", "model", "v1", robot)
    deleted.delete(origin("bob"))
    skipped.skip_translation(1, True, "no-provider", robot)
    emoji.skip_translation(1, False, "no-words", robot)
    writer.save(english, translated, failed, edited, deleted, skipped, emoji)
    project(database_url, writer, comments := Comments(), size)

    async def query(conn: AsyncConnection[Any]) -> None:
        assert await comments.counts(conn, [video, uuid4()]) == {video: 7}
        found = await comments.page(conn, video, END, 10)
        assert [row.comment_id for row in found] == [
            each.id for each in (emoji, skipped, edited, failed, translated, english, plain)
        ]
        state = {row.comment_id: described(row) for row in found}
        assert state[plain.id] == ("plain", False, None, None, None, "pending")
        assert state[english.id] == ("hello", False, "en", 0.9, None, "not_needed")
        assert state[translated.id] == ("hola", False, "es", 0.75, "hello", "translated")
        assert state[failed.id] == ("??", False, None, None, None, "failed")
        assert state[edited.id] == ("second", True, None, None, None, "pending")
        assert state[skipped.id] == ("salut", False, None, None, None, "skipped")
        assert state[emoji.id] == ("🎬", False, None, None, None, "not_needed")
        assert found[2].created_at == edited.posted_at
        rest = await comments.page(conn, video, found[2].position, 10)
        assert rest == found[3:]

    ask(database_url, query)


def described(row: CommentRow) -> tuple[object, ...]:
    return (
        row.content,
        row.edited,
        row.language,
        row.confidence,
        row.translated_text,
        row.translation_status,
    )


def test_a_second_copy_is_built_beside_and_switched_by_name(
    database_url: str, writer: Writer
) -> None:
    """What a replay needs: the same statements, prepared ones too, follow a renamed schema."""
    video = writer.video().id
    writer.like(video, "alice", "bob")
    project(database_url, writer, live := Likes())
    writer.like(video, "eve")
    with psycopg.connect(database_url, autocommit=True) as conn:
        copy = Likes("likes_next")
        create(conn, copy)
        project(database_url, writer, copy)
        assert likes_rows(database_url)[1] == [(video, 2)]
        assert likes_rows(database_url, "likes_next")[1] == [(video, 3)]
        with conn.cursor(binary=True) as cursor:
            assert live.others(cursor, [(video, "alice")]) == [1]
            with psycopg.connect(database_url) as operator:
                operator.execute("ALTER SCHEMA likes RENAME TO likes_before")
                operator.execute("ALTER SCHEMA likes_next RENAME TO likes")
            assert live.others(cursor, [(video, "alice")]) == [2]
