"""`backlot projections`: what operators do about read models; HTTP has the same actions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, cast
from uuid import UUID

import typer

from backlot import arguments
from backlot.arguments import group
from backlot.output import Json, given, show, table
from backlot.screen import Yes, require_yes
from domain.operation import Members
from infra.errors import ExitCode, UsageError
from infra.settings import load_settings
from infra.settings.features import MAX_REPLAY_WORKERS

if TYPE_CHECKING:
    from backlot.operator import Operator

app = group("Read models: state, replay, verify, rollback.")
parked_app = group("Events that could not be applied.")
app.add_typer(parked_app, name="parked")

ITS_NAME = typer.Argument(
    help="The projection.",
    show_default=False,
    callback=arguments.projection,
    autocompletion=arguments.completion(arguments.projections),
)
Name = Annotated[str, ITS_NAME]
Position = Annotated[int, typer.Argument(min=1, help="The event's position.", show_default=False)]
Which = Annotated[
    int | None, typer.Argument(min=1, help="The event's position; default: all that wait.")
]
OrAlike = Annotated[int | None, typer.Argument(min=1, help="The event's position.")]
AllLike = Annotated[
    int | None,
    typer.Option(
        "--all-like",
        min=1,
        metavar="POSITION",
        help="All of the topic and the error of the event at that position.",
    ),
]
Why = Annotated[str, typer.Option("--reason", help="Why; it is kept with the event.")]
OrAll = Annotated[str | None, ITS_NAME]
All = Annotated[bool, typer.Option("--all", help="Every projection.")]
Reason = Annotated[str | None, typer.Option(help="Why, for whoever reads the log later.")]
OfReplay = Annotated[bool, typer.Option("--replay", help="Its replay, not the projection itself.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Leave it to a running Backlot, and return at once.")
]

# They have no copies; the modules that know them are slow to load.
IN_PLACE = ("analytics", "feedback")


class NotOne(UsageError):
    """An event and all that are like one were named, or neither."""


class NothingNamed(UsageError):
    """Neither one projection nor all of them."""


def _operating() -> AbstractContextManager[Operator]:
    from backlot.operator import operating

    return operating(load_settings())


def _act(action: str, name: str, **parameters: object) -> Members:
    """Carry out an action with the parameters that are given; return its result."""
    with _operating() as operator:
        return operator.do(action, name, given(**parameters)).result


def _do(action: str, name: str, as_json: bool, **parameters: object) -> None:
    """Carry out an action, and show its result in one line."""
    result = _act(action, name, **parameters)
    words = [f"{action} {name}: done", *(f"{key} {value}" for key, value in result.items())]
    show(", ".join(words), {"outcome": "done", **result}, as_json)


@app.command()
def estimate(name: Name, as_json: Json = False) -> None:
    """What a replay would take: events, the time that the last one tells, disk of a second copy."""
    from engine.inspection.index import Audit
    from readapi.replays import estimate as estimated

    with _operating() as operator:
        audit = operator.tools.models[Audit.name]
        found = estimated(operator.conn, operator.projection(name), cast("Audit", audit))
    seconds = found.expected_seconds
    how_long = "no replay has told how long" if seconds is None else f"about {seconds:,.0f} s"
    size = f"{found.disk_bytes / 1e6:,.1f} MB for a second copy"
    text = f"{name}: {found.events:,} events of {found.positions:,} positions, {how_long}, {size}"
    show(text, json.loads(found.to_json()), as_json)


@parked_app.command(name="list")
def list_parked(
    name: Name,
    after: Annotated[int, typer.Option(min=0, help="Only behind this position.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """What is set aside, the discarded included, by position."""
    from engine.parked_events import parked as page
    from engine.parked_events import with_deciders

    with _operating() as operator:
        schema = operator.projection(name).schema
        parked = page(operator.conn, schema, after=after, limit=limit)
        found = with_deciders(parked, operator.persons)
    rows = [(e.position, e.status, e.topic, e.error) for e in found]
    lines = table(("position", "status", "topic", "error"), rows)
    text = "\n".join(lines) if rows else "nothing is set aside"
    show(text, {"items": [each.as_dict() for each in found]}, as_json)


@parked_app.command(name="show")
def show_parked(name: Name, position: Position, as_json: Json = False) -> None:
    """One of them: what it says, what went wrong, and who decided what."""
    from engine.parked_events import show as look

    with _operating() as operator:
        schema = operator.projection(name).schema
        found = look(operator.conn, schema, position, persons=operator.persons).as_dict()
    lines = [
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in found.items()
    ]
    show("\n".join(lines), found, as_json)


@parked_app.command()
def retry(
    name: Name,
    position: Which = None,
    all_like: AllLike = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also behind later events of its stream.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try to apply them after all. Exit code 1: some could not be."""
    if position is not None and all_like is not None:
        raise NotOne("name one event by its position, or say --all-like, not both")
    result = _act("retry", name, position=position, allLike=all_like, force=force)
    events = result["events"] if isinstance(result["events"], list) else []
    lines = [f"{event['position']:>10}  {event['outcome']}" for event in events]
    show("\n".join(lines) or "nothing is set aside", result, as_json)
    applied = all(event["outcome"] == "applied" for event in events)
    raise typer.Exit(ExitCode.DONE if applied else ExitCode.NOT_WELL)


