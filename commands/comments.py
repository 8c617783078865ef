"""Comments: post, edit, remove, and reply to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from commands.endpoint import TOKEN_FIRST, Execute, executor
from domain.comment import UNKNOWN, Comment
from domain.errors import Conflict, NotAllowed
from domain.model import Origin
from domain.moderation import (
    MAX_REASON,
    MOST_MENTIONS,
    ActingAs,
    Decision,
    Hold,
    HoldCause,
    ModerationCase,
    Standing,
    UserBlock,
    block_id,
    case_id,
    mentions,
)
from domain.upload import UNKNOWN_VIDEO, CommentPolicy, Upload, VideoViewer
from engine.command_bus import Aggregates, Command
from engine.command_bus import Query as LogQuery
from infra.http.app import body_at_once, hot
from infra.http.problems import problems
from infra.http.shapes import Comment as SeenComment
from infra.http.shapes import RequestBody, Wire

Content = Annotated[str, Field(min_length=1, max_length=10_000, examples=["¡Qué bonito!"])]
StatedReason = Annotated[str, Field(min_length=1, max_length=MAX_REASON, examples=["an insult"])]


class WriteComment(RequestBody):
    """The text of a comment."""

    content: Content


class NewComment(WriteComment):
    """A comment on a video, or, with `parentId`, a reply to a comment there.

    A reply to a reply belongs to the same comment as that.
    """

    parent_id: UUID | None = None


class CommentDeleted(Wire):
    """The comment is gone from every read; removed, its author still sees it."""

    comment_id: UUID
    status: Literal["deleted", "removed"]


class WithReason(RequestBody):
    """Why it is done, for the author of the comment and whoever reads the log later."""

    reason: StatedReason | None = None


class AuthorBlocked(NotAllowed):
    """The owner of the video does not want this user's comments."""


class CommentsClosed(Conflict):
    """The owner of the video wants no comments."""


@dataclass(frozen=True)
class NewText:
    """What somebody writes about a video, and what the rules about that ask beside the streams.

    `mentioned` are those whom it names, one for each name, `answered` whose comment it is a reply
    to. `watched`: it has a
    word that the installation watches.
    """

    video_id: UUID
    video_owner: str
    author: str
    content: str
    viewer: VideoViewer
    watched: bool = False
    mentioned: Sequence[str] = ()
    answered: str | None = None

    @property
    def addressed(self) -> Sequence[str]:
        """Whom it reaches beside the owner of the video."""
        return (*self.mentioned, *([] if self.answered is None else [self.answered]))

    def streams(self) -> Sequence[UUID]:
        """Return the video's stream, and those of blocks that would concern the text."""
        persons = dict.fromkeys((self.video_owner, *self.addressed))
        return (self.video_id, *(block_id(person, self.author) for person in persons))

    def admit(self, aggregates: Aggregates) -> Hold | None:
        """Return whether, and why, it has to wait for approval.

        Raise NotFound without such a video, AuthorBlocked, and CommentsClosed.
        """
        upload = aggregates.get(Upload, self.video_id)
        upload.require_visible(self.viewer)
        if self._is_blocked_by(self.video_owner, aggregates):
            raise AuthorBlocked("The owner of this video has blocked you from commenting on it.")
        if upload.comment_policy is CommentPolicy.CLOSED:
            raise CommentsClosed("Comments on this video are closed.", commentPolicy="closed")
        cause = self._cause(upload, aggregates)
        return None if cause is None else Hold(cause, self.video_owner)

    def _cause(self, upload: Upload, aggregates: Aggregates) -> HoldCause | None:
        if self.viewer.sees_all:
            return None
        if self.watched:
            return HoldCause.WATCHED_WORD
        if len(self.mentioned) > MOST_MENTIONS or any(
            self._is_blocked_by(person, aggregates) for person in self.addressed
        ):
            return HoldCause.MENTION
        held = upload.comment_policy is CommentPolicy.APPROVAL and self.author != upload.owner
        return HoldCause.APPROVAL if held else None

    def _is_blocked_by(self, person: str, aggregates: Aggregates) -> bool:
        return aggregates.get(UserBlock, block_id(person, self.author)).stands


