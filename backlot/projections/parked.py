"""`backlot projections parked`: events that a projection could not apply and set aside."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from backlot import names
from backlot.group import group
from backlot.layout import table
from backlot.output import Json, given, show
from backlot.question import Yes, require_yes
from domain.operation import Members
from infra.codec import MAPPER
from infra.errors import ExitCode, UsageError
from infra.settings import load_settings

app = group("Events that could not be applied.")

ITS_NAME = typer.Argument(
    help="The projection.",
    show_default=False,
    callback=names.projection,
    autocompletion=names.completion(names.projections),
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


class NotOne(UsageError):
    """An event and all that are like one were named, or neither."""


@app.command(name="list")
def list_parked(
    name: Name,
    after: Annotated[int, typer.Option(min=0, help="Only behind this position.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """What is set aside, the discarded included, by position."""
    from backlot.projections.operating import operating
    from projections.parking.parked import parked as page

    with operating(load_settings()) as operator:
        schema = operator.projection(name).schema
        found = page(operator.conn, schema, after=after, limit=limit)
    rows = [(e.position, e.status, e.topic, e.error) for e in found]
    lines = table(("position", "status", "topic", "error"), rows)
    text = "\n".join(lines) if rows else "nothing is set aside"
    show(text, {"items": [each.as_dict() for each in found]}, as_json)


@app.command(name="show")
def show_parked(name: Name, position: Position, as_json: Json = False) -> None:
    """One of them: what it says, what went wrong, and who decided what."""
    from backlot.projections.operating import operating
    from projections.parking.parked import show as look

    with operating(load_settings()) as operator:
        schema = operator.projection(name).schema
        found = look(operator.conn, schema, position, mapper=MAPPER).as_dict()
    lines = [
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in found.items()
    ]
    show("\n".join(lines), found, as_json)


@app.command()
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
    from backlot.projections.operating import operating

    if position is not None and all_like is not None:
        raise NotOne("name one event by its position, or say --all-like, not both")
    with operating(load_settings()) as operator:
        asked = given(position=position, allLike=all_like, force=force)
        result = operator.do("retry", name, asked).result
    events = result["events"] if isinstance(result["events"], list) else []
    lines = [f"{event['position']:>10}  {event['outcome']}" for event in events]
    show("\n".join(lines) or "nothing is set aside", result, as_json)
    applied = all(event["outcome"] == "applied" for event in events)
    raise typer.Exit(ExitCode.DONE if applied else ExitCode.NOT_WELL)


@app.command()
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
    result = _do("discard", name, given(position=position, allLike=all_like, reason=reason))
    count = f"{result['discarded']} events" if all_like else f"position {position}"
    show(f"discard {name}: done, {count}", {"outcome": "done", **result}, as_json)


@app.command()
def park(
    name: Name, reason: Why, all_like: AllLike = None, yes: Yes = False, as_json: Json = False
) -> None:
    """Set aside the event that it stopped in front of, and let it go on without.

    With --all-like, also whatever of the log as it is now fails in the same way.
    """
    which = f"all events like that at {all_like}" if all_like else "that event"
    require_yes(f"Let {name} go on without {which}?", yes=yes)
    result = _do("park", name, given(allLike=all_like, reason=reason))
    told = [f"park {name}: done, position {result['position']}"]
    told += [str(result[member]) for member in ("note", "error") if member in result]
    show("\n".join(told), {"outcome": "done", **result}, as_json)


def _do(action: str, name: str, parameters: dict[str, object]) -> Members:
    from backlot.projections.operating import operating

    with operating(load_settings()) as operator:
        return operator.do(action, name, parameters).result
