"""What the translation of comments has to know of them, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from commands.endpoint import executor
from commands.operations import OperationRequested, RequestOperation
from domain.comment import Comment, TranslationStatus
from domain.errors import Conflict, NotFound
from domain.model import Origin
from domain.moderation import Standing
from domain.operation import RETRY_TRANSLATION
from domain.upload import Status, Upload
from engine.command_bus import Aggregates, Command
from engine.command_bus import Query as LogQuery
from infra.http.auth import require_moderator
from infra.http.problems import problems


@dataclass(frozen=True, slots=True)
class CommentText:
    """A comment that all see, in its present revision; its language as far as it is known."""

    video_id: UUID
    author: str
    revision: int
    written_at: datetime
    content: str
    status: TranslationStatus
    language: str | None
    confidence: float | None


@dataclass(frozen=True)
class FindCommentText(LogQuery[CommentText | None]):
    """Return a comment's text; None when there is none, or not for everybody to see.

    Its status is that of the translation that every comment gets, or of the one into `target`
    (ISO 639-1) that readers asked for.
    """

    comment_id: UUID
    target: str | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> CommentText | None:
        return _text_of(aggregates.get(Comment, self.comment_id), self.target)


def _text_of(comment: Comment, target: str | None = None) -> CommentText | None:
    if comment.video_id is None or comment.standing is not Standing.POSTED:
        return None
    return CommentText(
        comment.video_id,
        comment.author,
        comment.revision,
        comment.written_at,
        comment.content,
        comment.translation_status if target is None else comment.target_status(target),
        comment.language,
        comment.confidence,
    )


@dataclass(frozen=True)
class FindCommentTexts(LogQuery[list[CommentText | None]]):
    """Return the texts of comments, each with the id of its video; None where that is gone, too."""

    comments: Sequence[tuple[UUID, UUID]]

    def streams(self) -> Sequence[UUID]:
        return [stream for pair in self.comments for stream in pair]

    def decide(self, aggregates: Aggregates, origin: Origin) -> list[CommentText | None]:
        return [
            _text_of(aggregates.get(Comment, comment)) if _stands(aggregates, video) else None
            for comment, video in self.comments
        ]


@dataclass(frozen=True)
class FindStanding(LogQuery[bool]):
    """Return whether there is such a video, whoever may see it."""

    video_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.video_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> bool:
        return _stands(aggregates, self.video_id)


def _stands(aggregates: Aggregates, video_id: UUID) -> bool:
    return aggregates.get(Upload, video_id).status is Status.COMPLETED


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

    None, and nothing recorded, when not everybody sees the comment; nothing is recorded for a
    revision that is not the present one.
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
        if comment.standing is not Standing.POSTED:
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
        if comment.standing is not Standing.POSTED:
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


@dataclass(frozen=True)
class RetryTranslation(Command[OperationRequested]):
    """Have a comment translated once more that nobody could translate."""

    operation_id: UUID
    comment_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.operation_id, self.comment_id)

    def decide(self, aggregates: Aggregates, origin: Origin) -> OperationRequested:
        comment = aggregates.get(Comment, self.comment_id)
        if comment.standing is not Standing.POSTED:
            raise NotFound("There is no such comment.")
        if comment.translation_status not in ("failed", "skipped"):
            told = f"Its translation is {comment.translation_status}: there is nothing to retry."
            raise Conflict(told, translationStatus=comment.translation_status)
        subject = str(self.comment_id)
        request = RequestOperation(self.operation_id, RETRY_TRANSLATION, subject, {})
        return request.decide(aggregates, origin)


router = APIRouter(
    prefix="/admin/translations", tags=["translation"], dependencies=[Depends(require_moderator)]
)


@router.post(
    "/{comment_id}/retry",
    status_code=202,
    response_model=OperationRequested,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Have a comment translated once more",
)
async def retry_translation(comment_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    operation_id = execute.fresh_id("operation")
    return await execute(RetryTranslation(operation_id, comment_id), status=202)
