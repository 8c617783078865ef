"""The rows of catalog, likes and comments, and what can be asked of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID, uuid4

import anyio
import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.operation import Operation, OperationOutcome
from domain.upload import NOBODY, Upload
from engine.inspection.index import Audit
from engine.installation import create, install
from engine.log import Log
from engine.projection import Projection
from infra.postgres.connection import column
from projections.catalog import Catalog
from projections.comment_order import CommentOrder, CommentPlace
from projections.comments import CommentRow, Comments
from projections.likes import SUMS, Likes
from projections.operations import Operations
from projections.translation import Translations
from tests.integration.event_log import rows
from tests.integration.projection_spec import ProjectionSpec
from tests.integration.projection_support import Writer, origin

T = TypeVar("T")
P = TypeVar("P", bound=Projection)
END = 2**63 - 1


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    writer = Writer(database_url)
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, [Catalog(), Likes(), Comments()])
    yield writer
    writer.close()


class Spec:
    """Specs on this test's own database."""

    def __init__(self, conn: Connection[TupleRow], writer: Writer) -> None:
        self._conn, self._writer = conn, writer

    def __call__(self, projection: type[P]) -> ProjectionSpec[P]:
        return ProjectionSpec(self._conn, self._writer, projection)


@pytest.fixture
def spec(conn: Connection[TupleRow], writer: Writer) -> Spec:
    return Spec(conn, writer)


def project(database_url: str, writer: Writer, projection: Projection, size: int = 1000) -> None:
    """Apply the whole log in batches of one size, without a runner."""
    log = Log(projection.events, batch_events=size)
    with psycopg.connect(database_url, autocommit=True) as conn:
        after, head = 0, writer.head
        while after < head:
            window = log.read(conn, after, head)
            with conn.transaction(), conn.cursor(binary=True) as cursor:
                if window.events:
                    projection.apply([stored.decode() for stored in window.events], cursor)
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


def test_likes_are_the_same_in_batches_of_any_size(spec: Spec, writer: Writer) -> None:
    one, two = uuid4(), uuid4()
    likes = spec(Likes).given(
        writer.wish("like", one, "alice"),
        writer.wish("unlike", one, "alice"),
        writer.wish("like", one, "alice"),
        writer.wish("like", one, "bob"),
        writer.wish("like", two, "bob"),
        writer.wish("unlike", two, "bob"),
    )
    likes.then("likes", (one, "alice", 3), (one, "bob", 4)).then("counts", (one, 2), (two, 0))


def test_a_removed_video_leaves_nothing_behind(spec: Spec, writer: Writer) -> None:
    video, other = writer.video(), writer.video()
    writer.like(video.id, "alice", "bob")
    writer.like(other.id, "alice")
    comment = writer.comment(video.id)
    kept = writer.comment(other.id)
    models = likes, comments, catalog = spec(Likes), spec(Comments), spec(Catalog)
    video.remove(origin())
    writer.save(video)
    # Decided elsewhere before the removal was seen there, and recorded after it.
    writer.unlike(video.id, "alice")
    writer.like(video.id, "eve")
    writer.comment(video.id, "eve")
    comment.edit("late", origin("bob"))
    comment.delete(origin("bob"))
    writer.save(comment)
    for model in models:
        model.given()
    likes.then("likes", (other.id, "alice"), columns="video_id, viewer")
    likes.then("counts", (other.id, 1))
    comments.then("comments", (kept.id,), columns="comment_id").then("counts", (other.id, 1))
    catalog.then("uploads", (other.id,), columns="upload_id")


def test_the_likes_of_a_video_are_told_in_one_answer(database_url: str, writer: Writer) -> None:
    video, liked_by_nobody, removed = writer.video(), writer.video(), writer.video()
    uploading = writer.upload("alice")
    writer.like(video.id, "alice", "bob", "eve")
    writer.unlike(video.id, "eve")
    writer.like(removed.id, "alice")
    project(database_url, writer, Catalog())
    removed.remove(origin())
    writer.save(removed)
    # The likes know of the removal, the catalog does not yet.
    project(database_url, writer, likes := Likes())

    async def query(conn: AsyncConnection[Any]) -> None:
        await conn.execute("UPDATE backlot_checkpoints SET position = 7 WHERE subscription='likes'")
        assert await likes.of_video(conn, video.id, "alice") == (
            2,
            True,
            7,
            "alice",
            "public",
            False,
        )
        assert await likes.of_video(conn, video.id, "eve") == (
            2,
            False,
            7,
            "alice",
            "public",
            False,
        )
        assert await likes.of_video(conn, video.id, None) == (2, False, 7, "alice", "public", False)
        assert await likes.of_video(conn, liked_by_nobody.id, "alice") == (
            0,
            False,
            7,
            "alice",
            "public",
            False,
        )
        for unseen in (removed.id, uploading.id, uuid4()):
            assert await likes.of_video(conn, unseen, "alice") is None

    ask(database_url, query)


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


def test_the_catalog_follows_uploads(spec: Spec, writer: Writer) -> None:
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

    async def query(catalog: Catalog, conn: AsyncConnection[Any]) -> None:
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

    spec(Catalog).given().when(aborted, expired, video).asked(query)


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
                conn, NOBODY, owner=owner, category=category, before=before, limit=limit
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


