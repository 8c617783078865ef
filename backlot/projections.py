"""`backlot projections`: what operators do about read models; HTTP has the same actions."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backlot import parked
from backlot.output import Json, show
from infra.errors import OperatorError
from infra.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backlot.operating import Operator
    from backlot.replaying import Replaying
    from projections.replays import Replay

DIFFERS = 1
UNCONFIRMED = 3
INTERRUPTED = 130

app = typer.Typer(help="Read models: state, replay, verify, rollback.", no_args_is_help=True)
app.add_typer(parked.app, name="parked")

Name = Annotated[str, typer.Argument(help="The projection.", show_default=False)]
OrAll = Annotated[str | None, typer.Argument(help="The projection.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Every projection.")]
Reason = Annotated[str | None, typer.Option(help="Why, for whoever reads the log later.")]
OfReplay = Annotated[bool, typer.Option("--replay", help="Its replay, not the projection itself.")]
Yes = Annotated[bool, typer.Option("--yes", help="Ask nothing.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Leave it to a running Backlot, and return at once.")
]


class NothingNamed(OperatorError):
    """Neither one projection nor all of them."""


@app.callback()
def projections() -> None:
    """Read models: state, replay, verify, rollback."""


@app.command(name="list")
def list_projections(as_json: Json = False) -> None:
    """All projections: status, position, lag, parked events, replay."""
    from backlot.projection_lines import as_table
    from backlot.projection_reading import read_statuses

    found = read_statuses(load_settings()).values()
    items = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in found]
    show("\n".join(as_table(found)), {"items": items}, as_json)


@app.command(name="show")
def show_projection(name: Name, as_json: Json = False) -> None:
    """One projection with its copies, its rate and its replay."""
    from backlot.operating import NoSuchProjection
    from backlot.projection_lines import as_lines
    from backlot.projection_reading import read_statuses

    found = read_statuses(load_settings(), twice=True).get(name)
    if found is None:
        raise NoSuchProjection(f"there is no projection {name!r}")
    told = found.model_dump(mode="json", by_alias=True, exclude_none=True)
    show("\n".join(as_lines(found)), told, as_json)


@app.command()
def replay(
    name: Name,
    to: Annotated[
        int | None, typer.Option(min=1, help="Stop at this position: a look at the past.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share it.")] = 1,
    yes: Yes = False,
    reason: Reason = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Build it again beside the live copy, compare, switch; goes on with an unfinished one.

    Exit code 3: the copies differ, and the replay waits for `backlot projections confirm`.
    """
    parameters = {"to": to, "yes": yes, "workers": workers, "reason": reason}
    _carry("replay", name, parameters, yes=yes, detach=detach, as_json=as_json)


