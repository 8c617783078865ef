"""Comments: post, edit, delete; what their translation has to know, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, NamedTuple
from uuid import UUID, uuid4

from fastapi import APIRouter, Request, Response
from pydantic import Field

from commands.endpoint import TOKEN_FIRST, executor
from domain.comment import Comment, TranslationStatus
from domain.model import Origin
from domain.upload import Status, Upload
from engine.command_bus import Aggregates, Command, Query
from infra.http.problems import problems
from infra.http.shapes import Comment as SeenComment
from infra.http.shapes import Wire

Content = Annotated[str, Field(min_length=1, max_length=10_000, examples=["¡Qué bonito!"])]


class WriteComment(Wire):
    """The text of a comment."""

    content: Content


class CommentDeleted(Wire):
    """The comment is gone from every read."""

    comment_id: UUID
    status: Literal["deleted"]


@dataclass(frozen=True)
class PostComment(Command[SeenComment]):
    """Post a comment under an id that was never used."""

    comment_id: UUID
    video_id: UUID
    content: str

    def streams(self) -> Sequence[UUID]:
        return (self.video_id, self.comment_id)

    def decide(self, aggregates: Aggregates, origin: Origin) -> SeenComment:
        aggregates.get(Upload, self.video_id).require_video()
        comment = aggregates.get(Comment, self.comment_id)
        comment.post(self.video_id, self.content, origin)
        return as_seen(comment)


@dataclass(frozen=True)
class EditComment(Command[SeenComment]):
    """Replace the text of one's own comment, as long as people can see its video."""

    comment_id: UUID
    video_id: UUID
    content: str

    def streams(self) -> Sequence[UUID]:
        return (self.video_id, self.comment_id)

    def decide(self, aggregates: Aggregates, origin: Origin) -> SeenComment:
        aggregates.get(Upload, self.video_id).require_video()
        comment = aggregates.get(Comment, self.comment_id)
        comment.edit(self.content, origin)
        return as_seen(comment)


@dataclass(frozen=True)
class DeleteComment(Command[CommentDeleted]):
    """Take one's own comment out of every read."""

    comment_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> CommentDeleted:
        aggregates.get(Comment, self.comment_id).delete(origin)
        return CommentDeleted(comment_id=self.comment_id, status="deleted")


@dataclass(frozen=True)
class FindVideoOfComment(Query[UUID]):
    """Return which video a comment is on; refuse where there is no such comment."""

    comment_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> UUID:
        return aggregates.get(Comment, self.comment_id).require_posted()


def as_seen(comment: Comment) -> SeenComment:
    """Return the comment as its author gets it back."""
    return SeenComment(
        comment_id=comment.id,
        video_id=comment.video_id,
        user_id=comment.author,
        content=comment.content,
        language=comment.language,
        confidence=comment.confidence,
        translated_text=comment.translated_text,
        translation_status=comment.translation_status,
        edited=comment.revision > 1,
        created_at=comment.posted_at,
    )


router = APIRouter(tags=["comments"], dependencies=TOKEN_FIRST)


@router.post(
    "/videos/{video_id}/comments",
    status_code=201,
    response_model=SeenComment,
    responses=problems(400, 401, 404, 409, 413, 422, 503),
    summary="Post a comment",
)
async def post_comment(video_id: UUID, body: WriteComment, request: Request) -> Response:
    execute = await executor(request)
    return await execute(PostComment(uuid4(), video_id, body.content), status=201)


@router.patch(
    "/comments/{comment_id}",
    response_model=SeenComment,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="Edit one's own comment",
)
async def edit_comment(comment_id: UUID, body: WriteComment, request: Request) -> Response:
    execute = await executor(request)
    video_id = await execute.value(FindVideoOfComment(comment_id))
    return await execute(EditComment(comment_id, video_id, body.content))


