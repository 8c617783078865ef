"""A community in which any kind of event happens, and read models that go on when they are told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.comment_likes import CommentLikes
from domain.dismissals import Dismissal
from domain.dismissals import stream_id as dismissal_of
from domain.model import Aggregate
from domain.moderation import ActingAs, Hold, HoldCause, Standing
from domain.person import Person, VideosFate
from domain.person import stream_id as person_of
from domain.upload import CommentPolicy, Status, Upload, Visibility
from domain.video_likes import VideoLikes
from engine.checkpoints import look
from engine.installation import install
from engine.projection import Applier
from infra.pseudonyms import OwnNames
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes
from readapi.comment_cache import CommentCache
from readapi.video_cache import VideoCache
from tests.integration.event_log import rows
from tests.integration.projection_support import origin
from tests.integration.readapi_support import Site

OWNER, HEIR, FANS = "alice", "heir", ("ann", "bob", "cat")
KINDS: list[type[Aggregate.Event]] = [
    *Upload.events(),
    *Comment.events(),
    *VideoLikes.events(),
    *CommentLikes.events(),
    *Dismissal.events(),
    *Person.events(),
]
VIEW = """
INSERT INTO backlot_telemetry (event_id, topic, video_id, user_id, happened_at, details)
VALUES (gen_random_uuid(), 'video.viewed', %s, 'ann', now(), '{}') RETURNING seq
"""
COUNT_VIEW = """
INSERT INTO backlot_views VALUES (%s, 1)
ON CONFLICT (video_id) DO UPDATE SET views = backlot_views.views + 1 RETURNING views
"""


class Models:
    """The read models, which go on only when they are told to."""

    def __init__(self, database_url: str) -> None:
        self.conn = psycopg.connect(database_url, autocommit=True)
        self.models = (Catalog(), Likes(), Comments())
        install(self.conn, self.models)

    def advance(self, *names: str) -> None:
        """Have these, or all, take in what is in the log."""
        for model in self.models:
            at = look(self.conn, model.schema)
            assert at is not None
            before = at.position
            while before < at.head and (not names or model.name in names):
                before = Applier(model, batch_events=100).advance(self.conn, before, at.head).until

    def close(self) -> None:
        self.conn.close()


def view(site: Site, video: UUID) -> None:
    """A viewer's view, counted as the telemetry counts it: in one transaction."""
    with psycopg.connect(site.database_url) as conn:
        conn.execute(COUNT_VIEW, (video,))
        conn.execute(VIEW, (video,))


def asked(site: Site, path: str, user: str | None) -> tuple[int, Any]:
    path, _, query = path.partition("?")
    given: dict[str, Any] = dict(parse_qsl(query))
    answer = site.get(path, user, fresh=False, **given)
    body = answer.json()
    body.pop("requestId", None)
    return answer.status_code, body


def shown(site: Site, video: UUID, user: str | None = None) -> Any:
    status, body = asked(site, f"/videos/{video}", user)
    return body if status == 200 else status


