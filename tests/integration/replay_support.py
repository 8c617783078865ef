"""What tests of replays share: replays begun and carried on, random histories, copies compared."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.model import Aggregate
from domain.moderation import (
    ActingAs,
    ContentReport,
    Decision,
    Hold,
    HoldCause,
    ModerationCase,
    ReportReason,
    Standing,
    Thing,
    ThingKind,
    UserBlock,
    block_id,
    case_id,
    report_id,
)
from domain.upload import CommentPolicy, Upload
from engine.comparison import Difference, compare
from engine.projection import Projection
from engine.replay.records import Purpose, Replay, ReplayOptions, find
from engine.replay.replay import carry_on
from engine.replay.requests import begin
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, caught_up, hosting, origin

NAMES = ("catalog", "likes", "comments")
SWITCH = ReplayOptions()
VERIFY = ReplayOptions(Purpose.VERIFY)
BACK = ReplayOptions(Purpose.ROLLBACK)


def models() -> dict[str, Projection]:
    """The projections of the program, by name."""
    return {projection.name: projection for projection in (Catalog(), Likes(), Comments())}


def connected(database_url: str) -> Connection[TupleRow]:
    return psycopg.connect(database_url, autocommit=True)


def replays(conn: Connection[TupleRow], name: str | None = None) -> list[Replay]:
    """All replays, or those of one projection, newest first."""
    query = "SELECT id FROM projections.replays WHERE %s::text IS NULL OR name = %s ORDER BY 1 DESC"
    return [find(conn, replay_id) for (replay_id,) in conn.execute(query, (name, name)).fetchall()]


def begun(
    database_url: str, projection: Projection, options: ReplayOptions = SWITCH, by: str = "olga"
) -> Replay:
    with connected(database_url) as conn:
        return begin(conn, projection, options, requested_by=by, operation_id=uuid4())


def replayed(
    database_url: str,
    projection: Projection,
    options: ReplayOptions = SWITCH,
    **work: Any,
) -> Replay:
    """A replay, begun and carried on as far as it goes."""
    replay = begun(database_url, projection, options)
    return carried_on(database_url, replay, projection, **work)


def carried_on(database_url: str, replay: Replay, projection: Projection, **work: Any) -> Replay:
    return carry_on(database_url, replay.id, {projection.name: projection}, **work)


def projected(database_url: str, writer: Writer, given: Mapping[str, Projection]) -> None:
    """Let live copies, made if need be, come to the end of the log."""
    with hosting(database_url, *given.values()):
        caught_up(database_url, given, writer.head)


def difference(database_url: str, one: str, other: str) -> Difference:
    with connected(database_url) as conn:
        return compare(conn, one, other)


OTHERS = (
    *("public", "information_schema", "projections", "lists", "feedback", "analytics"),
    "webhooks",
)
"""The schemas that are of no read model."""


def copies(database_url: str) -> list[str]:
    """The schemas of all copies; each has its row."""
    known = rows(database_url, "SELECT subscription FROM backlot_checkpoints ORDER BY subscription")
    found = rows(
        database_url,
        "SELECT nspname FROM pg_namespace WHERE nspname <> ALL (%s) AND nspname !~ '^pg_' "
        "ORDER BY nspname",
        [[*OTHERS]],
    )
    assert found == known
    return [name for (name,) in known]


def of_comment(comment: Comment) -> Thing:
    """The comment, to be reported."""
    assert comment.video_id is not None
    return Thing(ThingKind.COMMENT, comment.id, comment.video_id)


def file(
    writer: Writer,
    case: ModerationCase,
    thing: Thing,
    reporter: str,
    why: str = "spam",
    detail: str | None = None,
) -> None:
    """A report of a thing, whose case is opened if need be, recorded."""
    filed = ContentReport.blank(report_id(thing.thing_id, reporter))
    filed.file(case, thing, ReportReason(why), detail, origin(reporter))
    pending: list[Aggregate] = [each for each in (case, filed) if each.pending_events]
    writer.save(*pending)


class History:
    """A community whose random doings are recorded: what they touch is touched again and again."""

    def __init__(self, writer: Writer, seed: int, *, videos: int = 12, viewers: int = 9) -> None:
        self.random = Random(seed)
        self.writer = writer
        self.uploads: list[Upload] = []
        self.comments: list[Comment] = []
        self.cases: dict[UUID, ModerationCase] = {}
        self._videos = videos
        self._viewers = [f"viewer-{n}" for n in range(viewers)]

    def grow(self, steps: int) -> None:
        """Record that many random steps, each one save; some change nothing."""
        choices = [self._upload, self._like, self._like, self._like, self._comment, self._tend]
        choices += [self._edit, self._moderate, self._report, self._remove]
        for _ in range(steps):
            self.random.choice(choices)()

    def _upload(self) -> None:
        if len(self.uploads) < self._videos:
            self.uploads.append(self.writer.upload(category=self.random.choice(["art", None])))

    def _tend(self) -> None:
        """Complete, abort, expire or rename one."""
        upload = self._some_upload()
        by = origin("alice")
        match self.random.randrange(6):
            case 0 if upload.status == "started":
                upload.abort(by)
            case 1 if upload.status == "started":
                upload.expire(by)
            case _ if upload.status == "started":
                upload.complete(2500, "etag-1", by)
            case _ if upload.status == "completed":
                title = f"Take {self.random.randrange(1000)}"
                upload.change_details(by, title=title, description=None, category="art")
            case _:
                return
        self._save(upload)

    def _remove(self) -> None:
        """Rarely, so that most videos have a life before."""
        upload = self._some_upload()
        if upload.status == "completed" and self.random.random() < 0.3:
            upload.remove(origin("alice"))
            self._save(upload)

    def _like(self) -> None:
        """Of removed videos too: it may be recorded just after the removal."""
        video = self._some_upload().id
        for viewer in self.random.sample(self._viewers, 3):
            self.writer.save(self.writer.wish("toggle", video, viewer))

    def _comment(self) -> None:
        video, hold = self._some_upload().id, self._perhaps_held()
        self.comments.append(self.writer.comment(video, content="¡Qué bonito!", hold=hold))

    def _edit(self) -> None:
        """Edit, delete or find out about one of the comments."""
        if not self.comments:
            return
        comment, by = self.random.choice(self.comments), origin("bob")
        match self.random.randrange(4):
            case _ if comment.standing in (Standing.DELETED, Standing.REMOVED):
                return
            case 0:
                comment.delete(by)
            case 1:
                comment.detect_language(comment.revision, "es", 0.9, "lite", "en", by)
                comment.leave_target(comment.revision, "fr", "failed", "throttled", by)
                comment.translate_target(comment.revision, "es", "de", "Schön!", "m", "1", by)
            case _:
                comment.edit(f"edit {self.random.randrange(1000)}", by, self._perhaps_held())
        self._save(comment)

    def _perhaps_held(self) -> Hold | None:
        return Hold(HoldCause.WATCHED_WORD, "alice") if self.random.random() < 0.3 else None

    def _moderate(self) -> None:
        """Decide about one of the comments, or change who comments on a video."""
        if not self.comments or self.random.random() < 0.1:
            upload = self._some_upload()
            if upload.status == "completed":
                policy = self.random.choice(list(CommentPolicy))
                upload.change_comment_policy(policy, origin("alice"))
                self._save(upload)
            return
        comment, by = self.random.choice(self.comments), origin("moderator")
        acted_as = self.random.choice(list(ActingAs))
        match comment.standing:
            case Standing.HELD if self.random.random() < 0.5:
                comment.approve(acted_as, None, by)
            case Standing.REMOVED if self.random.random() < 0.5:
                comment.restore(ActingAs.MODERATOR, None, by)
            case Standing.REMOVED if self.random.random() < 0.3:
                comment.delete(origin("bob"))
            case Standing.POSTED | Standing.HELD | Standing.REMOVED:
                comment.remove(acted_as, "why", by)
        self._save(comment)

    def _report(self) -> None:
        """Report something, and perhaps decide about it; block somebody, and perhaps not."""
        upload = self._some_upload()
        things = [Thing(ThingKind.VIDEO, upload.id, upload.id), *map(of_comment, self.comments)]
        thing = self.random.choice(things)
        new = ModerationCase.blank(case_id(thing.thing_id))
        case = self.cases.setdefault(thing.thing_id, new)
        why, detail = self.random.choice(list(ReportReason)), self.random.choice([None, "ads"])
        file(self.writer, case, thing, f"reporter-{uuid4()}", why, detail)
        if self.random.random() < 0.4:
            case.decide(self.random.choice(list(Decision)), None, origin("moderator"))
            self._save(case)
        user = f"user-{uuid4()}"
        block = UserBlock.blank(block_id("alice", user))
        block.block(user, origin("alice"))
        if self.random.random() < 0.5:
            block.unblock(user, origin("alice"))
            block.block(user, origin("alice"))
        self._save(block)

    def _save(self, aggregate: Aggregate) -> None:
        if aggregate.pending_events:
            self.writer.save(aggregate)

    def _some_upload(self) -> Upload:
        if not self.uploads:
            self._upload()
        return self.random.choice(self.uploads)


def many_likes(writer: Writer, video: UUID, count: int) -> None:
    """That many likes of one video, by viewers of their own, in few saves."""
    for first in range(0, count, 500):
        viewers = range(first, min(first + 500, count))
        writer.like(video, *(f"many-{n}" for n in viewers))


def report(writer: Writer, thing: Thing, *reporters: str, **why: Any) -> ModerationCase:
    """The case of a thing that these have reported first, recorded."""
    case = ModerationCase.blank(case_id(thing.thing_id))
    for reporter in reporters:
        file(writer, case, thing, reporter, **why)
    return case
