"""`backlot topics`: how publishing and consuming stand, and what is done about dead messages."""

from __future__ import annotations

from typing import Annotated

import typer

from backlot.group import group
from backlot.layout import table
from backlot.output import Json, show
from backlot.topics import dead
from infra.settings import load_settings

app = group("Published topics, their consumers, dead messages.")
app.add_typer(dead.app, name="dead")


@app.command(name="list")
def list_topics(as_json: Json = False) -> None:
    """The topics, how far each source is published and how far each consumer is."""
    from backlot.topics.reading import looking
    from backlot.topics.text import as_lines
    from workers import topics as overview

    with looking(load_settings()) as conn:
        relay, consumers = overview.relayed(conn), overview.consumer_places(conn)
    told = {
        "topics": overview.topics(),
        "relay": [each.as_dict() for each in relay],
        "consumers": [each.as_dict() for each in consumers],
    }
    show("\n".join(as_lines(relay, consumers)), told, as_json)


@app.command()
def undelivered(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """What the relay could not publish at all, and why."""
    from backlot.topics.reading import looking
    from workers import topics as overview

    with looking(load_settings()) as conn:
        found = overview.undelivered(conn, limit)
    rows = [(e.source, e.position, e.topic, e.reason) for e in found]
    lines = table(("source", "position", "topic", "reason"), rows)
    text = "\n".join(lines) if rows else "everything could be published"
    show(text, {"items": [each.as_dict() for each in found]}, as_json)


@app.command()
def redrive(
    ids: dead.Ids = None,
    every: dead.Every = False,
    all_like: dead.AllLike = None,
    consumer: dead.OfConsumer = None,
    topic: dead.OfTopic = None,
    as_json: Json = False,
) -> None:
    """Give dead messages to their consumers again; those that can't be handled are dead again."""
    from backlot.recorded import operator_name
    from backlot.topics.reading import looking
    from engine import dead_letters
    from engine.checkpoints import SubscriptionKind

    dead.require_choice(ids, every=every, all_like=all_like)
    with looking(load_settings()) as conn:
        dead.require_known(conn, consumer, topic)
        chosen = dead.chosen(conn, ids, all_like)
        count = dead_letters.redrive(
            conn,
            SubscriptionKind.CONSUMER,
            actor=operator_name(),
            ids=chosen,
            subscription=consumer,
            topic=topic,
        )
    show(f"{count} to be driven again", {"redriven": count}, as_json)