def test_comments_and_their_language(spec: Spec, writer: Writer) -> None:
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

    async def query(comments: Comments, conn: AsyncConnection[Any]) -> None:
        assert await comments.counts(conn, [video, uuid4()]) == {video: 7}
        found = await comments.page(conn, CommentOrder.NEWEST, video, CommentPlace(END), 10)
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
        place = found[2].place(CommentOrder.NEWEST)
        rest = await comments.page(conn, CommentOrder.NEWEST, video, place, 10)
        assert rest == found[3:]

    tended = english, translated, failed, edited, deleted, skipped, emoji
    spec(Comments).given().when(*tended).asked(query)


def test_translations_that_readers_asked_for(spec: Spec, writer: Writer) -> None:
    gone, video, robot = writer.video(), writer.video().id, origin("translator")
    kept, edited, deleted = (writer.comment(video) for _ in range(3))
    removed = writer.comment(gone.id)
    for comment in (kept, edited, deleted, removed):
        comment.leave_target(1, "fr", "failed", "throttled", robot)
        comment.translate_target(1, "es", "de", "Wie schön!", "model", "v1", robot)
    kept.leave_target(1, "fr", "not_needed", "in_target_language", robot)
    kept.translate(1, "es", "en", "How pretty!", "model", "v1", robot)
    edited.edit("second", origin("bob"))
    edited.translate_target(1, "es", "it", "stale", "model", "v1", robot)
    edited.translate_target(2, "es", "de", "Zwei", "model", "v1", robot)
    deleted.delete(origin("bob"))
    gone.remove(origin())
    translations = spec(Translations).given().when(kept, edited, deleted, removed, gone)
    # Recorded just after the removal of the video.
    removed.translate_target(1, "es", "it", "late", "model", "v1", robot)
    translations.when(removed).then(
        "translations",
        (kept.id, "fr", video, "not_needed", None, "in_target_language", "bob"),
        (kept.id, "de", video, "translated", "Wie schön!", None, "bob"),
        (edited.id, "de", video, "translated", "Zwei", None, "bob"),
    )

    async def query(translations: Translations, conn: AsyncConnection[Any]) -> None:
        found = await translations.of_comments(conn, [kept.id, deleted.id, uuid4()], "de")
        assert found == {kept.id: (kept.id, "translated", "Wie schön!", None)}

    translations.asked(query)


def test_an_operation_is_open_until_it_is_finished(spec: Spec) -> None:
    one, two = Operation.blank(uuid4()), Operation.blank(uuid4())
    for operation, action in ((one, "pause"), (two, "verify")):
        operation.request(action, "likes", {"full": True}, origin("root"))
    told = "operation_id, action, subject, parameters, requested_by, position, outcome, result"
    asked = {"subject": "likes", "parameters": {"full": True}, "by": "root"}
    open_ones = [(one.id, "pause", *asked.values(), 1), (two.id, "verify", *asked.values(), 2)]
    operations = spec(Operations).given(one, two)
    operations.then("operations", *((*row, None, None) for row in open_ones), columns=told)
    one.finish(OperationOutcome.DONE, {"rows": 3}, origin("root"))
    operations.when(one).then(
        "operations",
        (*open_ones[0], "done", {"rows": 3}),
        (*open_ones[1], None, None),
        columns=told,
    )


def test_the_index_of_the_audit_knows_every_event(spec: Spec, writer: Writer) -> None:
    video, bob = uuid4(), origin("bob")
    comment = Comment.blank(uuid4())
    audit = spec(Audit).given(writer.wish("like", video, "alice"))
    comment.post(video, "Bonito", bob)
    comment.edit("Muy bonito", bob)
    audit.when(comment, writer.wish("unlike", video, "alice"))
    audit.then(
        "events",
        (1, "video_likes.liked.v1", "alice", "correlation", "causation"),
        (2, "comment.posted.v1", "bob", "correlation", "causation"),
        (3, "comment.edited.v1", "bob", "correlation", "causation"),
        (4, "video_likes.unliked.v1", "alice", "correlation", "causation"),
        columns="position, topic, actor, correlation_id, causation_id",
    ).then(
        "topics",
        ("video_likes.liked.v1", 1, 1, 0),
        ("comment.posted.v1", 1, 1, 0),
        ("comment.edited.v1", 1, 0, 0),
        ("video_likes.unliked.v1", 1, 0, 0),
        columns="topic, events, streams, unreadable",
    ).then("days", (4,), columns="sum(events)::int")


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
            assert _sums(live, cursor, video) == [2]
            with psycopg.connect(database_url) as operator:
                operator.execute("ALTER SCHEMA likes RENAME TO likes_before")
                operator.execute("ALTER SCHEMA likes_next RENAME TO likes")
            assert _sums(live, cursor, video) == [3]


def _sums(likes: Likes, cursor: psycopg.Cursor[TupleRow], video: UUID) -> list[int]:
    """What a tally asks."""
    rows = cursor.execute(likes.sql(SUMS), (column([video]),), prepare=True).fetchall()
    return [count for (count,) in rows]
