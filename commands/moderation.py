"""Moderation: restore and approve comments, report things, decide about reports, block users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import AfterValidator, Field

from commands.catalog import drop_object
from commands.comments import FindVideoOfComment, StatedReason, WithReason, as_seen, capacity
from commands.endpoint import TOKEN_FIRST, Accepted, Execute, executor
from domain.comment import UNKNOWN, Comment
from domain.model import Origin
from domain.moderation import (
    MAX_DETAIL,
    ActingAs,
    ContentReport,
    Decision,
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
from domain.upload import Status, Upload, VideoViewer
from engine.command_bus import Aggregates, Command, Query
from infra.http.auth import require_moderator, user_id_of
from infra.http.problems import problems
from infra.http.shapes import Comment as SeenComment
from infra.http.shapes import RequestBody, UserId, Wire


class Approve(RequestBody):
    """Which of the comment's texts was looked at; none: whichever it has now."""

    revision: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)] | None = None


class ReportContent(RequestBody):
    """What is wrong with it, in a word and perhaps in more."""

    reason: ReportReason
    detail: Annotated[
        str | None, Field(min_length=1, max_length=MAX_DETAIL, examples=["It is an advertisement."])
    ] = None


class Decide(RequestBody):
    """What is done with what was reported, and why."""

    decision: Decision
    reason: StatedReason | None = None


class CaseDecision(Wire):
    """What was decided about what was reported."""

    report_id: UUID
    status: Literal["removed", "dismissed"]
    kind: ThingKind
    video_id: UUID
    comment_id: UUID | None = None


class BlockState(Wire):
    """Whether the caller keeps the user from commenting on their videos."""

    user_id: UserId
    blocked: bool


@dataclass(frozen=True)
class RestoreComment(Command[SeenComment]):
    """Show a removed comment to everybody again."""

    comment_id: UUID
    video_id: UUID
    viewer: VideoViewer
    stated_reason: str | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id, self.video_id)

    def decide(self, aggregates: Aggregates, origin: Origin) -> SeenComment:
        comment = aggregates.get(Comment, self.comment_id)
        acted_as = capacity(comment, aggregates, origin, self.viewer)
        comment.restore(acted_as, self.stated_reason, origin)
        return as_seen(comment)


@dataclass(frozen=True)
class ApproveComment(Command[SeenComment]):
    """Show a held comment to everybody."""

    comment_id: UUID
    video_id: UUID
    viewer: VideoViewer
    revision: int | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id, self.video_id)

    def decide(self, aggregates: Aggregates, origin: Origin) -> SeenComment:
        comment = aggregates.get(Comment, self.comment_id)
        acted_as = capacity(comment, aggregates, origin, self.viewer)
        comment.approve(acted_as, self.revision, origin)
        return as_seen(comment)


@dataclass(frozen=True)
class ReportThing(Command[Accepted]):
    """Report a comment that everybody sees, or a video."""

    thing: Thing
    viewer: VideoViewer
    reporter: str
    reason: ReportReason
    detail: str | None = None

    def streams(self) -> Sequence[UUID]:
        thing = self.thing
        own = (report_id(thing.thing_id, self.reporter), case_id(thing.thing_id))
        return (*dict.fromkeys((thing.video_id, thing.thing_id)), *own)

    def decide(self, aggregates: Aggregates, origin: Origin) -> Accepted:
        kind, thing_id, video_id = self.thing
        video = aggregates.get(Upload, video_id)
        if kind is ThingKind.COMMENT:
            video.require_visible(self.viewer, UNKNOWN)
            aggregates.get(Comment, thing_id).require_posted()
        else:
            video.require_visible(self.viewer)
        case = aggregates.get(ModerationCase, case_id(thing_id))
        report = aggregates.get(ContentReport, report_id(thing_id, self.reporter))
        report.file(case, self.thing, self.reason, self.detail, origin)
        return Accepted()


@dataclass(frozen=True)
class FindReportedThing(Query[Thing]):
    """Return what a case is about; refuse where nothing was reported."""

    case_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.case_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> Thing:
        return aggregates.get(ModerationCase, self.case_id).require_thing()


@dataclass(frozen=True)
class DecideCase(Command[CaseDecision]):
    """Remove what was reported, or dismiss the reports; what is gone by now can't be removed."""

    case_id: UUID
    thing: Thing
    decision: Decision
    stated_reason: str | None

    def streams(self) -> Sequence[UUID]:
        return (self.case_id, *dict.fromkeys((self.thing.video_id, self.thing.thing_id)))

    def decide(self, aggregates: Aggregates, origin: Origin) -> CaseDecision:
        case = aggregates.get(ModerationCase, self.case_id)
        case.decide(self.decision, self.stated_reason, origin)
        if self.decision is Decision.REMOVE:
            self._remove(aggregates, origin)
        kind, thing_id, video_id = self.thing
        return CaseDecision(
            report_id=self.case_id,
            status="removed" if self.decision is Decision.REMOVE else "dismissed",
            kind=kind,
            video_id=video_id,
            comment_id=thing_id if kind is ThingKind.COMMENT else None,
        )

    def _remove(self, aggregates: Aggregates, origin: Origin) -> None:
        kind, thing_id, video_id = self.thing
        if kind is ThingKind.COMMENT:
            comment = aggregates.get(Comment, thing_id)
            if comment.standing is not Standing.DELETED:
                comment.remove(ActingAs.MODERATOR, self.stated_reason, origin)
            return
        upload = aggregates.get(Upload, video_id)
        if upload.status is Status.COMPLETED:
            upload.remove(origin)