@dataclass(frozen=True)
class PostComment(Command[SeenComment]):
    """Post a comment under an id that was never used; with a parent, as a reply to that comment."""

    comment_id: UUID
    text: NewText
    parent_id: UUID | None = None

    def streams(self) -> Sequence[UUID]:
        parent = () if self.parent_id is None else (self.parent_id,)
        return (self.comment_id, *parent, *self.text.streams())

    def decide(self, aggregates: Aggregates, origin: Origin) -> SeenComment:
        video_id, parent_id = self.text.video_id, self.parent_id
        hold = self.text.admit(aggregates)
        if parent_id is not None:
            parent_id = aggregates.get(Comment, parent_id).require_thread(video_id)
        comment = aggregates.get(Comment, self.comment_id)
        comment.post(video_id, self.text.content, origin, hold, parent_id)
        return as_seen(comment)


@dataclass(frozen=True)
class EditComment(Command[SeenComment]):
    """Replace the text of one's own comment, as long as one may comment on its video."""

    comment_id: UUID
    text: NewText

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id, *self.text.streams())

    def decide(self, aggregates: Aggregates, origin: Origin) -> SeenComment:
        comment = aggregates.get(Comment, self.comment_id)
        aggregates.get(Upload, self.text.video_id).require_visible(self.text.viewer, UNKNOWN)
        comment.require_author(origin)
        hold = self.text.admit(aggregates)
        comment.edit(self.text.content, origin, hold)
        return as_seen(comment)


@dataclass(frozen=True)
class DeleteComment(Command[CommentDeleted]):
    """Take one's own comment out of every read for good; remove another one's.

    What a moderator removes needs no further decision about reports of it.
    """

    comment_id: UUID
    video_id: UUID
    viewer: VideoViewer
    stated_reason: str | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id, self.video_id, case_id(self.comment_id))

    def decide(self, aggregates: Aggregates, origin: Origin) -> CommentDeleted:
        comment = aggregates.get(Comment, self.comment_id)
        if comment.author == origin.actor:
            comment.delete(origin)
            return CommentDeleted(comment_id=self.comment_id, status="deleted")
        acted_as = capacity(comment, aggregates, origin, self.viewer)
        comment.remove(acted_as, self.stated_reason, origin)
        case = aggregates.get(ModerationCase, case_id(self.comment_id))
        if acted_as is ActingAs.MODERATOR and case.is_open:
            case.decide(Decision.REMOVE, self.stated_reason, origin)
        return CommentDeleted(comment_id=self.comment_id, status="removed")


def capacity(
    comment: Comment, aggregates: Aggregates, origin: Origin, viewer: VideoViewer
) -> ActingAs:
    """Return as whom the actor decides about a comment on a loaded video.

    Raise NotFound where there is nothing that they could see, and NotAllowed.
    """
    upload = aggregates.get(Upload, comment.require_known())
    upload.require_visible(viewer, UNKNOWN)
    if viewer.sees_all:
        return ActingAs.MODERATOR
    if origin.actor != upload.owner:
        raise comment.not_yours("Only the video's owner or a moderator can do that.")
    return ActingAs.OWNER


@dataclass(frozen=True)
class FindVideoOfComment(LogQuery[UUID]):
    """Return which video a comment is on, whoever sees it; refuse where there is no such one."""

    comment_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> UUID:
        return aggregates.get(Comment, self.comment_id).require_known()


class AnsweredComment(NamedTuple):
    """The comment that a reply belongs to, and who wrote the one that it answers."""

    thread_id: UUID
    author: str


@dataclass(frozen=True)
class FindAnswered(LogQuery[AnsweredComment]):
    """Return what a reply is to that answers this comment on a video; NotFound."""

    comment_id: UUID
    video_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> AnsweredComment:
        comment = aggregates.get(Comment, self.comment_id)
        return AnsweredComment(comment.require_thread(self.video_id), comment.author)