@app.command()
def rollback(
    name: Name,
    yes: Yes = False,
    reason: Reason = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Bring the previous copy up to date, and make it the live one again."""
    if not yes and not detach:
        typer.confirm(f"Switch {name} back to its previous copy?", abort=True, err=True)
    _carry("rollback", name, {"reason": reason}, yes=True, detach=detach, as_json=as_json)


@app.command()
def verify(
    name: OrAll = None, every: All = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Build it again aside and compare; changes nothing. Exit code 1: some rows differ."""
    from backlot.operating import operating
    from backlot.projection_lines import differences, told
    from backlot.replaying import Replaying

    with operating(load_settings()) as operator:
        found = [
            _run(Replaying(operator, "verify", each, _given(reason=reason)), yes=True)
            for each in _names(operator, name, every=every)
        ]
        data = [{"name": each.name, **_as_dict(operator, each)} for each in found]
    lines = [line for each in found for line in (told(each), *differences(each.result))]
    show("\n".join(lines), {"items": data} if every else data[0], as_json)
    raise typer.Exit(DIFFERS if any(not _is_verified(each) for each in found) else 0)


@app.command()
def completeness(
    name: OrAll = None, every: All = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Prove that no event was left out or counted twice. Exit code 1: one was."""
    from backlot.operating import operating
    from backlot.projection_lines import accounted

    with operating(load_settings()) as operator:
        data = [
            operator.do("completeness", each, _given(reason=reason)).result
            for each in _names(operator, name, every=every)
        ]
    lines = [line for each in data for line in accounted(each)]
    show("\n".join(lines), {"items": data} if every else data[0], as_json)
    raise typer.Exit(0 if all(each["complete"] for each in data) else DIFFERS)


@app.command()
def pause(
    name: Name, of_replay: OfReplay = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Let it, or its replay, rest where it stands, in whichever process it runs."""
    _do("pause", name, {"replay": of_replay or None, "reason": reason}, as_json)


@app.command()
def resume(
    name: Name, of_replay: OfReplay = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Let it, or its replay, go on; a replay is carried on by a running Backlot, or `replay`."""
    _do("resume", name, {"replay": of_replay or None, "reason": reason}, as_json)


@app.command()
def cancel(name: Name, reason: Reason = None, as_json: Json = False) -> None:
    """Give its replay up, and drop what it has built."""
    _do("cancel", name, {"reason": reason}, as_json)


@app.command()
def confirm(name: Name, reason: Reason = None, as_json: Json = False) -> None:
    """Let its replay switch although the copies differ; a running Backlot, or `replay`, does."""
    _do("confirm", name, {"reason": reason}, as_json)


@app.command(name="drop-old")
def drop_old(name: Name, yes: Yes = False, reason: Reason = None, as_json: Json = False) -> None:
    """Remove the previous copy, which `rollback` would go back to."""
    if not yes:
        typer.confirm(f"Remove the previous copy of {name}?", abort=True, err=True)
    _do("drop-old", name, {"reason": reason}, as_json)


@app.command(name="carry-out", hidden=True)
def carry_out(operation_id: str) -> None:
    """Carry an operation out for the process that started this one, and stop when it ends."""
    from uuid import UUID

    from backlot.carrying import run_operation

    run_operation(load_settings(), UUID(operation_id))


def _given(**parameters: Any) -> dict[str, object]:
    """Those that were given: what is not said is not recorded."""
    return {name: value for name, value in parameters.items() if value not in (None, False)}


def _names(operator: Operator, name: str | None, *, every: bool) -> Sequence[str]:
    if (name is None) is not every:
        raise NothingNamed("name one projection, or say --all")
    return sorted(operator.models) if name is None else [name]


def _is_verified(found: Replay) -> bool:
    return found.state == "verified" and found.result is not None and not found.result["differs"]


def _do(action: str, name: str, parameters: dict[str, Any], as_json: bool) -> None:
    from backlot.operating import operating

    with operating(load_settings()) as operator:
        ended = operator.do(action, name, _given(**parameters))
    words = [f"{action} {name}: {ended.outcome}", *(f"{k} {v}" for k, v in ended.result.items())]
    show(", ".join(words), {"outcome": str(ended.outcome), **ended.result}, as_json)


def _carry(
    action: str, name: str, parameters: dict[str, Any], *, yes: bool, detach: bool, as_json: bool
) -> None:
    from backlot.operating import operating
    from backlot.replaying import Replaying

    with operating(load_settings()) as operator:
        replaying = Replaying(operator, action, name, _given(**parameters))
        if detach:
            operation = str(replaying.detach())
            show(f"requested: operation {operation}", {"operationId": operation}, as_json)
            return
        found = _run(replaying, yes=yes)
        show("\n".join(_told(found)), _as_dict(operator, found), as_json)
    raise typer.Exit(_code(found))


def _run(replaying: Replaying, *, yes: bool) -> Replay:
    from backlot.replaying import Interrupted

    try:
        return replaying.run(lambda found: yes or _agreed(found))
    except Interrupted as interrupted:
        typer.echo(f"backlot: {interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _agreed(found: Replay) -> bool:
    """Whether the operator, having seen what differs, wants the switch; nobody there: no."""
    from backlot.projection_lines import differences

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    typer.echo("\n".join(differences(found.result or {})), err=True)
    return typer.confirm(f"Switch {found.name} to the new copy?", err=True)


def _told(found: Replay) -> list[str]:
    from backlot.projection_lines import differences, told

    differs = found.result is not None and found.result["differs"]
    return [told(found), *(differences(found.result) if found.result and differs else ())]


def _as_dict(operator: Operator, found: Replay) -> dict[str, Any]:
    from projections import positions
    from readapi.projection_status import present_replay

    live = positions.look(operator.conn, found.name)
    told = present_replay(found, live.head if live else found.position)
    return told.model_dump(mode="json", by_alias=True, exclude_none=True)


def _code(found: Replay) -> int:
    """0 for what was wanted, 3 for what waits to be confirmed, 1 for any other end or rest."""
    if not found.finished:
        return 1 if found.paused else UNCONFIRMED
    return int(found.state in ("cancelled", "failed"))
