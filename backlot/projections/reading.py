"""How the projections stand, for the command line: the same fields as over HTTP."""

from __future__ import annotations

import asyncio

import psycopg

from backlot.database import DatabaseAway, database_url
from backlot.signals import run
from backlot.wiring import ReadModels
from infra.connecting import UNHURRIED, explained, open_async_connection
from infra.settings import Settings
from projections.overview import LOOK_SECONDS, Rates
from readapi.projection_status import ProjectionStatus, statuses


def read_statuses(settings: Settings, *, twice: bool = False) -> dict[str, ProjectionStatus]:
    """Every projection by name; looked at twice, a second apart, they have a rate.

    Raises DatabaseAway.
    """
    try:
        return run(_read(database_url(settings), twice=twice))
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseAway("its tables are not there yet: start Backlot on it once") from error
    except psycopg.Error as error:
        raise DatabaseAway(f"the database does not answer: {explained(error)}") from error


async def _read(url: str, *, twice: bool) -> dict[str, ProjectionStatus]:
    models, rates = ReadModels.make().all(), Rates()
    async with await open_async_connection(url, "operator", UNHURRIED) as conn:
        found = await statuses(conn, models, rates)
        if twice:
            await asyncio.sleep(LOOK_SECONDS)
            found = await statuses(conn, models, rates)
        return found
