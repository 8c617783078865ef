"""What operators decide about messages and tasks that failed: recorded here, done elsewhere.

As with projections, a process with the role `projections` follows these requests, and the answer
names the operation under which it tells what came of it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import Field

from commands.endpoint import executor
from commands.operations import (
    Because,
    Justified,
    OperationRequested,
    Position,
    parameters_of,
    requested,
)
from domain.operation import (
    DEAD_MESSAGES,
    DEAD_TASKS,
    DISCARD_MESSAGES,
    DISCARD_TASKS,
    RETRY_MESSAGES,
    RETRY_TASKS,
)
from infra.http.auth import require_admin
from infra.http.problems import problems

MOST_IDS = 100

LetterId = Annotated[int, Path(ge=1, le=2**63 - 1)]
TaskId = Annotated[str, Path(min_length=1, max_length=100)]
Ids = Annotated[list[Position], Field(min_length=1, max_length=MOST_IDS)]


class RetryLetters(Because):
    """Which dead messages are given to their consumers again."""

    ids: Ids


class DiscardLetters(Justified):
    """Which dead messages are given up for good, and why."""

    ids: Ids


router = APIRouter(prefix="/admin", tags=["operations"], dependencies=[Depends(require_admin)])
ASKED: dict[str, Any] = {
    "status_code": 202,
    "response_model": OperationRequested,
    "responses": problems(400, 401, 403, 409, 413, 422, 503),
}


@router.post("/dead-letters/retry", summary="Give messages to their consumers again", **ASKED)
async def retry_dead_letters(body: RetryLetters, request: Request) -> Response:
    execute = await executor(request)
    return await requested(execute, RETRY_MESSAGES, DEAD_MESSAGES, parameters_of(body))


@router.post("/dead-letters/discard", summary="Give messages up for good", **ASKED)
async def discard_dead_letters(body: DiscardLetters, request: Request) -> Response:
    execute = await executor(request)
    return await requested(execute, DISCARD_MESSAGES, DEAD_MESSAGES, parameters_of(body))


@router.post(
    "/dead-letters/{letter_id}/retry", summary="Give a message to its consumer again", **ASKED
)
async def retry_dead_letter(
    letter_id: LetterId, request: Request, body: Because | None = None
) -> Response:
    execute, asked = await executor(request), {"ids": [letter_id], **parameters_of(body)}
    return await requested(execute, RETRY_MESSAGES, DEAD_MESSAGES, asked)


@router.post("/dead-letters/{letter_id}/discard", summary="Give a message up for good", **ASKED)
async def discard_dead_letter(letter_id: LetterId, body: Justified, request: Request) -> Response:
    execute, asked = await executor(request), {"ids": [letter_id], **parameters_of(body)}
    return await requested(execute, DISCARD_MESSAGES, DEAD_MESSAGES, asked)


@router.post("/tasks/failed/{task_id}/retry", summary="Send a failed task once more", **ASKED)
async def retry_failed_task(
    task_id: TaskId, request: Request, body: Because | None = None
) -> Response:
    execute, asked = await executor(request), {"task": task_id, **parameters_of(body)}
    return await requested(execute, RETRY_TASKS, DEAD_TASKS, asked)


@router.post("/tasks/failed/{task_id}/discard", summary="Give a failed task up for good", **ASKED)
async def discard_failed_task(task_id: TaskId, body: Justified, request: Request) -> Response:
    execute, asked = await executor(request), {"task": task_id, **parameters_of(body)}
    return await requested(execute, DISCARD_TASKS, DEAD_TASKS, asked)
