"""`backlot topics`: how publishing and consuming stand, and what is done about dead messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer
from psycopg import Connection
from psycopg.rows import TupleRow, class_row
from pydantic.alias_generators import to_camel

from backlot.arguments import ListingGroup, completion, group, require, require_one_way
from backlot.database import database_at_hand, database_url, operator_name, recorded
from backlot.output import Json, given, show, show_table, table
from backlot.screen import Yes, require_yes
from domain.operation import DEAD_MESSAGES, DISCARD_MESSAGES
from engine import dead_letters
from engine.checkpoints import SubscriptionKind
from engine.event_store import EVENTS
from infra.errors import OperatorError
from infra.http.shapes import rfc3339
from infra.postgres.connection import open_connection
from infra.settings import Settings, load_settings

R = TypeVar("R")

CONSUMER = SubscriptionKind.CONSUMER
# A consumer's lag is known here where it follows the log; with Kafka its metric tells.
RELAY = f"""
WITH heads AS (
    SELECT 'events' AS source, coalesce(max(notification_id), 0) AS head FROM {EVENTS}
    UNION ALL SELECT 'telemetry', coalesce(max(seq), 0) FROM public.backlot_telemetry)
SELECT h.source, r.position, h.head, h.head - coalesce(r.position, 0) AS lag_events, r.updated_at
FROM heads h LEFT JOIN backlot_checkpoints r ON r.kind = 'relay' AND r.source = h.source
ORDER BY h.source
""".encode()
CONSUMERS = b"""
SELECT subscription AS consumer, source, partition, position, updated_at,
       (SELECT count(*) FROM backlot_dead_letters d
        WHERE d.kind = c.kind AND d.subscription = c.subscription) AS dead