class Community:
    """Makes an event of any kind happen; what there has to be for it is there by then."""

    def __init__(self, site: Site, models: Models, dice: random.Random) -> None:
        self.site, self.writer, self.models, self.dice = site, site.writer, models, dice
        self.uploads: list[Upload] = []
        self.comments: list[Comment] = []
        self.dismissals: dict[tuple[UUID, str], Dismissal] = {}
        self.persons: dict[str, Person] = {}

    def happen(self, kind: type[Aggregate.Event]) -> UUID:
        """Have an event of a kind recorded; return the video that it is about."""
        before = self.writer.head
        if kind in Upload.events():
            video = self._upload(kind)
        elif kind in Comment.events():
            video = self._comment(kind)
        elif kind in VideoLikes.events():
            video = self._like(kind)
        elif kind in CommentLikes.events():
            video = self._like_comment(kind)
        elif kind in Dismissal.events():
            video = self._dismiss(kind)
        else:
            video = self._forget(kind)
        topics = "SELECT topic FROM backlot_events WHERE notification_id > %s"
        assert (kind.TOPIC,) in rows(self.site.database_url, topics, (before,)), f"no {kind.TOPIC}"
        return video

    def video(self) -> Upload:
        """A video of anybody's, made where there is none."""
        there = [each for each in self.uploads if each.status is Status.COMPLETED]
        if len(there) < 2:
            there.append(self.writer.video(OWNER, category="art"))
            self.uploads.append(there[-1])
        return self.dice.choice(there)

    def _upload(self, kind: type[Aggregate.Event]) -> UUID:
        if kind in (Upload.Started, Upload.Completed, Upload.Aborted, Upload.Expired):
            upload, by = self.writer.upload(OWNER, category="art"), origin(OWNER)
            self.uploads.append(upload)
            ends: Mapping[Any, Callable[[], None]] = {
                Upload.Completed: lambda: upload.complete(2500, "etag-1", by),
                Upload.Aborted: lambda: upload.abort(by),
                Upload.Expired: lambda: upload.expire(by),
            }
            return self._saved(upload, ends.get(kind, lambda: None))
        upload = self.video()
        by, number = origin(upload.owner), str(self.dice.randrange(10**6))
        others = [each for each in Visibility if each is not upload.visibility]
        policies = [each for each in CommentPolicy if each is not upload.comment_policy]
        change: Mapping[Any, Callable[[], Any]] = {
            Upload.VisibilityChanged: lambda: upload.change_visibility(
                self.dice.choice(others), by
            ),
            Upload.DetailsChanged: lambda: upload.change_details(
                by, title=number, description=number, category=self.dice.choice(["art", None])
            ),
            Upload.SpeechTranscribed: lambda: upload.transcribe("de", number, 1.5, number, by),
            Upload.CommentPolicyChanged: lambda: upload.change_comment_policy(
                self.dice.choice(policies), by
            ),
            Upload.Disowned: lambda: upload.erase(upload.owner, f"{HEIR} {number}", by),
            Upload.Removed: lambda: upload.remove(by),
        }
        if kind is Upload.Disowned and upload.visibility is Visibility.PRIVATE:
            self._saved(upload, lambda: upload.change_visibility(Visibility.PUBLIC, by))
        return self._saved(upload, change[kind])

    def _comment(self, kind: type[Aggregate.Event]) -> UUID:
        by, mod, text = origin("bob"), origin("mod"), f"Take {self.dice.randrange(10**6)}"
        hold = Hold(HoldCause.WATCHED_WORD, OWNER)
        new = [Comment.Posted, Comment.Submitted]
        held = [Comment.Resubmitted, Comment.Approved, Comment.Rejected, Comment.Withdrawn]
        if kind in new:
            held_for = hold if kind is Comment.Submitted else None
            video, parent = self.video().id, self._thread()
            if parent is not None and parent.video_id is not None and self.dice.random() < 0.6:
                video = parent.video_id
            self._keep(video)
            parent_id = None if parent is None or parent.video_id != video else parent.id
            comment = self.writer.comment(video, "bob", text, held_for, parent_id)
            self.comments.append(comment)
            return video
        wanted = Standing.HELD if kind in held else Standing.POSTED
        if kind is Comment.Restored:
            wanted = Standing.REMOVED
        comment = self._in_standing(wanted)
        revision = comment.revision
        said = (revision, "es", "fr", text, text, "1", by)
        deeds: Mapping[Any, Callable[[], None]] = {
            Comment.Edited: lambda: comment.edit(text, by),
            Comment.Deleted: lambda: comment.delete(by),
            Comment.Resubmitted: lambda: comment.edit(text, by, hold),
            Comment.Withheld: lambda: comment.edit(text, by, hold),
            Comment.Approved: lambda: comment.approve(ActingAs.MODERATOR, None, mod),
            Comment.Removed: lambda: comment.remove(ActingAs.MODERATOR, "why", mod),
            Comment.Rejected: lambda: comment.remove(ActingAs.MODERATOR, "why", mod),
            Comment.Restored: lambda: comment.restore(ActingAs.MODERATOR, None, mod),
            Comment.Withdrawn: lambda: comment.delete(by),
            Comment.LanguageDetected: lambda: comment.detect_language(
                revision, "es", 0.9, "lite", "en", by
            ),
            Comment.Translated: lambda: comment.translate(*said),
            Comment.TranslationFailed: lambda: comment.fail_translation(revision, "gone", by),
            Comment.TranslationSkipped: lambda: comment.skip_translation(revision, True, "so", by),
            Comment.TargetTranslated: lambda: comment.translate_target(*said),
            Comment.TargetNotTranslated: lambda: comment.leave_target(
                revision, "fr", "failed", "so", by
            ),
        }
        return self._saved(comment, deeds[kind])

    def _thread(self) -> Comment | None:
        """A comment that may have replies."""
        there = {each.id for each in self.uploads if each.status is Status.COMPLETED}
        posted = (each for each in self.comments if each.standing is Standing.POSTED)
        found = [each for each in posted if each.parent_id is None and each.video_id in there]
        return self.dice.choice(found) if found else None

    def _like_comment(self, kind: type[Aggregate.Event]) -> UUID:
        comment, fan = self._thread() or self._in_standing(Standing.POSTED), self.dice.choice(FANS)
        if self.dice.random() < 0.3:
            comment = self._in_standing(Standing.POSTED)
        assert comment.video_id is not None
        for verb in ("like", "unlike") if kind is CommentLikes.Unliked else ("unlike", "like"):
            self._keep(comment.video_id)
            likes = self.writer.wish_comment(verb, comment, fan)
            if likes.pending_events:
                self.writer.save(likes)
        return comment.video_id

    def _in_standing(self, standing: Standing) -> Comment:
        """A comment of that standing, on which nothing else was found out yet."""
        hold = Hold(HoldCause.WATCHED_WORD, OWNER) if standing is Standing.HELD else None
        parent = self._thread() if self.dice.random() < 0.4 else None
        video = self.video().id if parent is None else parent.video_id
        assert video is not None
        parent_id = None if parent is None else parent.id
        comment = self.writer.comment(video, "bob", "¡Qué bonito!", hold, parent_id)
        self.comments.append(comment)
        if standing is Standing.REMOVED:
            self._saved(comment, lambda: comment.remove(ActingAs.OWNER, None, origin(OWNER)))
        return comment

    def _like(self, kind: type[Aggregate.Event]) -> UUID:
        """Of a video that was removed, too: it may be recorded just after that."""
        video = self.video().id
        removed = [each.id for each in self.uploads if each.status is Status.REMOVED]
        if removed and self.dice.random() < 0.2:
            video = self.dice.choice(removed)
        fan = self.dice.choice(FANS)
        verbs = ("like", "unlike") if kind is VideoLikes.Unliked else ("unlike", "like")
        for verb in verbs:
            self._keep(video)
            likes = self.writer.wish(verb, video, fan)
            if likes.pending_events:
                self.writer.save(likes)
        return video

    def _dismiss(self, kind: type[Aggregate.Event]) -> UUID:
        video, fan = self.video().id, self.dice.choice(FANS)
        blank = Dismissal.blank(dismissal_of(video, fan))
        dismissal = self.dismissals.setdefault((video, fan), blank)
        wanted = kind is Dismissal.Dismissed
        if dismissal.stands is wanted:
            verb = dismissal.take_back if wanted else dismissal.dismiss
            self._saved(dismissal, lambda: verb(video, fan, origin(fan)))
        elif not wanted and not dismissal.stands:
            self._saved(dismissal, lambda: dismissal.dismiss(video, fan, origin(fan)))
        verb = dismissal.dismiss if wanted else dismissal.take_back
        self._saved(dismissal, lambda: verb(video, fan, origin(fan)))
        return video

    def _forget(self, kind: type[Aggregate.Event]) -> UUID:
        who = f"person-{uuid4()}"
        person, by = Person.blank(person_of(who)), origin("system:privacy")
        person.request_forgetting(who, VideosFate.KEEP, by)
        if kind is Person.Forgotten:
            person.finish_forgetting(who, {}, by)
        self.writer.save(person)
        return self.video().id

    def _saved(self, aggregate: Aggregate, change: Callable[[], Any]) -> UUID:
        video = getattr(aggregate, "video_id", None) or aggregate.id
        assert isinstance(video, UUID)
        self._keep(video)
        change()
        if aggregate.pending_events:
            self.writer.save(aggregate)
        return video

    def _keep(self, video: UUID) -> None:
        """Have memory hold what is there, so that the next event has something to change."""
        self.models.advance()
        self.site.run(self.site.queries.tail.confirm())
        self.site.run(look_around(self.site, video))


