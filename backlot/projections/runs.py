"""What the commands that build another copy have in common: run it, ask, tell, and exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import typer

from backlot.output import show
from backlot.projections.lines import told
from backlot.projections.operating import Operator, operating
from backlot.projections.replay_screen import ReplayScreen
from backlot.projections.replaying import Interrupted, Replaying
from backlot.question import agrees
from domain.operation import Members
from engine import checkpoints
from infra.errors import ExitCode
from infra.settings import load_settings
from projections.replaying.rows import Replay, ReplayState
from readapi.projection_status import present_replay


class Verified(NamedTuple):
    """What several verifications came to: for people, for programs, and whether all were equal."""

    lines: list[str]
    data: list[dict[str, Any]]
    equal: bool


def carry(
    action: str, name: str, parameters: Members, *, yes: bool, detach: bool, as_json: bool
) -> int:
    """Replay or roll back, here or in another process; the exit code.

    UNCONFIRMED for a replay that waits, FAILED for one that rests otherwise or did not succeed.
    """
    with operating(load_settings()) as operator:
        replaying = Replaying(operator, action, name, parameters)
        if detach:
            operation = str(replaying.detach())
            show(f"requested: operation {operation}", {"operationId": operation}, as_json)
            return ExitCode.DONE
        found = _run(replaying, yes=yes)
        lines = [told(found)]
        if found.result is not None and found.result["differs"]:
            lines += replaying.differences(found)
        show("\n".join(lines), _as_dict(operator, found), as_json)
    if not found.finished:
        return ExitCode.FAILED if found.paused else ExitCode.UNCONFIRMED
    gone = found.state in (ReplayState.CANCELLED, ReplayState.FAILED)
    return ExitCode.FAILED if gone else ExitCode.DONE


def verify_all(operator: Operator, names: Sequence[str], parameters: Members) -> Verified:
    """Verify one projection after the other; each is told whatever came of those before."""
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    equal = True
    for name in names:
        replaying = Replaying(operator, "verify", name, parameters)
        found = _run(replaying, yes=True)
        lines += [told(found), *replaying.differences(found)]
        data.append({"name": name, **_as_dict(operator, found)})
        equal &= found.result is not None and not found.result["differs"]
    return Verified(lines, data, equal)


def rebuild_counters(parameters: Members, *, as_json: bool) -> None:
    """Put the like counters in Redis anew."""
    with operating(load_settings()) as operator, ReplayScreen("replay counters") as screen:
        result = operator.do("replay", "counters", parameters, screen).result
    show(f"{result['counters']} counters put anew", result, as_json)


def _run(replaying: Replaying, *, yes: bool) -> Replay:
    try:
        return replaying.run(lambda found: yes or _agreed(replaying, found))
    except Interrupted as interrupted:
        typer.echo(f"backlot: {interrupted}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _agreed(replaying: Replaying, found: Replay) -> bool:
    """Whether the operator, having seen what differs, wants the switch."""
    return agrees(f"Switch {found.name} to the new copy?", *replaying.differences(found))


def _as_dict(operator: Operator, found: Replay) -> dict[str, Any]:
    live = checkpoints.look(operator.conn, found.name)
    presented = present_replay(found, live.head if live else found.position)
    return presented.model_dump(mode="json", by_alias=True, exclude_none=True)