@parked_app.command()
def discard(
    name: Name,
    reason: Why,
    position: OrAlike = None,
    all_like: AllLike = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Leave them out for good; they stay listed, with who, when and why."""
    if (position is None) == (all_like is None):
        raise NotOne("name one event by its position, or say --all-like")
    which = (
        f"the event at {position}" if all_like is None else f"all events like that at {all_like}"
    )
    require_yes(f"Leave {which} out of {name}?", yes=yes)
    result = _act("discard", name, position=position, allLike=all_like, reason=reason)
    count = f"{result['discarded']} events" if all_like else f"position {position}"
    show(f"discard {name}: done, {count}", {"outcome": "done", **result}, as_json)


@parked_app.command()
def park(
    name: Name, reason: Why, all_like: AllLike = None, yes: Yes = False, as_json: Json = False
) -> None:
    """Set aside the event that it stopped in front of, and let it go on without.

    With --all-like, also whatever of the log as it is now fails in the same way.
    """
    which = f"all events like that at {all_like}" if all_like else "that event"
    require_yes(f"Let {name} go on without {which}?", yes=yes)
    result = _act("park", name, allLike=all_like, reason=reason)
    told = [f"park {name}: done, position {result['position']}"]
    told += [str(result[member]) for member in ("note", "error") if member in result]
    show("\n".join(told), {"outcome": "done", **result}, as_json)


@app.command(name="list")
def list_projections(as_json: Json = False) -> None:
    """All projections: status, position, lag, parked events. Exit code 1: one needs help."""
    from backlot.projections.text import as_table, in_trouble, read_statuses

    found = read_statuses(load_settings()).values()
    items = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in found]
    show("\n".join(as_table(found)), {"items": items}, as_json)
    raise typer.Exit(ExitCode.NOT_WELL if any(map(in_trouble, found)) else ExitCode.DONE)


@app.command(name="show")
def show_projection(name: Name, as_json: Json = False) -> None:
    """One projection with its copies, its rate and its replay. Exit code 1: it needs help."""
    from backlot.projections.text import as_lines, in_trouble, read_statuses

    statuses = read_statuses(load_settings(), twice=True)
    found = statuses[arguments.require("projection", name, statuses)]
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

    `counters` are the like counters in Redis; `analytics` and `feedback` are mended where they are.
    Exit code 3: something differs, and nothing was changed; the copies wait for `backlot
    projections confirm`.
    """
    from backlot.projections.replay import carry, rebuild_counters, rebuild_in_place

    asked = given(to=to, yes=yes, reason=reason)
    if name == "counters":
        rebuild_counters(given(reason=reason), as_json=as_json)
        return
    if name in IN_PLACE:
        raise typer.Exit(rebuild_in_place(name, "replay", asked, detach=detach, as_json=as_json))
    asked["workers"] = workers
    raise typer.Exit(carry("replay", name, asked, yes=yes, detach=detach, as_json=as_json))


@app.command()
def rollback(
    name: Name,
    yes: Yes = False,
    reason: Reason = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Bring the previous copy up to date, and make it the live one again."""
    from backlot.projections.replay import carry

    require_yes(f"Switch {name} back to its previous copy?", yes=yes)
    parameters = given(reason=reason)
    raise typer.Exit(carry("rollback", name, parameters, yes=True, detach=detach, as_json=as_json))


@app.command()
def verify(
    name: OrAll = None, every: All = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Build it again aside and compare; changes nothing. Exit code 1: some rows differ."""
    from backlot.projections import replay as work

    asked = given(reason=reason)
    if name in IN_PLACE:
        code = work.rebuild_in_place(name, "verify", asked, detach=False, as_json=as_json)
        raise typer.Exit(code)
    with _operating() as operator:
        names = _names(operator, name, every=every)
        code = work.verify(operator, names, asked, listed=every, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def completeness(
    name: OrAll = None, every: All = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Prove that no event was left out or counted twice. Exit code 1: one was."""
    from backlot.projections.text import accounted

    with _operating() as operator:
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
    _do("pause", name, as_json, replay=of_replay, reason=reason)


@app.command()
def resume(
    name: Name, of_replay: OfReplay = False, reason: Reason = None, as_json: Json = False
) -> None:
    """Let it, or its replay, go on; a replay is carried on by a running Backlot, or `replay`."""
    _do("resume", name, as_json, replay=of_replay, reason=reason)


@app.command()
def cancel(name: Name, reason: Reason = None, as_json: Json = False) -> None:
    """Give its replay up, and drop what it has built."""
    _do("cancel", name, as_json, reason=reason)


@app.command()
def confirm(name: Name, reason: Reason = None, as_json: Json = False) -> None:
    """Let its replay switch although the copies differ; a running Backlot, or `replay`, does."""
    _do("confirm", name, as_json, reason=reason)


@app.command(name="drop-old")
def drop_old(name: Name, yes: Yes = False, reason: Reason = None, as_json: Json = False) -> None:
    """Remove the previous copy, which `rollback` would go back to."""
    require_yes(f"Remove the previous copy of {name}?", yes=yes)
    _do("drop-old", name, as_json, reason=reason)


@app.command(name="drop-look")
def drop_look(
    name: Name,
    position: Annotated[int, typer.Argument(min=1, help="Of the look.", show_default=False)],
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Remove the look at the past that `replay --to` has made at a position."""
    _do("drop-look", name, as_json, position=position, reason=reason)


@app.command(name="carry-out", hidden=True)
def carry_out(operation_id: str) -> None:
    """Carry an operation out for the process that started this one, and stop when it ends."""
    from backlot.projections.replay import run_operation

    run_operation(load_settings(), UUID(operation_id))


def _names(operator: Operator, name: str | None, *, every: bool) -> Sequence[str]:
    if (name is None) is not every:
        raise NothingNamed("name one projection, or say --all")
    return sorted(operator.tools.models) if name is None else [name]
