"""What came of what operators asked for."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Response

from domain.operation import Members
from infra.contract import Time, Wire
from infra.http import Admin, wire
from infra.problems import Problem, problems
from projections.operations import OperationRow
from readapi.queries import Fresh, Read

Status = Literal["requested", "running", "done", "failed", "cancelled", "refused"]


class OperationStatus(Wire):
    """An operation: who asked for what, when, and how it ended.

    `running` while a process carries it out; `requested` before, while its replay is paused, and
    while that waits for a confirmation. `result` depends on the action; `error` or `reason` in it
    says why it failed or was refused.
    """

    operation_id: UUID
    action: str
    subject: str
    parameters: Members
    status: Status
    requested_by: str
    requested_at: Time
    correlation_id: str
    result: Members | None = None
    finished_at: Time | None = None


router = APIRouter(prefix="/operations", tags=["projections"])


@router.get(
    "/{operation_id}",
    response_model=OperationStatus,
    responses=problems(401, 403, 404, 422, 503),
    summary="What came of an operation",
)
async def get_operation(operation_id: UUID, queries: Read, caller: Admin, fresh: Fresh) -> Response:
    async with queries.reading(fresh, queries.operations) as conn:
        row = await queries.operations.operation(conn, operation_id)
    if row is None:
        raise Problem(404, "not-found", "There is no such operation.")
    return wire(_present(row))


def _present(row: OperationRow) -> OperationStatus:
    return OperationStatus.model_validate(
        {
            "operation_id": row.operation_id,
            "action": row.action,
            "subject": row.subject,
            "parameters": row.parameters,
            "status": row.status,
            "requested_by": row.requested_by,
            "requested_at": row.requested_at,
            "correlation_id": row.correlation_id,
            "result": row.result,
            "finished_at": row.finished_at,
        }
    )