FROM backlot_checkpoints c WHERE kind = 'consumer' ORDER BY subscription, source, partition
"""
UNDELIVERED = b"""
SELECT source, position, topic, error AS reason, message_id::text, key, rejected_at AS noticed_at
FROM backlot_dead_letters WHERE kind = 'relay' ORDER BY source, position LIMIT %s
"""


def published_topics() -> frozenset[str]:
    """Return the topics of the messages that are published and consumed."""
    from projections.integration_events import TOPICS

    return frozenset(TOPICS)


OfConsumer = Annotated[str | None, typer.Option("--consumer", help="Only of this consumer.")]
OfTopic = Annotated[
    str | None,
    typer.Option(
        "--topic", help="Only of this topic.", autocompletion=completion(published_topics)
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
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")]

app = group("Published topics, their consumers, dead messages.")
dead_app = group("Messages that could not be handled; the list of them.", ListingGroup)
app.add_typer(dead_app, name="dead")


class NoSuchMessage(OperatorError):
    """No dead message has these ids."""

    def __init__(self, *ids: int) -> None:
        super().__init__(f"no dead message has the id {', '.join(map(str, ids))}")


@contextmanager
def looking(settings: Settings) -> Iterator[Connection[TupleRow]]:
    """Yield a connection to the database at hand; raise DatabaseAway, whenever it goes away."""
    url = database_url(settings)
    with database_at_hand(), open_connection(url, "operator") as conn:
        yield conn


@dataclass(frozen=True)
class ReportRow:
    """A row of a report."""

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it: names in camelCase, times as RFC 3339."""
        return {
            to_camel(name): rfc3339(value) if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class RelayProgress(ReportRow):
    """How far a source is published; no position where no relay has ever run."""

    source: str
    position: int | None
    head: int
    lag_events: int
    updated_at: datetime | None


@dataclass(frozen=True)
class ConsumerPlace(ReportRow):
    """How far a consumer is in a partition of a source, and how many of its messages are dead."""

    consumer: str
    source: str
    partition: int
    position: int
    dead: int
    updated_at: datetime


@dataclass(frozen=True)
class UndeliveredMessage(ReportRow):
    """Something recorded that the relay could not publish."""

    source: str
    position: int
    topic: str
    reason: str
    message_id: str | None
    key: str | None
    noticed_at: datetime


def rows_of(conn: Connection[Any], kind: type[R], query: bytes, *given: int) -> list[R]:
    with conn.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(query, given).fetchall()


def topic_rows() -> list[dict[str, str]]:
    """Return every published topic, what it is made from and where its dead letters go."""
    from projections.integration_events import TELEMETRY, TOPICS
    from projections.integration_events import dead_letters as dead_letters_of

    return [
        {
            "topic": topic,
            "source": "telemetry" if topic in TELEMETRY else "events",
            "deadLetters": dead_letters_of(topic),
        }
        for topic in TOPICS
    ]


@dead_app.command(name="list")
def list_dead(
    consumer: OfConsumer = None,
    topic: OfTopic = None,
    after: Annotated[int, typer.Option(min=0, help="Only behind this id.")] = 0,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """What is set aside, the oldest first."""
    with looking(load_settings()) as conn:
        _require_known(conn, consumer, topic)
        found = dead_letters.letters(
            conn, CONSUMER, subscription=consumer, topic=topic, after=after, limit=limit
        )
    show_table(
        ("id", "consumer", "topic", "status", "reason"),
        [(e.id, e.subscription, e.topic, e.status, e.error) for e in found],
        {"items": [each.as_dict() for each in found]},
        as_json,
        empty="nothing is dead",
    )


@dead_app.command(name="show")
def show_dead(
    id_: Annotated[int, typer.Argument(metavar="ID", help="Of the message.", show_default=False)],
    as_json: Json = False,
) -> None:
    """One of them: what it says, where it lay, what went wrong."""
    with looking(load_settings()) as conn:
        found = dead_letters.show(conn, CONSUMER, id_)
    if found is None:
        raise NoSuchMessage(id_)
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
    settings = load_settings()
    with _chosen(settings, ids, every, all_like, consumer, topic) as (conn, chosen):
        require_yes("Give these messages up for good?", yes=yes)
        asked = given(ids=ids, allLike=all_like, consumer=consumer, topic=topic, reason=reason)
        with recorded(database_url(settings), DISCARD_MESSAGES, DEAD_MESSAGES, asked) as running:
            found = dead_letters.give_up(
                conn, CONSUMER, ids=chosen, subscription=consumer, topic=topic
            )
            if ids and not found:
                raise NoSuchMessage(*ids)
            running.result = {"discarded": len(found), "messages": [e.place() for e in found]}
    show(f"{len(found)} given up", {"discarded": len(found)}, as_json)


@app.command(name="list")
def list_topics(as_json: Json = False) -> None:
    """The topics, how far each source is published and how far each consumer is."""
    with looking(load_settings()) as conn:
        relay = rows_of(conn, RelayProgress, RELAY)
        consumers = rows_of(conn, ConsumerPlace, CONSUMERS)
    topics = topic_rows()
    lines = [
        *table(("topic", "made from", "dead in"), [tuple(each.values()) for each in topics]),
        "",
        *table(
            ("published", "position", "head", "lag"),
            [
                (e.source, e.position if e.updated_at else "never", e.head, e.lag_events)
                for e in relay
            ],
        ),
    ]
    if consumers:
        headings = ("consumer", "source", "partition", "position", "dead")
        places = [(e.consumer, e.source, e.partition, e.position, e.dead) for e in consumers]
        lines += ["", *table(headings, places)]
    told = {
        "topics": topics,
        "relay": [each.as_dict() for each in relay],
        "consumers": [each.as_dict() for each in consumers],
    }
    show("\n".join(lines), told, as_json)


@app.command()
def undelivered(limit: Limit = 100, as_json: Json = False) -> None:
    """What the relay could not publish at all, and why."""
    with looking(load_settings()) as conn:
        found = rows_of(conn, UndeliveredMessage, UNDELIVERED, limit)
    show_table(
        ("source", "position", "topic", "reason"),
        [(e.source, e.position, e.topic, e.reason) for e in found],
        {"items": [each.as_dict() for each in found]},
        as_json,
        empty="everything could be published",
    )


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
    actor = operator_name()
    with _chosen(load_settings(), ids, every, all_like, consumer, topic) as (conn, chosen):
        count = dead_letters.redrive(
            conn, CONSUMER, actor=actor, ids=chosen, subscription=consumer, topic=topic
        )
    show(f"{count} to be driven again", {"redriven": count}, as_json)


@contextmanager
def _chosen(
    settings: Settings,
    ids: list[int] | None,
    every: bool,
    all_like: int | None,
    consumer: str | None,
    topic: str | None,
) -> Iterator[tuple[Connection[TupleRow], list[int] | None]]:
    """Yield a connection, and the ids of the dead messages that are meant; None for all of them.

    Raises UsageError for none or more than one way of choosing, UnknownName and NoSuchMessage.
    """
    ways = (bool(ids), every, all_like is not None)
    require_one_way("name dead messages by their ids, or say --all, or --all-like one", *ways)
    with looking(settings) as conn:
        _require_known(conn, consumer, topic)
        if all_like is not None and not (ids := dead_letters.alike(conn, CONSUMER, all_like)):
            raise NoSuchMessage(all_like)
        yield conn, ids


def _require_known(conn: Connection[TupleRow], consumer: str | None, topic: str | None) -> None:
    """Raise UnknownName for a consumer that never ran, and a topic that nothing is published to."""
    consumers, topics = dead_letters.names(conn, CONSUMER)
    if consumer is not None:
        require("consumer", consumer, consumers)
    if topic is not None:
        require("topic", topic, topics | published_topics())
