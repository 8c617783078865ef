"""What tests of the projections share: a writer of real events, and a projection that tells all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any, ClassVar, LiteralString
from uuid import UUID, uuid4

import psycopg
from eventsourcing.persistence import StoredEvent
from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.comment_likes import CommentLikes
from domain.model import Aggregate, Origin
from domain.moderation import Hold
from domain.upload import Upload, Visibility, object_key
from domain.video_likes import VideoLikes, stream_id
from engine.connections import connect
from engine.event_store import Save, open_recorder
from engine.installation import install
from engine.log import EventMapper
from engine.projection import Batch, Projection, columns
from engine.projection_subscription import ProjectionHost
from engine.subscription import Notifications
from tests.integration.event_log import rows, tables_made
from tests.support import DEADLINE_SECONDS, ended, eventually

POLL_SECONDS = 0.2


def origin(actor: str = "alice") -> Origin:
    return Origin(actor, datetime.now(UTC), "correlation", "causation")


class Writer:
    """Records what aggregates decide, as the command side does."""

    def __init__(self, database_url: str) -> None:
        tables_made(database_url)
        self.recorder = open_recorder(database_url)
        self.mapper = EventMapper()
        self.likes: dict[tuple[UUID, str], VideoLikes] = {}
        self.comment_likes: dict[tuple[UUID, str], CommentLikes] = {}
        self.head = 0

    def close(self) -> None:
        self.recorder.close()

    def stored(self, *aggregates: Aggregate) -> list[StoredEvent]:
        return [
            self.mapper.to_stored_event(event)
            for aggregate in aggregates
            for event in aggregate.collect_events()
        ]

    def save(self, *aggregates: Aggregate) -> int:
        """Append what the aggregates have recorded; returns the position of the last event."""
        appended = self.recorder.append([Save(self.stored(*aggregates))])
        (outcome,) = appended.outcomes
        assert outcome is not None
        self.head = outcome[-1]
        return self.head

    def upload(self, owner: str = "alice", **details: Any) -> Upload:
        """A started upload, recorded."""
        upload = Upload.blank(uuid4())
        fields = {"title": "Rain", "description": None, "category": None, **details}
        upload.start(
            origin(owner),
            filename="rain.mp4",
            content_type="video/mp4",
            size_bytes=2500,
            part_size_bytes=1024,
            object_key=object_key(upload.id),
            store_upload_id=uuid4().hex,
            **fields,
        )
        self.save(upload)
        return upload

    def video(self, owner: str = "alice", **details: Any) -> Upload:
        """A completed upload, recorded."""
        upload = self.upload(owner, **details)
        upload.complete(2500, "etag-1", origin(owner))
        self.save(upload)
        return upload

    def show(self, video: Upload, visibility: Visibility) -> int:
        """Its owner says who may see it."""
        video.change_visibility(visibility, origin(video.owner))
        return self.save(video) if video.pending_events else self.head

    def wish(self, verb: str, video: UUID, viewer: str) -> VideoLikes:
        """A like or unlike, decided but not recorded yet."""
        likes = self.likes.setdefault((video, viewer), VideoLikes.blank(stream_id(video, viewer)))
        getattr(likes, verb)(video, viewer, origin(viewer))
        return likes

    def like(self, video: UUID, *viewers: str) -> int:
        return self.save(*(self.wish("like", video, viewer) for viewer in viewers))

    def unlike(self, video: UUID, *viewers: str) -> int:
        return self.save(*(self.wish("unlike", video, viewer) for viewer in viewers))

    def comment(
        self,
        video: UUID,
        author: str = "bob",
        content: str = "Bonito",
        hold: Hold | None = None,
        parent: UUID | None = None,
    ) -> Comment:
        comment = Comment.blank(uuid4())
        comment.post(video, content, origin(author), hold, parent)
        self.save(comment)
        return comment

    def wish_comment(self, verb: str, comment: Comment, viewer: str) -> CommentLikes:
        """A like or unlike of a comment, decided but not recorded yet."""
        assert comment.video_id is not None
        blank = CommentLikes.blank(stream_id(comment.id, viewer))
        likes = self.comment_likes.setdefault((comment.id, viewer), blank)
        getattr(likes, verb)(comment.id, comment.video_id, viewer, origin(viewer))
        return likes

    def like_comment(self, comment: Comment, *viewers: str) -> int:
        return self.save(*(self.wish_comment("like", comment, viewer) for viewer in viewers))


class Tally(Projection):
    """Writes down each event that it is given, doubles included; breaks and waits on request."""

    name = "tally"
    version = 1
    events = (VideoLikes.Liked, VideoLikes.Unliked)
    tables: ClassVar[LiteralString] = "CREATE TABLE {schema}.seen (position bigint, viewer text)"

    def __init__(self) -> None:
        super().__init__()
        self.poison: dict[str, Exception | LiteralString] = {}
        self.entered = Event()
        self.go_on = Event()
        self.go_on.set()
        self.batches: list[int] = []

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        rows = [(position, getattr(event, "viewer", "")) for position, event in batch]
        cursor.execute(
            self.sql("INSERT INTO {schema}.seen SELECT * FROM unnest(%b::bigint[], %b::text[])"),
            columns(rows),
        )
        for _, viewer in rows:
            fault = self.poison.get(viewer)
            if isinstance(fault, Exception):
                raise fault
            if fault is not None:
                cursor.execute(fault)
        self.entered.set()
        assert self.go_on.wait(DEADLINE_SECONDS)
        self.batches.append(len(batch))


class ThreadedHost(ProjectionHost):
    """A host on an event loop of its own, in a thread, with what follows its projections."""

    def __init__(
        self, database_url: str, projections: Sequence[Projection], **options: Any
    ) -> None:
        notifications = Notifications(database_url)
        super().__init__(
            database_url,
            projections,
            notifications,
            **{"poll_seconds": POLL_SECONDS, **options},
        )
        with connect(database_url, "projections") as conn:
            install(conn, projections)
        self.jobs: list[Callable[[], Coroutine[Any, Any, None]]] = [notifications.run, self.run]
        self._loop = asyncio.new_event_loop()
        self._asked = asyncio.Event()
        self._thread = Thread(target=self._run, name="host")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End all jobs; what is being applied is finished."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._asked.set)
        self._thread.join()

    def _run(self) -> None:
        with closing(self._loop):
            self._loop.run_until_complete(self._work())

    async def _work(self) -> None:
        tasks = [asyncio.create_task(job()) for job in self.jobs]
        await self._asked.wait()
        for task in reversed(tasks):
            await ended(task)


@contextmanager
def hosting(database_url: str, *projections: Projection, **options: Any) -> Iterator[ThreadedHost]:
    """A started host, stopped at the end."""
    host = ThreadedHost(database_url, projections, **options)
    host.start()
    try:
        yield host
    finally:
        for projection in projections:
            if isinstance(projection, Tally):
                projection.go_on.set()
        host.stop()


def position(database_url: str, schema: str) -> int:
    found = rows(
        database_url, "SELECT position FROM backlot_checkpoints WHERE subscription = %s", [schema]
    )
    return int(found[0][0]) if found else -1


def caught_up(database_url: str, schemas: Iterable[str], head: int) -> None:
    wanted = set(schemas)
    query = (
        "SELECT count(*) FROM backlot_checkpoints WHERE subscription = ANY (%s) AND position >= %s"
    )

    def arrived() -> int:
        ((count,),) = conn.execute(query, (list(wanted), head)).fetchall()
        return int(count)

    # One connection for all looks: to open one costs more than to look.
    with psycopg.connect(database_url, autocommit=True) as conn:
        eventually(lambda: arrived() == len(wanted))


def seen(database_url: str) -> list[int]:
    """Positions that the Tally wrote down, in order, doubles included."""
    found = rows(database_url, "SELECT position FROM tally.seen ORDER BY position")
    return [at for (at,) in found]
