"""`backlot analytics`: what was counted, for other programs: as files, or by a role that reads."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Literal

import psycopg
import typer
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot.arguments import group
from backlot.database import url_at_hand
from backlot.output import Json, show
from infra.errors import OperatorError, UsageError
from infra.postgres.connection import explained, open_connection
from infra.settings import Settings, load_settings

app = group("What was counted, for reports.")


class AnalyticsAway(OperatorError):
    """The database of the analytics does not answer, or lacks their tables."""


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="What to write; must not be there yet.")],
    table_format: Annotated[
        Literal["csv", "parquet"],
        typer.Option("--format", help="Parquet needs the extra `parquet`."),
    ] = "csv",
    views: Annotated[
        list[str] | None,
        typer.Option("--view", help="Only this one; may be given several times."),
    ] = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day (UTC).")
    ] = None,
    last: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day (UTC).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write views, watch time, shares and sums to a folder, all of one moment, without names."""
    from projections.analytics.bi import VIEWS, TableFormat, export_views

    names = tuple(dict.fromkeys(views or VIEWS))
    if unknown := sorted({*names} - {*VIEWS}):
        raise UsageError(f"--view: there is no {unknown[0]!r}; there are {', '.join(VIEWS)}")
    with _connected(load_settings(), "export") as conn:
        rows = export_views(
            conn, folder, TableFormat(table_format), names, first=_day(first), last=_day(last)
        )
    total = sum(rows.values())
    text = f"{total:,} rows of {len(rows)} views written to {folder}"
    show(text, {"folder": str(folder), "format": table_format, "rows": rows}, as_json)


def _day(at: datetime | None) -> date | None:
    return None if at is None else at.date()


@app.command()
def reader(
    name: Annotated[str, typer.Argument(help="Of the role, which is made where it is missing.")],
    as_json: Json = False,
) -> None:
    """Let a database role read the views for reports, and nothing else; print a new password."""
    from projections.analytics.bi import SCHEMA, make_reader

    settings = load_settings()
    password = secrets.token_urlsafe(24)
    owner_url = settings.database.owner_url if settings.analytics.timescale_url is None else None
    with _connected(settings, "reader") as owner:
        if owner_url is None:
            make_reader(owner, owner, name, password)
        else:
            with open_connection(owner_url.get_secret_value(), "reader") as admin:
                make_reader(admin, owner, name, password)
    text = f"{name} reads the schema {SCHEMA}, and nothing else; its password is {password}"
    show(text, {"role": name, "schema": SCHEMA, "password": password}, as_json)


@contextmanager
def _connected(settings: Settings, purpose: str) -> Iterator[Connection[TupleRow]]:
    """Connect to the analytics; raise AnalyticsAway where that breaks off."""
    url = settings.analytics.url(url_at_hand(settings))
    try:
        with open_connection(url, f"analytics {purpose}") as conn:
            yield conn
    except psycopg.errors.UndefinedTable as error:
        raise AnalyticsAway("its tables are not there yet: start Backlot on it once") from error
    except (psycopg.Error, OSError) as error:
        raise AnalyticsAway(f"{purpose} broken off: {explained(error)}") from error