@router.delete(
    "/comments/{comment_id}",
    response_model=CommentDeleted,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Delete one's own comment",
)
async def delete_comment(comment_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    return await execute(DeleteComment(comment_id))


@dataclass(frozen=True, slots=True)
class CommentText:
    """A comment that stands, in its present revision; its language as far as it is known."""

    video_id: UUID
    author: str
    revision: int
    written_at: datetime
    content: str
    status: TranslationStatus
    language: str | None
    confidence: float | None


@dataclass(frozen=True)
class FindCommentText(Query[CommentText | None]):
    """Return a comment's text; None when there is none, or not any more.

    Its status is that of the translation that every comment gets, or of the one into `target`
    (ISO 639-1) that readers asked for.
    """

    comment_id: UUID
    target: str | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> CommentText | None:
        comment = aggregates.get(Comment, self.comment_id)
        if comment.video_id is None or comment.deleted:
            return None
        target, status = self.target, comment.translation_status
        return CommentText(
            comment.video_id,
            comment.author,
            comment.revision,
            comment.written_at,
            comment.content,
            status if target is None else comment.target_status(target),
            comment.language,
            comment.confidence,
        )


@dataclass(frozen=True)
class FindVisibility(Query[bool]):
    """Return whether there is such a video, for people to see."""

    video_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.video_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> bool:
        return aggregates.get(Upload, self.video_id).status is Status.COMPLETED


class Detected(NamedTuple):
    """The language (ISO 639-1) that a detector found; `confidence` 0..1, None where unknown."""

    language: str
    confidence: float | None
    detector: str


class TranslatedText(NamedTuple):
    """The text in the target language, and what made it."""

    original_language: str
    text: str
    model: str
    prompt_version: str


class Failed(NamedTuple):
    """No translation came, for a reason in a word."""

    reason: str


class Skipped(NamedTuple):
    """Nobody translates it: there is nothing to translate, or (`needed`) nobody who could."""

    needed: bool
    reason: str


Outcome = TranslatedText | Failed | Skipped


@dataclass(frozen=True)
class RecordTranslation(Command[TranslationStatus | None]):
    """Record what was found out about one revision; says where its translation stands then.

    None, and nothing recorded, when the comment is gone; nothing is recorded for a revision that
    is not the present one.
    """

    comment_id: UUID
    revision: int
    target_language: str
    detected: Detected | None = None
    outcome: Outcome | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> TranslationStatus | None:
        comment = aggregates.get(Comment, self.comment_id)
        if comment.version == 0 or comment.deleted:
            return None
        revision, target = self.revision, self.target_language
        if self.detected is not None:
            comment.detect_language(revision, *self.detected, target, origin)
        match self.outcome:
            case Failed(reason):
                comment.fail_translation(revision, reason, origin)
            case Skipped(needed, reason):
                comment.skip_translation(revision, needed, reason, origin)
            case TranslatedText(language, text, model, prompt_version):
                comment.translate(revision, language, target, text, model, prompt_version, origin)
        return comment.translation_status


IN_TARGET_LANGUAGE = "in_target_language"


@dataclass(frozen=True)
class RecordTarget(Command[TranslationStatus | None]):
    """Record what came of a translation that readers asked for; says where it stands then.

    As RecordTranslation has it; without an outcome, the text is in the target language itself.
    """

    comment_id: UUID
    revision: int
    target_language: str
    outcome: Outcome | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> TranslationStatus | None:
        comment = aggregates.get(Comment, self.comment_id)
        if comment.version == 0 or comment.deleted:
            return None
        revision, target = self.revision, self.target_language
        match self.outcome:
            case TranslatedText(language, text, model, prompt):
                comment.translate_target(revision, language, target, text, model, prompt, origin)
            case Failed(reason):
                comment.leave_target(revision, target, "failed", reason, origin)
            case Skipped(needed, reason):
                status: TranslationStatus = "skipped" if needed else "not_needed"
                comment.leave_target(revision, target, status, reason, origin)
            case None:
                comment.leave_target(revision, target, "not_needed", IN_TARGET_LANGUAGE, origin)
        return comment.target_status(target)