def paths(videos: Iterable[UUID]) -> Iterator[tuple[str, str | None]]:
    """Each query that is answered from memory, with each who may ask."""
    for video in videos:
        for user in (None, OWNER, "ann", "bob"):
            yield f"/videos/{video}", user
            yield f"/videos/{video}/like", user
            yield f"/videos/{video}/comments?limit=3", user
            for sort in ("oldest", "top"):
                yield f"/videos/{video}/comments?sort={sort}&limit=3", user
    for user in (None, OWNER, "ann"):
        for query in ("limit=100", "limit=2", f"owner={OWNER}", "category=art"):
            yield f"/videos?{query}", user
    for user in FANS:
        yield "/videos/liked?limit=100", user


def comment_paths(comments: Iterable[Comment]) -> Iterator[tuple[str, str | None]]:
    """Each query about one comment, with each who may ask."""
    for comment in comments:
        for user in (None, OWNER, "ann", "bob"):
            for query in ("", "/replies?limit=2", "/like"):
                yield f"/comments/{comment.id}{query}", user


async def look_around(site: Site, video: UUID) -> None:
    await site.queries.cache.videos([video])
    await site.queries.comment_cache.newest(video)
    for fan in FANS:
        await site.queries.cache.liked.among(fan, [video])
        await site.queries.comment_cache.liked.among(fan, [])


