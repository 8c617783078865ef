"""`backlot webhooks`: where published events are sent to, and how that goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import typer

from backlot.arguments import ListingGroup, group
from backlot.database import database_at_hand, operator_name, persons_at_hand
from backlot.output import Json, show, show_table
from backlot.screen import Yes, require_yes
from backlot.signals import run
from domain.errors import DomainError
from infra.errors import OperatorError
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from engine.command_bus import Command
    from engine.event_store import GroupCommitRecorder
    from engine.persons import Persons
    from infra.http.shapes import Wire
    from readapi.webhooks import WebhookDelivery

MOST_SHOWN = 50

app = group("Webhooks: where published events are sent to.", ListingGroup)

Id = Annotated[
    UUID, typer.Argument(metavar="WEBHOOK", help="The id of a webhook.", show_default=False)
]
Number = Annotated[
    int, typer.Argument(metavar="DELIVERY", min=1, help="A delivery.", show_default=False)
]
Topic = Annotated[
    list[str] | None, typer.Option("--topic", help="A topic; again for more. Default: all.")
]


class WebhookRefused(OperatorError):
    """A rule says no; the text says which."""


@contextmanager
def _store() -> Iterator[tuple[Settings, Persons, GroupCommitRecorder]]:
    from engine.event_store import open_recorder

    settings = load_settings()
    with (
        database_at_hand(),
        closing(persons_at_hand(settings)) as persons,
        closing(open_recorder(persons.database_url)) as recorder,
    ):
        try:
            yield settings, persons, recorder
        except DomainError as error:
            raise WebhookRefused(str(error)) from error


def _execute(recorder: GroupCommitRecorder, command: Command[Any]) -> Any:
    from engine.command_bus import CommandBus
    from engine.projection import ReadModels
    from workers.webhooks import lookups

    async def execute() -> Any:
        bus = CommandBus(recorder, readers=lookups(ReadModels(())))
        try:
            asked = f"webhooks-{uuid4()}"
            return await bus.execute(command, actor=operator_name(), correlation_id=asked)
        finally:
            await bus.close()

    return run(execute()).answer


def _tell(text: str, wire: Wire, as_json: bool) -> None:
    show(text, wire.model_dump(by_alias=True, exclude_none=True, mode="json"), as_json)


@app.command(name="list")
def list_webhooks(as_json: Json = False) -> None:
    """All webhooks, with what waits for each."""
    from projections.webhooks import backlogs
    from readapi.webhooks import WebhookStatus, load_webhooks

    with _store() as (_, persons, recorder):
        found = load_webhooks(recorder).by_id.values()
        waits = run(_ask(persons.database_url, backlogs))
    shown = [WebhookStatus.of(each, waits.get(each.id)) for each in found]
    show_table(
        ("webhook", "state", "waiting", "attempts", "url"),
        [
            (each.webhook_id, each.disabled_because or "on", each.waiting, each.attempts, each.url)
            for each in shown
        ],
        [each.model_dump(by_alias=True, exclude_none=True, mode="json") for each in shown],
        as_json,
        empty="there are no webhooks",
    )


async def _ask(database_url: str, question: Any) -> Any:
    from infra.postgres.connection import open_async_connection

    async with await open_async_connection(database_url, "operator") as conn:
        return await question(conn)


@app.command()
def add(url: str, topic: Topic = None, as_json: Json = False) -> None:
    """Send what is published from now on to a URL; prints the secret for its receiver."""
    from commands.webhooks import AddNewWebhook, checked_topics, checked_url
    from projections.integration_events import TOPICS
    from workers.webhooks import outbound_rules

    with _store() as (settings, persons, recorder):
        checked_url(url, outbound_rules(settings.webhooks))
        topics = checked_topics(topic or list(TOPICS), TOPICS)
        made = _execute(recorder, AddNewWebhook(uuid4(), uuid4(), url, topics))
        _show_secrets(persons, recorder, made.webhook_id, as_json)


@app.command()
def change(
    webhook: Id,
    url: Annotated[str | None, typer.Option(help="Where to send from now on.")] = None,
    topic: Topic = None,
    as_json: Json = False,
) -> None:
    """Send to another URL, or other topics."""
    from commands.webhooks import AlterWebhook, checked_topics, checked_url
    from projections.integration_events import TOPICS
    from workers.webhooks import outbound_rules

    with _store() as (settings, _, recorder):
        if url is not None:
            checked_url(url, outbound_rules(settings.webhooks))
        topics = checked_topics(topic, TOPICS) if topic else None
        made = _execute(recorder, AlterWebhook(webhook, url, topics))
    _tell(f"{webhook}: {made.url}, {', '.join(made.topics)}", made, as_json)


@app.command()
def remove(webhook: Id, yes: Yes = False, as_json: Json = False) -> None:
    """Send nothing there any more, and forget its deliveries."""
    from commands.webhooks import RemoveWebhook
    from readapi.webhooks import load_webhooks

    with _store() as (_, _, recorder):
        url = load_webhooks(recorder).get(webhook).url
        require_yes(f"Remove {url}, with all that waits for it?", yes=yes)
        _tell(f"{webhook} is removed", _execute(recorder, RemoveWebhook(webhook)), as_json)


@app.command()
def enable(webhook: Id, as_json: Json = False) -> None:
    """Go on where it stood; what waits to be tried again is due at once."""
    from commands.webhooks import AlterWebhook

    with _store() as (_, _, recorder):
        made = _execute(recorder, AlterWebhook(webhook, enabled=True))
    _tell(f"{webhook} is enabled", made, as_json)


@app.command()
def disable(webhook: Id, as_json: Json = False) -> None:
    """Send nothing until it is enabled; nothing is lost meanwhile."""
    from commands.webhooks import AlterWebhook

    with _store() as (_, _, recorder):
        made = _execute(recorder, AlterWebhook(webhook, enabled=False))
    _tell(f"{webhook} is disabled", made, as_json)


@app.command()
def secret(webhook: Id, as_json: Json = False) -> None:
    """Print what deliveries are signed with."""
    with _store() as (_, persons, recorder):
        _show_secrets(persons, recorder, webhook, as_json)


@app.command()
def rotate(
    webhook: Id,
    overlap: Annotated[
        int, typer.Option(min=0, help="For so many seconds the former secret signs, too.")
    ] = 86_400,
    as_json: Json = False,
) -> None:
    """Sign by a new secret, and print it."""
    from datetime import timedelta

    from commands.webhooks import RotateWebhookSecret

    with _store() as (_, persons, recorder):
        command = RotateWebhookSecret(webhook, uuid4(), timedelta(seconds=overlap))
        _execute(recorder, command)
        _show_secrets(persons, recorder, webhook, as_json)


def _show_secrets(
    persons: Persons, recorder: GroupCommitRecorder, webhook: UUID, as_json: bool
) -> None:
    from infra.http.shapes import rfc3339
    from readapi.webhooks import load_webhooks, signing_secrets

    found = load_webhooks(recorder).get(webhook)
    secrets = signing_secrets(found, persons.webhook_key())
    lines = [
        each.secret + (f" (until {rfc3339(each.ends_at)})" if each.ends_at else "")
        for each in secrets.secrets
    ]
    _tell("\n".join([f"{webhook} {found.url}", *lines]), secrets, as_json)


@app.command(name="test")
def try_webhook(webhook: Id, as_json: Json = False) -> None:
    """Send a message that says nothing; see what came of it among the deliveries."""
    from commands.webhooks import TryWebhook

    with _store() as (_, _, recorder):
        made = _execute(recorder, TryWebhook(webhook, uuid4()))
    _tell(f"{made.message_id} is sent", made, as_json)


@app.command()
def deliveries(
    webhook: Id,
    status: Annotated[
        str | None, typer.Option(help="waiting, delivered, skipped or lost; default: all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The newest deliveries: what became of them, and what the receiver answered."""
    from engine.log import END_OF_LOG
    from projections.webhooks import Delivery
    from projections.webhooks import deliveries as newest
    from readapi.webhooks import WebhookDelivery, load_webhooks

    with _store() as (_, persons, recorder):
        load_webhooks(recorder).get(webhook)

        async def ask(conn: Any) -> list[Delivery]:
            return await newest(conn, webhook, status, END_OF_LOG, MOST_SHOWN)

        rows = [WebhookDelivery.of(row) for row in run(_ask(persons.database_url, ask))]
    show_table(
        ("delivery", "topic", "status", "attempts", "answer", "error"),
        [(*_of(each), each.answer or "-", each.error or "") for each in rows],
        [row.model_dump(by_alias=True, exclude_none=True, mode="json") for row in rows],
        as_json,
        empty="there are none",
    )


def _of(row: WebhookDelivery) -> tuple[object, ...]:
    return row.delivery_id, row.topic, row.status, row.attempts


@app.command()
def repeat(webhook: Id, delivery: Number, as_json: Json = False) -> None:
    """Deliver once more what was delivered, skipped or lost."""
    from commands.webhooks import RepeatDelivery

    with _store() as (_, _, recorder):
        made = _execute(recorder, RepeatDelivery(webhook, delivery))
    _tell(f"delivery {delivery} is made again", made, as_json)


@app.command()
def skip(webhook: Id, delivery: Number, yes: Yes = False, as_json: Json = False) -> None:
    """Give up a delivery that waits, so that what waits behind it goes on."""
    from commands.webhooks import SkipDelivery

    with _store() as (_, _, recorder):
        require_yes(f"Never deliver {delivery}?", yes=yes)
        made = _execute(recorder, SkipDelivery(webhook, delivery))
    _tell(f"delivery {delivery} is skipped", made, as_json)
