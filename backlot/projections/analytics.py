"""`backlot projections verify|replay analytics`: compared with the log, and mended in place."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from backlot.output import show
from backlot.projections.lines import differences
from backlot.projections.operating import Operator, operating, require_done
from backlot.projections.replay_screen import ReplayScreen
from backlot.question import agrees
from domain.operation import Members, OperationOutcome
from infra.errors import ExitCode
from infra.operations import request
from infra.settings import load_settings
from projections.analytics.rebuilding import NAME
from projections.operating.acting import Ended
from projections.proving.compare import Difference


def rebuild(action: str, parameters: Members, *, detach: bool, as_json: bool) -> int:
    """Verify or replay the analytics; the exit code.

    NOT_WELL where a verification finds a difference, UNCONFIRMED for a replay that nobody wanted.
    """
    with operating(load_settings()) as operator:
        if detach:
            operation_id = uuid4()
            request(operator.recorder, operation_id, operator.actor, action, NAME, parameters)
            operation = str(operation_id)
            show(f"requested: operation {operation}", {"operationId": operation}, as_json)
            return ExitCode.DONE
        ended, found = _carry_out(operator, action, parameters)
    result: dict[str, Any] = dict(ended.result)
    show("\n".join([_told(result), *differences(found)]), result, as_json)
    if ended.outcome is OperationOutcome.CANCELLED:
        return ExitCode.UNCONFIRMED
    differs = action == "verify" and result["difference"]["differs"]
    return ExitCode.NOT_WELL if differs else ExitCode.DONE


def _carry_out(
    operator: Operator, action: str, parameters: Members
) -> tuple[Ended, dict[str, Any]]:
    """How it ended, and what was found to differ, with the values."""
    found: list[Difference] = []
    with ReplayScreen(f"{action} {NAME}") as screen:

        def agrees(difference: Difference) -> bool:
            with screen.resting():
                return _agreed(difference)

        ended = operator.attempt(
            action, NAME, parameters, operator.tools(screen, agrees, found.append)
        )
    done = ended if ended.outcome is OperationOutcome.CANCELLED else require_done(ended)
    return done, found[-1].as_dict(values=True)


def _agreed(difference: Difference) -> bool:
    """Whether the operator, having seen what differs, wants it mended."""
    return agrees(f"Mend the {NAME}?", *differences(difference.as_dict(values=True)))


def _told(result: Members) -> str:
    where = f"{result['events']:,} events, up to position {result['position']}"
    match result["state"]:
        case "mended":
            return f"{NAME}: compared with {where}, and mended"
        case "cancelled":
            yes = f"`backlot projections replay {NAME} --yes` mends it"
            return f"{NAME}: compared with {where}; nothing was changed, {yes}"
        case _:
            return f"{NAME}: compared with {where}"
