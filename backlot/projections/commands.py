"""`backlot projections`: what operators do about read models; HTTP has the same actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from backlot.group import group
from backlot.output import Json, given, show
from backlot.projections import parked
from backlot.projections.parked import Name
from backlot.question import Yes, require_yes
from infra.errors import ExitCode, UsageError
from infra.settings import load_settings
from infra.settings.features import MAX_REPLAY_WORKERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backlot.projections.operating import Operator

app = group("Read models: state, replay, verify, rollback.")
app.add_typer(parked.app, name="parked")

OrAll = Annotated[str | None, parked.ITS_NAME]
All = Annotated[bool, typer.Option("--all", help="Every projection.")]
Reason = Annotated[str | None, typer.Option(help="Why, for whoever reads the log later.")]
OfReplay = Annotated[bool, typer.Option("--replay", help="Its replay, not the projection itself.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Leave it to a running Backlot, and return at once.")
]


class NothingNamed(UsageError):
    """Neither one projection nor all of them."""


@app.command(name="list")
def list_projections(as_json: Json = False) -> None:
    """All projections: status, position, lag, parked events. Exit code 1: one needs help."""
    from backlot.projections.lines import as_table, in_trouble
    from backlot.projections.reading import read_statuses

    found = read_statuses(load_settings()).values()
    items = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in found]
    show("\n".join(as_table(found)), {"items": items}, as_json)
    raise typer.Exit(ExitCode.NOT_WELL if any(map(in_trouble, found)) else ExitCode.DONE)


@app.command(name="show")
def show_projection(name: Name, as_json: Json = False) -> None:
    """One projection with its copies, its rate and its replay. Exit code 1: it needs help."""
    from backlot.names import require
    from backlot.projections.lines import as_lines, in_trouble
    from backlot.projections.reading import read_statuses

    statuses = read_statuses(load_settings(), twice=True)
    found = statuses[require("projection", name, statuses)]
    told = found.model_dump(mode="json", by_alias=True, exclude_none=True)
    show("\n".join(as_lines(found)), told, as_json)
    raise typer.Exit(ExitCode.NOT_WELL if in_trouble(found) else ExitCode.DONE)


@app.command()
def replay(
    name: Name,
    to: Annotated[
        int | None, typer.Option(min=1, help="Stop at this position: a look at the past.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=MAX_REPLAY_WORKERS, help="Processes that share it.")
    ] = 1,
    yes: Yes = False,
    reason: Reason = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Build it again beside the live copy, compare, switch; goes on with an unfinished one.

    `counters` are the like counters in Redis; `analytics` are mended where they are. Exit code 3:
    something differs, and nothing was changed; the copies wait for `backlot projections confirm`.
    """
    from backlot.projections.runs import carry, rebuild_counters

    if name == "counters":
        rebuild_counters(given(reason=reason), as_json=as_json)
        return
    if name == "analytics":
        from backlot.projections.analytics import rebuild

        parameters = given(to=to, yes=yes, reason=reason)
        raise typer.Exit(rebuild("replay", parameters, detach=detach, as_json=as_json))
    parameters = given(to=to, yes=yes, workers=workers, reason=reason)
    raise typer.Exit(carry("replay", name, parameters, yes=yes, detach=detach, as_json=as_json))


@app.command()
def rollback(
    name: Name,
    yes: Yes = False,
    reason: Reason = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Bring the previous copy up to date, and make it the live one again."""
    from backlot.projections.runs import carry

    require_yes(f"Switch {name} back to its previous copy?", yes=yes)
    parameters = given(reason=reason)
    raise typer.Exit(carry("rollback", name, parameters, yes=True, detach=detach, as_json=as_json))


@app.command()
def verify(
    name: OrAll = None, every: All = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Build it again aside and compare; changes nothing. Exit code 1: some rows differ."""
    from backlot.projections.operating import operating
    from backlot.projections.runs import verify_all

    if name == "analytics":
        from backlot.projections.analytics import rebuild

        raise typer.Exit(rebuild("verify", given(reason=reason), detach=False, as_json=as_json))
    with operating(load_settings()) as operator:
        names = _names(operator, name, every=every)
        lines, data, equal = verify_all(operator, names, given(reason=reason))
    show("\n".join(lines), {"items": data} if every else data[0], as_json)
    raise typer.Exit(ExitCode.DONE if equal else ExitCode.NOT_WELL)


@app.command()
def completeness(
    name: OrAll = None, every: All = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Prove that no event was left out or counted twice. Exit code 1: one was."""
    from backlot.projections.lines import accounted
    from backlot.projections.operating import operating

    with operating(load_settings()) as operator:
        data = [
            operator.do("completeness", each, given(reason=reason)).result
            for each in _names(operator, name, every=every)
        ]
    lines = [line for each in data for line in accounted(each)]
    show("\n".join(lines), {"items": data} if every else data[0], as_json)
    complete = all(each["complete"] for each in data)
    raise typer.Exit(ExitCode.DONE if complete else ExitCode.NOT_WELL)


@app.command()
def pause(
    name: Name, of_replay: OfReplay = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Let it, or its replay, rest where it stands, in whichever process it runs."""
    _do("pause", name, given(replay=of_replay, reason=reason), as_json)


@app.command()
def resume(
    name: Name, of_replay: OfReplay = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Let it, or its replay, go on; a replay is carried on by a running Backlot, or `replay`."""
    _do("resume", name, given(replay=of_replay, reason=reason), as_json)


@app.command()
def cancel(name: Name, reason: Reason = None, as_json: Json = False) -> None:
    """Give its replay up, and drop what it has built."""
    _do("cancel", name, given(reason=reason), as_json)


@app.command()
def confirm(name: Name, reason: Reason = None, as_json: Json = False) -> None:
    """Let its replay switch although the copies differ; a running Backlot, or `replay`, does."""
    _do("confirm", name, given(reason=reason), as_json)


@app.command(name="drop-old")
def drop_old(name: Name, yes: Yes = False, reason: Reason = None, as_json: Json = False) -> None:
    """Remove the previous copy, which `rollback` would go back to."""
    require_yes(f"Remove the previous copy of {name}?", yes=yes)
    _do("drop-old", name, given(reason=reason), as_json)


@app.command(name="drop-look")
def drop_look(
    name: Name,
    position: Annotated[int, typer.Argument(min=1, help="Of the look.", show_default=False)],
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Remove the look at the past that `replay --to` has made at a position."""
    _do("drop-look", name, given(position=position, reason=reason), as_json)


@app.command(name="carry-out", hidden=True)
def carry_out(operation_id: str) -> None:
    """Carry an operation out for the process that started this one, and stop when it ends."""
    from uuid import UUID

    from backlot.projections.carrying import run_operation

    run_operation(load_settings(), UUID(operation_id))


def _names(operator: Operator, name: str | None, *, every: bool) -> Sequence[str]:
    if (name is None) is not every:
        raise NothingNamed("name one projection, or say --all")
    return sorted(operator.models) if name is None else [name]


def _do(action: str, name: str, parameters: dict[str, object], as_json: bool) -> None:
    from backlot.projections.operating import operating

    with operating(load_settings()) as operator:
        ended = operator.do(action, name, parameters)
    words = [f"{action} {name}: {ended.outcome}", *(f"{k} {v}" for k, v in ended.result.items())]
    show(", ".join(words), {"outcome": str(ended.outcome), **ended.result}, as_json)