@dataclass(frozen=True)
class ChangeBlock(Command[BlockState]):
    """Block a user, or take that back."""

    blocker: str
    person: str
    blocked: bool

    def streams(self) -> Sequence[UUID]:
        return (block_id(self.blocker, self.person),)

    def decide(self, aggregates: Aggregates, origin: Origin) -> BlockState:
        block = aggregates.get(UserBlock, block_id(self.blocker, self.person))
        verb = block.block if self.blocked else block.unblock
        verb(self.person, origin)
        return BlockState(user_id=self.person, blocked=block.stands)


router = APIRouter(tags=["moderation"])
decides: dict[str, Any] = {
    "dependencies": TOKEN_FIRST,
    "response_model": SeenComment,
    "responses": problems(400, 401, 403, 404, 409, 413, 422, 503),
}


@router.post("/comments/{comment_id}/restore", summary="Show a removed comment again", **decides)
async def restore_comment(
    comment_id: UUID, request: Request, body: WithReason | None = None
) -> Response:
    """By the owner of the video, or by a moderator; what a moderator removed, by a moderator."""
    execute = await executor(request)
    if (repeated := await execute.recall()) is not None:
        return repeated
    video_id = await execute.value(FindVideoOfComment(comment_id))
    why = None if body is None else body.reason
    return await execute(RestoreComment(comment_id, video_id, execute.viewer, why))


@router.post("/comments/{comment_id}/approve", summary="Show a held comment", **decides)
async def approve_comment(
    comment_id: UUID, request: Request, body: Approve | None = None
) -> Response:
    """By the owner of the video, or by a moderator; `DELETE` of the comment rejects it.

    With `revision`, a text that came since is not approved unseen (409).
    """
    execute = await executor(request)
    if (repeated := await execute.recall()) is not None:
        return repeated
    video_id = await execute.value(FindVideoOfComment(comment_id))
    revision = None if body is None else body.revision
    return await execute(ApproveComment(comment_id, video_id, execute.viewer, revision))


reports: dict[str, Any] = {
    "status_code": 202,
    "dependencies": TOKEN_FIRST,
    "response_model": Accepted,
    "responses": problems(400, 401, 404, 409, 413, 422, 503),
}


@router.post("/comments/{comment_id}/report", summary="Report a comment", **reports)
async def report_comment(comment_id: UUID, body: ReportContent, request: Request) -> Response:
    """Reporting the same comment again changes nothing."""
    execute = await executor(request)
    if (repeated := await execute.recall()) is not None:
        return repeated
    video_id = await execute.value(FindVideoOfComment(comment_id))
    return await _report(execute, Thing(ThingKind.COMMENT, comment_id, video_id), body)


@router.post("/videos/{video_id}/report", summary="Report a video", **reports)
async def report_video(video_id: UUID, body: ReportContent, request: Request) -> Response:
    """Reporting the same video again changes nothing."""
    execute = await executor(request)
    return await _report(execute, Thing(ThingKind.VIDEO, video_id, video_id), body)


async def _report(execute: Execute, thing: Thing, body: ReportContent) -> Response:
    return await execute(
        ReportThing(thing, execute.viewer, execute.actor, body.reason, body.detail), status=202
    )


@router.post(
    "/moderation/reports/{report_id}",
    dependencies=[Depends(require_moderator)],
    response_model=CaseDecision,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="Decide about what was reported",
)
async def decide_report(report_id: UUID, body: Decide, request: Request) -> Response:
    execute = await executor(request)
    thing = await execute.value(FindReportedThing(report_id))
    answer = await execute(DecideCase(report_id, thing, body.decision, body.reason))
    if body.decision is Decision.REMOVE and thing.kind is ThingKind.VIDEO:
        await drop_object(execute.services.objects, thing.video_id)
    return answer


Whom = Annotated[str, Path(description="The `sub` of a token."), AfterValidator(user_id_of)]
blocks: dict[str, Any] = {
    "dependencies": TOKEN_FIRST,
    "response_model": BlockState,
    "responses": problems(401, 409, 422, 503),
}


@router.put("/users/me/blocked/{user_id}", summary="Block a user", **blocks)
async def block_user(user_id: Whom, request: Request) -> Response:
    """They can't comment on the caller's videos, and naming the caller has to be approved."""
    execute = await executor(request)
    person = await execute.admit(user_id)
    return await execute(ChangeBlock(execute.actor, person, blocked=True))


@router.delete("/users/me/blocked/{user_id}", summary="Take a block back", **blocks)
async def unblock_user(user_id: Whom, request: Request) -> Response:
    execute = await executor(request)
    person = await execute.admit(user_id)
    return await execute(ChangeBlock(execute.actor, person, blocked=False))
