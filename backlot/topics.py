"""`backlot topics`: how publishing and consuming stand, and what is done about dead messages."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot import arguments
from backlot.arguments import ListingGroup, group
from backlot.database import database_url
from backlot.output import Json, given, show, table
from backlot.screen import Yes, require_yes
from infra.errors import OperatorError, UsageError
from infra.settings import load_settings

dead_app = group("Messages that could not be handled; the list of them.", ListingGroup)

OfConsumer = Annotated[str | None, typer.Option("--consumer", help="Only of this consumer.")]
OfTopic = Annotated[
    str | None,
    typer.Option(
        "--topic",
        help="Only of this topic.",
        autocompletion=arguments.completion(arguments.published),
    ),
]


Ids = Annotated[list[int] | None, typer.Argument(help="Of dead messages.", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="All, or all of a consumer.")]
AllLike = Annotated[
    int | None,
    typer.Option(
        "--all-like", metavar="ID", help="All of the consumer, topic and error of that one."
    ),
]


class NoSuchMessage(OperatorError):
    """No dead message has that id."""


class NoMessageNamed(UsageError):
    """Neither some dead messages, nor all of them, nor all like one; or two of these."""


@dead_app.command(name="list")
def list_dead(
    consumer: OfConsumer = None,
    topic: OfTopic = None,
    after: Annotated[int, typer.Option(min=0, help="Only behind this id.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """What is set aside, the oldest first."""
    from backlot.topic_text import looking
    from engine.checkpoints import SubscriptionKind
    from engine.dead_letters import letters

    with looking(load_settings()) as conn:
        require_known(conn, consumer, topic)
        found = letters(
            conn,
            SubscriptionKind.CONSUMER,
            subscription=consumer,
            topic=topic,
            after=after,
            limit=limit,
        )
    rows = [(e.id, e.subscription, e.topic, e.status, e.error) for e in found]
    lines = table(("id", "consumer", "topic", "status", "reason"), rows)
    text = "\n".join(lines) if rows else "nothing is dead"
    show(text, {"items": [each.as_dict() for each in found]}, as_json)


@dead_app.command(name="show")
def show_dead(
    id_: Annotated[int, typer.Argument(metavar="ID", help="Of the message.", show_default=False)],
    as_json: Json = False,
) -> None:
    """One of them: what it says, where it lay, what went wrong."""
    from backlot.topic_text import looking
    from engine import dead_letters
    from engine.checkpoints import SubscriptionKind

    with looking(load_settings()) as conn:
        found = dead_letters.show(conn, SubscriptionKind.CONSUMER, id_)
    if found is None:
        raise NoSuchMessage(f"no dead message has the id {id_}")
    told = found.as_dict()
    lines = [
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in told.items()
    ]
    show("\n".join(lines), told, as_json)


@dead_app.command()
def discard(
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")],
    ids: Ids = None,
    every: Every = False,
    all_like: AllLike = None,
    consumer: OfConsumer = None,
    topic: OfTopic = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Give dead messages up for good; the log keeps who did, when, why, and what they were."""
    from backlot.database import recorded
    from backlot.topic_text import looking
    from engine.checkpoints import SubscriptionKind
    from engine.dead_letters import give_up

    require_choice(ids, every=every, all_like=all_like)
    settings = load_settings()
    with looking(settings) as conn:
        require_known(conn, consumer, topic)
        wanted = chosen_messages(conn, ids, all_like)
        require_yes("Give these messages up for good?", yes=yes)
        asked = given(ids=ids, allLike=all_like, consumer=consumer, topic=topic, reason=reason)
        with recorded(database_url(settings), "discard-dead", "dead messages", asked) as running:
            found = give_up(
                conn, SubscriptionKind.CONSUMER, ids=wanted, subscription=consumer, topic=topic
            )
            if ids and not found:
                raise NoSuchMessage(f"no dead message has the id {', '.join(map(str, ids))}")
            running.result = {"discarded": len(found), "messages": [e.place() for e in found]}
    show(f"{len(found)} given up", {"discarded": len(found)}, as_json)


def require_choice(ids: list[int] | None, *, every: bool, all_like: int | None) -> None:
    """Raise NothingNamed unless it is said in one way which dead messages are meant."""
    if [bool(ids), every, all_like is not None].count(True) != 1:
        raise NoMessageNamed("name dead messages by their ids, or say --all, or --all-like one")


def chosen_messages(
    conn: Connection[Any], ids: list[int] | None, all_like: int | None
) -> list[int] | None:
    """The ids that are meant; None for all of them. Raises NoSuchMessage."""
    from engine.checkpoints import SubscriptionKind
    from engine.dead_letters import alike

    if all_like is None:
        return ids
    found = alike(conn, SubscriptionKind.CONSUMER, all_like)
    if not found:
        raise NoSuchMessage(f"no dead message has the id {all_like}")
    return found


def require_known(conn: Connection[TupleRow], consumer: str | None, topic: str | None) -> None:
    """Raise UnknownName for a consumer that never ran, and a topic that nothing is published to."""
    from engine import dead_letters
    from engine.checkpoints import SubscriptionKind

    consumers, topics = dead_letters.names(conn, SubscriptionKind.CONSUMER)
    if consumer is not None:
        arguments.require("consumer", consumer, consumers)
    if topic is not None:
        arguments.require("topic", topic, topics | arguments.published())


app = group("Published topics, their consumers, dead messages.")
app.add_typer(dead_app, name="dead")


@app.command(name="list")
def list_topics(as_json: Json = False) -> None:
    """The topics, how far each source is published and how far each consumer is."""
    from backlot.topic_text import as_lines, looking
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
    from backlot.topic_text import looking
    from workers import topics as overview

    with looking(load_settings()) as conn:
        found = overview.undelivered(conn, limit)
    rows = [(e.source, e.position, e.topic, e.reason) for e in found]
    lines = table(("source", "position", "topic", "reason"), rows)
    text = "\n".join(lines) if rows else "everything could be published"
    show(text, {"items": [each.as_dict() for each in found]}, as_json)


@app.command()
def redrive(
    ids: Ids = None,
    every: Every = False,
    all_like: AllLike = None,
    consumer: OfConsumer = None,
    topic: OfTopic = None,
    as_json: Json = False,
) -> None:
    """Give dead messages to their consumers again; those that can't be handled are dead again."""
    from backlot.database import operator_name
    from backlot.topic_text import looking
    from engine import dead_letters
    from engine.checkpoints import SubscriptionKind

    require_choice(ids, every=every, all_like=all_like)
    with looking(load_settings()) as conn:
        require_known(conn, consumer, topic)
        chosen = chosen_messages(conn, ids, all_like)
        count = dead_letters.redrive(
            conn,
            SubscriptionKind.CONSUMER,
            actor=operator_name(),
            ids=chosen,
            subscription=consumer,
            topic=topic,
        )
    show(f"{count} to be driven again", {"redriven": count}, as_json)
