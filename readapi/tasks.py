"""The queues of background tasks, and the tasks that failed for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, Depends, Request, Response

from engine.connections import in_thread
from infra.http.auth import Auditor
from infra.http.problems import Problem, problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, Wire
from infra.tasks.queues import QUEUES, BrokerAway, FailedTask, TaskQueues
from readapi.pages import IfNoneMatch, Page, Paged, decode_place, encode_cursor
from readapi.queries import Fresh, Read

log = structlog.get_logger(__name__)

T = TypeVar("T")

KIND = "failed-tasks"
DEEPEST = 10_000


class TaskQueue(Wire):
    """How many tasks of a queue wait, for their first attempt or another one, run, and failed.

    With RabbitMQ nobody knows how many run.
    """

    queue: str
    waiting: int
    delayed: int
    running: int | None = None
    failed: int


class DeadTask(Wire):
    """A task that was given up after its last attempt; it can be sent once more."""

    id: str
    queue: str
    actor: str
    args: list[Any]
    error: str
    attempts: int
    failed_at: Time | None = None
    correlation_id: str | None = None

    @classmethod
    def of(cls, task: FailedTask) -> DeadTask:
        """Return a task as operators see it."""
        return cls(
            id=task.id,
            queue=task.queue,
            actor=task.actor,
            args=list(task.args),
            error=task.error,
            attempts=task.attempts,
            failed_at=task.failed_at,
            correlation_id=task.correlation_id,
        )


async def _task_queues(request: Request) -> TaskQueues:
    queues: TaskQueues = request.app.state.task_queues
    return queues


Queues = Annotated[TaskQueues, Depends(_task_queues)]


async def _ask(question: Callable[[], T]) -> T:
    """Ask the broker in a thread; raise Problem 503 where it is away."""
    try:
        return await in_thread(question)
    except BrokerAway as error:
        log.warning("task_broker_unavailable", error=str(error))
        detail = "The broker of the tasks does not answer; try again soon."
        raise Problem(503, "unavailable", detail, headers={"Retry-After": "1"}) from error


router = APIRouter(prefix="/admin/tasks", tags=["operations"])


@router.get(
    "",
    response_model=Page[TaskQueue],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="The queues of background tasks",
)
async def list_task_queues(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    queues: Queues,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh)
    items = [
        TaskQueue(
            queue=each.queue,
            waiting=each.waiting,
            delayed=each.delayed,
            running=each.taken,
            failed=each.dead,
        )
        for each in await _ask(queues.depths)
    ]
    return await conditional_wire(request, Page[TaskQueue](items=items))


@router.get(
    "/failed",
    response_model=Page[DeadTask],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Tasks that were given up, by queue, the oldest first",
)
async def list_failed_tasks(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    queues: Queues,
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh)
    number, skipped = decode_place(KIND, page.cursor, 0, 0)
    found: list[tuple[int, int, FailedTask]] = []

    def look() -> None:
        """Read queue after queue until there is one task more than the page has."""
        before = min(skipped, DEEPEST)
        for at in range(min(number, len(QUEUES)), len(QUEUES)):
            tasks = queues.dead(QUEUES[at], before + page.rows - len(found))
            found.extend((at, place, task) for place, task in enumerate(tasks) if place >= before)
            before = 0
            if len(found) >= page.rows:
                return

    await _ask(look)
    shown, following = found[: page.limit], None
    if len(found) > page.limit:
        at, place, _ = shown[-1]
        following = encode_cursor(KIND, at, place + 1)
    items = [DeadTask.of(task) for *_, task in shown]
    return await conditional_wire(request, Page[DeadTask](items=items, next_cursor=following))
