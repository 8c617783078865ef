"""`backlot operations`: who did what; `backlot spending`: what language models took."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Literal

import psycopg
import typer

from backlot.arguments import group
from backlot.database import database_at_hand, persons_at_hand
from backlot.output import Json, show_table
from backlot.signals import run
from infra.http.shapes import rfc3339
from infra.postgres.connection import UNHURRIED, open_async_connection
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from readapi.operator_actions import OperatorAction
    from readapi.spending import Spending

app = group("What operators did.")


@app.command(name="list")
def list_actions(
    actor: Annotated[str | None, typer.Option(help="Only of this one: a user id.")] = None,
    before: Annotated[int | None, typer.Option(min=1, help="Before this position.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """Who did what, and how it ended, the newest first."""
    found, following = _read_actions(load_settings(), actor, before, limit)
    show_table(
        ("at", "actor", "action", "target", "outcome"),
        [
            (rfc3339(e.at, "seconds") if e.at else "-", e.actor, e.action, e.target, e.outcome)
            for e in found
        ],
        {"items": [json.loads(each.to_json()) for each in found], "before": following},
        as_json,
        empty="no operator has done anything",
    )


def _read_actions(
    settings: Settings, actor: str | None, before: int | None, limit: int
) -> tuple[list[OperatorAction], int | None]:
    """Return actions and before which position others are; raise DatabaseAway."""
    from engine.inspection.index import Audit
    from engine.log import END_OF_LOG
    from infra.pseudonyms import searched
    from projections.operations import Operations
    from readapi.operator_actions import find_actions

    with database_at_hand(psycopg.Error), closing(persons_at_hand(settings)) as persons:
        who = None if actor is None else searched(persons, actor, by_name=True)

        async def read() -> tuple[list[OperatorAction], int | None]:
            async with await open_async_connection(
                persons.database_url, "operator", UNHURRIED
            ) as conn:
                place = before or END_OF_LOG
                return await find_actions(conn, Audit(), Operations(), persons, who, place, limit)

        return run(read())


def spending(
    time_range: Annotated[
        Literal["24h", "7d", "30d"], typer.Option("--time-range", help="How far back.")
    ] = "7d",
    as_json: Json = False,
) -> None:
    """What language models took, by purpose, over all processes and restarts."""
    settings = load_settings()
    with database_at_hand(psycopg.Error), closing(persons_at_hand(settings)) as persons:
        found = run(_read_spending(persons.database_url, time_range))
    told = json.loads(found.to_json())
    del told["budgets"]
    rows = [
        (
            each.purpose,
            each.calls,
            each.failed,
            each.prompt_tokens,
            each.completion_tokens,
            "-" if each.cost is None else f"{each.cost:.2f}",
        )
        for each in found.by_purpose
    ]
    headings = ("purpose", "calls", "failed", "input tokens", "output tokens", "US dollars")
    show_table(headings, rows, told, as_json, empty="no language model was called")


async def _read_spending(database_url: str, time_range: str) -> Spending:
    from readapi.spending import SpendingRange, spending_of

    async with await open_async_connection(database_url, "operator", UNHURRIED) as conn:
        return await spending_of(conn, SpendingRange(time_range))
