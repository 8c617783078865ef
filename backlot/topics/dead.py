"""`backlot topics dead`: messages that a consumer could not read or handle."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot import names
from backlot.group import Listing, group
from backlot.layout import table
from backlot.output import Json, show
from infra.errors import OperatorError
from infra.settings import load_settings

app = group("Messages that could not be handled; the list of them.", Listing)

OfConsumer = Annotated[str | None, typer.Option("--consumer", help="Only of this consumer.")]
OfTopic = Annotated[
    str | None,
    typer.Option(
        "--topic",
        help="Only of this topic.",
        autocompletion=names.completion(names.published),
    ),
]


class NoSuchMessage(OperatorError):
    """No dead message has that id."""


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
        require_known(conn, consumer, topic)
        found = buried(conn, consumer=consumer, topic=topic, after=after, limit=limit)
    rows = [(e.id, e.consumer, e.topic, e.status, e.reason) for e in found]
    lines = table(("id", "consumer", "topic", "status", "reason"), rows)
    text = "\n".join(lines) if rows else "nothing is dead"
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


def require_known(conn: Connection[TupleRow], consumer: str | None, topic: str | None) -> None:
    """Raise UnknownName for a consumer that never ran, and a topic that nothing is published to."""
    from workers.consuming.dead import consumers_and_topics

    consumers, topics = consumers_and_topics(conn)
    if consumer is not None:
        names.require("consumer", consumer, consumers)
    if topic is not None:
        names.require("topic", topic, topics | names.published())