@dataclass(frozen=True)
class FindVideoOwner(LogQuery[str]):
    """Return whose video it is; refuse one that the viewer may not see.

    `told` is what is said then of what was asked for, where that is a comment there.
    """

    video_id: UUID
    viewer: VideoViewer
    told: str = UNKNOWN_VIDEO

    def streams(self) -> Sequence[UUID]:
        return (self.video_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> str:
        upload = aggregates.get(Upload, self.video_id)
        upload.require_visible(self.viewer, self.told)
        return upload.owner


def as_seen(comment: Comment) -> SeenComment:
    """Return the comment as its author gets it back."""
    return SeenComment(
        comment_id=comment.id,
        video_id=comment.video_id,
        parent_id=comment.parent_id,
        user_id=comment.author,
        content=comment.content,
        language=comment.language,
        confidence=comment.confidence,
        translated_text=comment.translated_text,
        translation_status=comment.translation_status,
        edited=comment.revision > 1,
        created_at=comment.posted_at,
        status="held" if comment.standing is Standing.HELD else None,
    )


router = APIRouter(tags=["comments"], dependencies=TOKEN_FIRST)


async def post_at_once(video_id: UUID, request: Request) -> Response | None:
    """Answer who sends a comment as it should be; the caller is asked for first."""
    await executor(request)
    body = await body_at_once(request, NewComment)
    return None if body is None else await post_comment(video_id, body, request)


@router.post(
    "/videos/{video_id}/comments",
    status_code=201,
    response_model=SeenComment,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="Post a comment, or a reply to one",
)
@hot(post_at_once)
async def post_comment(video_id: UUID, body: NewComment, request: Request) -> Response:
    """Where it has to be approved, the answer says `status: "held"`."""
    execute = await executor(request)
    if (repeated := await execute.recall()) is not None:
        return repeated
    if execute.services.quotas is not None:
        await execute.services.quotas.comment(execute.actor)
    video_owner = await execute.value(FindVideoOwner(video_id, execute.viewer))
    text = await _new_text(execute, video_id, video_owner, body)
    parent_id = body.parent_id
    if parent_id is not None:
        answered = await execute.value(FindAnswered(parent_id, video_id))
        parent_id, text = answered.thread_id, replace(text, answered=answered.author)
    return await execute(PostComment(uuid4(), text, parent_id), status=201)


@router.patch(
    "/comments/{comment_id}",
    response_model=SeenComment,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="Edit one's own comment",
)
async def edit_comment(comment_id: UUID, body: WriteComment, request: Request) -> Response:
    execute = await executor(request)
    video_id = await execute.value(FindVideoOfComment(comment_id))
    video_owner = await execute.value(FindVideoOwner(video_id, execute.viewer, UNKNOWN))
    text = await _new_text(execute, video_id, video_owner, body)
    return await execute(EditComment(comment_id, text))


async def _new_text(
    execute: Execute, video_id: UUID, video_owner: str, body: WriteComment
) -> NewText:
    return NewText(
        video_id,
        video_owner,
        execute.actor,
        body.content,
        execute.viewer,
        watched=execute.services.watched_words.occur_in(body.content),
        mentioned=await execute.find(mentions(body.content)),
    )


@router.delete(
    "/comments/{comment_id}",
    response_model=CommentDeleted,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="Delete one's own comment, or remove another one",
)
async def delete_comment(
    comment_id: UUID,
    request: Request,
    reason: Annotated[StatedReason | None, Query(description="Why it is removed.")] = None,
    body: WithReason | None = None,
) -> Response:
    """Its author deletes it for good; the owner of the video and moderators remove it."""
    execute = await executor(request)
    why = body.reason if body is not None else reason
    video_id = await execute.value(FindVideoOfComment(comment_id))
    command = DeleteComment(comment_id, video_id, execute.viewer, why)
    return await execute(command)