class HeldPool:
    """A pool whose statements were executed before anybody hears of what they found."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.has_read, self.go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        async with self._pool.connection() as conn:
            yield conn
        self.has_read.set()
        await self.go_on.wait()


class Held:
    """What is kept in memory, where each load is held between its statement and its end."""

    def __init__(self, site: Site) -> None:
        self.site, self.tail = site, site.queries.tail
        self.pool = HeldPool(site.queries.pool)
        names = OwnNames()
        self.videos = VideoCache(self.pool, self.tail, names, Likes())  # type: ignore[arg-type]
        self.comments = CommentCache(self.pool, self.tail, names, Likes())  # type: ignore[arg-type]

    def load(self, what: str, video: UUID, meanwhile: Callable[[], Any]) -> Any:
        """What is loaded, while something happens that the tail hears of before it ends."""
        loads: dict[str, Callable[[], Any]] = {
            "video": lambda: self.videos.videos([video]),
            "likes": lambda: self.videos.liked.among("ann", [video]),
            "comments": lambda: self.comments.newest(video),
        }

        async def run() -> Any:
            loading = asyncio.create_task(loads[what]())
            await self.pool.has_read.wait()
            meanwhile()
            await self.tail.confirm()
            self.pool.go_on.set()
            return await loading

        return self.site.run(run())

    def is_kept(self, what: str, video: UUID) -> bool:
        kept = {
            "video": self.videos._videos.peek(video),
            "likes": self.videos.liked.peek("ann"),
            "comments": self.comments._pages.peek(video),
        }
        return kept[what] is not None


CHANGES: dict[str, tuple[str, str]] = {
    "like": ("video", "likes"),
    "comment": ("video", "comments"),
    "rename": ("video", "catalog"),
    "hide": ("video", "catalog"),
    "remove": ("video", "catalog"),
    "close": ("video", "comments"),
    "view": ("video", "telemetry"),
    "own like": ("likes", "likes"),
    "new comment": ("comments", "comments"),
    "removed comments": ("comments", "comments"),
}


def change(site: Site, video: Upload, what: str) -> None:
    by = origin(OWNER)
    match what:
        case "like":
            site.writer.like(video.id, "bob")
        case "own like":
            site.writer.like(video.id, "ann")
        case "comment" | "new comment":
            site.writer.comment(video.id)
        case "view":
            view(site, video.id)
        case "rename":
            video.change_details(by, title="Snow", description=None, category=None)
        case "hide":
            video.change_visibility(Visibility.PRIVATE, by)
        case "remove" | "removed comments":
            video.remove(by)
        case "close":
            video.change_comment_policy(CommentPolicy.CLOSED, by)
    if video.pending_events:
        site.writer.save(video)
