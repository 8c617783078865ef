"""What moderators decide about, what waits for approval, and whom the caller blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from psycopg import AsyncConnection

from domain.moderation import ReportReason, Standing, ThingKind
from engine.log import END_OF_LOG
from infra.http.auth import Caller, Moderator
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Comment, Time, UserId, Wire
from projections.catalog import VideoRow
from projections.comments import CommentRow, HiddenComment
from projections.moderation import CaseRow, DetailRow, Moderation
from readapi.pages import IfNoneMatch, Page, Paged
from readapi.queries import Fresh, Queries, Read

DETAILS = 5

by_position = attrgetter("position")


class ReportDetail(Wire):
    """What a reporter said in more than a word."""

    reason: ReportReason
    detail: str
    reported_at: Time


class VideoTexts(Wire):
    """A video, as far as it can be judged by its texts."""

    video_id: UUID
    owner_id: UserId
    title: str
    description: str | None = None
    category: str | None = None


class ReportedThing(Wire):
    """A thing and its reports since the last decision, their latest details first.

    Neither `comment` nor `video` is there where it is gone.
    """

    report_id: UUID
    kind: ThingKind
    status: Literal["open", "removed", "dismissed", "gone"]
    video_id: UUID
    comment_id: UUID | None = None
    reports: int
    reasons: dict[ReportReason, int]
    details: list[ReportDetail]
    opened_at: Time
    decided_at: Time | None = None
    decided_by: UserId | None = None
    decision_reason: str | None = None
    comment: Comment | None = None
    video: VideoTexts | None = None


class BlockedUser(Wire):
    """Somebody who can't comment on the caller's videos."""

    user_id: UserId


router = APIRouter(tags=["moderation"])

Status = Annotated[
    Literal["open", "removed", "dismissed", "gone"],
    Query(description="`gone`: what was reported was deleted before anybody decided."),
]


@router.get(
    "/moderation/reports",
    response_model=Page[ReportedThing],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Reported things, the oldest open one first",
)
async def list_reports(
    request: Request,
    queries: Read,
    caller: Moderator,
    fresh: Fresh,
    page: Paged,
    status: Status = "open",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """What was decided, or is gone, comes newest first."""
    moderation, first = queries.models[Moderation], 0 if status == "open" else END_OF_LOG
    async with queries.reading(fresh, moderation, queries.comments, queries.catalog) as conn:
        read = partial(moderation.cases, conn, status)
        shown, following = await page.read(f"reports-{status}", read, by_position, first)
        items = await _reported(queries, conn, shown)
    return await conditional_wire(request, Page[ReportedThing](items=items, next_cursor=following))


async def _reported(
    queries: Queries, conn: AsyncConnection[Any], cases: Sequence[CaseRow]
) -> list[ReportedThing]:
    moderation, comments = queries.models[Moderation], queries.comments
    ids, things = [case.case_id for case in cases], [case.thing_id for case in cases]
    tallies = await moderation.tallies(conn, ids)
    details = await moderation.details(conn, ids, DETAILS)
    videos = await queries.catalog.videos(conn, things)
    posted = await comments.found(conn, things)
    hidden = await comments.hidden_found(conn, things)
    return [
        ReportedThing(
            **_decision(case),
            reports=sum(tallies[case.case_id].values()),
            reasons={ReportReason(each): n for each, n in tallies[case.case_id].items()},
            details=[_detail(each) for each in details if each.case_id == case.case_id],
            comment=_comment(posted.get(case.thing_id), hidden.get(case.thing_id)),
            video=_video(videos.get(case.thing_id)),
        )
        for case in cases
    ]


def _decision(case: CaseRow) -> dict[str, Any]:
    return {
        "report_id": case.case_id,
        "kind": case.kind,
        "status": "gone" if case.gone and case.status == "open" else case.status,
        "video_id": case.video_id,
        "comment_id": case.thing_id if case.kind == ThingKind.COMMENT else None,
        "opened_at": case.opened_at,
        "decided_at": case.decided_at,
        "decided_by": case.decided_by,
        "decision_reason": case.stated_reason,
    }


def _detail(row: DetailRow) -> ReportDetail:
    return ReportDetail(
        reason=ReportReason(row.category), detail=row.detail, reported_at=row.reported_at
    )


def _video(row: VideoRow | None) -> VideoTexts | None:
    return None if row is None else VideoTexts(**row._asdict(), owner_id=row.owner)


def _comment(posted: CommentRow | None, hidden: HiddenComment | None) -> Comment | None:
    if hidden is not None:
        return present_hidden(hidden, decides=True)
    return None if posted is None else Comment(**posted._asdict(), user_id=posted.author)


def present_hidden(hidden: HiddenComment, *, decides: bool) -> Comment:
    """Return a comment that not everybody sees; whoever decides about it is told more of why."""
    held = hidden.standing is Standing.HELD
    return Comment.model_validate(
        {
            **hidden.comment._asdict(),
            "user_id": hidden.comment.author,
            "status": hidden.standing,
            "status_reason": None if held else hidden.stated_reason,
            "removed_by": hidden.removed_as,
            "held_for": hidden.held_for if held and decides else None,
            "revision": hidden.revision if held and decides else None,
        }
    )


@router.get(
    "/moderation/held",
    response_model=Page[Comment],
    responses=problems(401, 422, 503) | NOT_MODIFIED,
    summary="Comments that wait for the caller's approval, newest first",
)
async def list_held_comments(
    request: Request,
    queries: Read,
    caller: Caller,
    fresh: Fresh,
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """All of them for a moderator; for others those on videos of their own."""
    owner = None if caller.is_moderator else caller.person
    async with queries.reading(fresh, queries.comments) as conn:
        held = partial(
            queries.comments.hidden_page, conn, video_owner=owner, standing=Standing.HELD
        )
        shown, following = await page.read("held", held, lambda row: row.comment.position)
    items = [present_hidden(row, decides=True) for row in shown]
    return await conditional_wire(request, Page[Comment](items=items, next_cursor=following))


@router.get(
    "/users/me/blocked",
    response_model=Page[BlockedUser],
    responses=problems(401, 422, 503) | NOT_MODIFIED,
    summary="Whom the caller blocks, the latest first",
)
async def list_blocked_users(
    request: Request,
    queries: Read,
    caller: Caller,
    fresh: Fresh,
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    moderation = queries.models[Moderation]
    async with queries.reading(fresh, moderation) as conn:
        blocks = partial(moderation.blocks, conn, caller.person)
        shown, following = await page.read("blocked", blocks, by_position)
    items = [BlockedUser(user_id=row.blocked) for row in shown]
    return await conditional_wire(request, Page[BlockedUser](items=items, next_cursor=following))
