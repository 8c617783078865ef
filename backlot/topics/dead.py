"""`backlot topics dead`: messages that a consumer could not read or handle."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from backlot.output import Json, show
from infra.errors import OperatorError
from infra.settings import load_settings

app = typer.Typer(help="Messages that could not be handled.", no_args_is_help=True)

OfConsumer = Annotated[str | None, typer.Option("--consumer", help="Only of this consumer.")]
OfTopic = Annotated[str | None, typer.Option("--topic", help="Only of this topic.")]


class NoSuchMessage(OperatorError):
    """No dead message has that id."""


@app.callback()
def dead() -> None:
    """Messages that could not be handled."""


@app.command(name="list")
def list_dead(
    consumer: OfConsumer = None,
    topic: OfTopic = None,
    after: Annotated[int, typer.Option(min=0, help="Only behind this id.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """What is set aside, the oldest first."""
    from backlot.topics.reading import looking
    from workers.consuming.dead import buried

    with looking(load_settings()) as conn:
        found = buried(conn, consumer=consumer, topic=topic, after=after, limit=limit)
    lines = [
        f"{e.id:>8}  {e.consumer:<12}  {e.topic:<18}  {e.status:<7}  {e.reason}" for e in found
    ]
    text = "\n".join(lines) or "nothing is dead"
    show(text, {"items": [each.as_dict() for each in found]}, as_json)


@app.command(name="show")
def show_dead(
    id_: Annotated[int, typer.Argument(metavar="ID", help="Of the message.", show_default=False)],
    as_json: Json = False,
) -> None:
    """One of them: what it says, where it lay, what went wrong."""
    from backlot.topics.reading import looking
    from workers.consuming.dead import show as look

    with looking(load_settings()) as conn:
        found = look(conn, id_)
    if found is None:
        raise NoSuchMessage(f"no dead message has the id {id_}")
    told = found.as_dict()
    lines = [
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in told.items()
    ]
    show("\n".join(lines), told, as_json)
