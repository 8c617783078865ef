"""What operators do to projections, asked over HTTP: recorded here, carried out elsewhere.

A process with the role `projections` follows these requests; the answer names the operation under
which it tells what came of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Request, Response
from pydantic import Field, model_validator

from commands.endpoint import Execute, executor
from domain.errors import NotFound
from domain.model import Origin
from domain.operation import Members, Operation
from engine.command_bus import Aggregates, Command
from infra.http.auth import require_admin
from infra.http.problems import problems
from infra.http.shapes import RequestBody, Wire
from infra.settings.features import MAX_REPLAY_WORKERS

Position = Annotated[int, Field(ge=1, le=2**63 - 1, strict=True, examples=[1_000])]
Flag = Annotated[bool, Field(strict=True)]
Reason = Annotated[str, Field(min_length=1, max_length=500, examples=["an alert"])]


class Because(RequestBody):
    """Why it is done, for whoever reads the log later."""

    reason: Reason | None = None


class Justified(RequestBody):
    """Why an event is left out; it is kept with the event."""

    reason: Reason


class Park(Justified):
    """Why it goes on without the event that it stopped in front of.

    `allLike`, the position of that event: also without whatever the log holds now of its topic and
    fails with its error.
    """

    all_like: Position | None = None


class Replay(Because):
    """Up to which position (default: the end of the log, then it takes the live copy's place).

    `yes`: switch even if the new copy differs from the live one at the same position; otherwise it
    waits for `confirm`. `workers` processes share the work where the projection allows it.
    """

    to: Position | None = None
    workers: Annotated[int, Field(ge=1, le=MAX_REPLAY_WORKERS, strict=True)] | None = None
    yes: Flag | None = None


class Halt(Because):
    """Whether the replay under way is meant, and not the projection itself."""

    replay: Flag | None = None


class Look(Because):
    """At which position the look at the past was asked for."""

    position: Position


class Retry(Because):
    """Which parked event is tried again, or that and all like it; none: all that wait.

    `allLike`: those of the topic and the error of the event at that position. `force`: also where
    later events of its stream were applied in the meantime.
    """

    position: Position | None = None
    all_like: Position | None = None
    force: Flag | None = None

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.position is not None and self.all_like is not None:
            raise ValueError("name one event by `position`, or say `allLike`, not both")
        return self


class Discard(Justified):
    """Which parked event is left out for good, or that and all like it.

    `allLike`: those of the topic and the error of the event at that position.
    """

    position: Position | None = None
    all_like: Position | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.position is None) == (self.all_like is None):
            raise ValueError("name one event by `position`, or say `allLike`")
        return self


class OperationRequested(Wire):
    """The request is durable; `GET /operations/{operationId}` tells what came of it."""

    operation_id: UUID
    status: Literal["requested"] = "requested"


@dataclass(frozen=True)
class RequestOperation(Command[OperationRequested]):
    """Record what an operator wants, under an id that was never used."""

    operation_id: UUID
    action: str
    subject: str
    parameters: Members

    def streams(self) -> Sequence[UUID]:
        return (self.operation_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> OperationRequested:
        operation = aggregates.get(Operation, self.operation_id)
        operation.request(self.action, self.subject, self.parameters, origin)
        return OperationRequested(operation_id=self.operation_id)


def parameters_of(body: Wire | None) -> Members:
    """Return what a body asks for, as an operation keeps it."""
    return body.model_dump(by_alias=True, exclude_none=True) if body else {}


async def requested(execute: Execute, action: str, subject: str, parameters: Members) -> Response:
    """Record what an operator asks for, and answer under which operation."""
    operation_id = execute.fresh_id("operation")
    command = RequestOperation(operation_id, action, subject, parameters)
    return await execute(command, status=202)


FAULTS = problems(400, 401, 403, 404, 409, 413, 422, 503)

Name = Annotated[str, Path(max_length=63, examples=["likes"])]

ROUTES: tuple[tuple[str, str, str, type[Wire], bool], ...] = (
    (
        "replay",
        "replay_projection",
        "Build it again beside the live copy, and switch",
        Replay,
        False,
    ),
    ("verify", "verify_projection", "Build it again and compare; changes nothing", Because, False),
    ("completeness", "prove_completeness", "Prove that no event was left out", Because, False),
    ("pause", "pause_projection", "Let it, or its replay, rest", Halt, False),
    ("resume", "resume_projection", "Let it, or its replay, go on", Halt, False),
    ("cancel", "cancel_replay", "Give its replay up", Because, False),
    ("confirm", "confirm_replay", "Switch although the copies differ", Because, False),
    ("rollback", "roll_back_projection", "Switch back to the previous copy", Because, False),
    ("drop-old", "drop_previous_copy", "Remove the previous copy", Because, False),
    ("drop-look", "drop_look", "Remove a look at the past", Look, True),
    ("park", "park_event", "Set aside the event that it stopped in front of", Park, True),
    ("retry", "retry_parked_events", "Apply parked events after all", Retry, False),
    ("discard", "discard_parked_event", "Give a parked event up", Discard, True),
)
"""Each action: its name, what it does, the shape of its body, whether it needs one.

The second is the name of the endpoint, and so of the operation in the OpenAPI document.
"""

router = APIRouter(
    prefix="/projections/{name}", tags=["projections"], dependencies=[Depends(require_admin)]
)


def _endpoint(action: str, shape: Any, *, needs_body: bool) -> Callable[..., Awaitable[Response]]:
    async def request_operation(
        name: Name, request: Request, body: Wire | None = Body(... if needs_body else None)
    ) -> Response:
        execute = await executor(request)
        if name not in execute.services.projections:
            raise NotFound("There is no such projection.")
        return await requested(execute, action, name, parameters_of(body))

    # FastAPI takes the shape of the body from here.
    request_operation.__annotations__["body"] = shape if needs_body else shape | None
    return request_operation


for _action, _name, _summary, _shape, _needs_body in ROUTES:
    router.add_api_route(
        f"/{_action}",
        _endpoint(_action, _shape, needs_body=_needs_body),
        methods=["POST"],
        name=_name,
        summary=_summary,
        status_code=202,
        response_model=OperationRequested,
        responses=FAULTS,
    )
