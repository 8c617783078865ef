"""`backlot projections verify|replay analytics`: compared with the log, and mended in place."""

from __future__ import annotations

import sys
from typing import Any
from uuid import uuid4

import typer

from backlot.output import show
from backlot.projections.lines import differences
from backlot.projections.operating import Operator, operating, require_done
from backlot.projections.replay_screen import ReplayScreen
from backlot.projections.runs import UNCONFIRMED
from domain.operation import Members, Outcome
from infra.operations import request
from infra.settings import load_settings
from projections.analytics.rebuilding import NAME
from projections.operating.acting import Ended
from projections.proving.compare import Difference

DIFFERS = 1


def rebuild(action: str, parameters: Members, *, detach: bool, as_json: bool) -> int:
    """Verify or replay the analytics; the exit code.

    1 where a verification finds a difference, 3 for a replay that nobody has agreed to.
    """
    with operating(load_settings()) as operator:
        if detach:
            operation_id = uuid4()
            request(operator.recorder, operation_id, operator.actor, action, NAME, parameters)
            operation = str(operation_id)
            show(f"requested: operation {operation}", {"operationId": operation}, as_json)
            return 0
        ended = _carry_out(operator, action, parameters)
    result: dict[str, Any] = dict(ended.result)
    show("\n".join([_told(result), *differences(result["difference"])]), result, as_json)
    if ended.outcome is Outcome.CANCELLED:
        return UNCONFIRMED
    return DIFFERS if action == "verify" and result["difference"]["differs"] else 0


def _carry_out(operator: Operator, action: str, parameters: Members) -> Ended:
    with ReplayScreen(f"{action} {NAME}") as screen:

        def agrees(difference: Difference) -> bool:
            with screen.resting():
                return _agreed(difference)

        ended = operator.attempt(action, NAME, parameters, operator.tools(screen, agrees))
    return ended if ended.outcome is Outcome.CANCELLED else require_done(ended)


def _agreed(difference: Difference) -> bool:
    """Whether the operator, having seen what differs, wants it mended; nobody there: no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    typer.echo("\n".join(differences(difference.as_dict())), err=True)
    return typer.confirm(f"Mend the {NAME}?", err=True)


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
