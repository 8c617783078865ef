"""How the projections stand, for the command line: the same fields as over HTTP."""

from __future__ import annotations

import asyncio

import psycopg
from psycopg import AsyncConnection

from backlot.database import database_url
from backlot.projections.operating import DatabaseAway
from backlot.signals import run
from backlot.wiring import ReadModels
from infra.codec import EventMapper
from infra.settings import Settings
from projections.overview import LOOK_SECONDS, Rates
from readapi.projection_status import ProjectionStatus, statuses

CONNECT_SECONDS = 5


def read_statuses(settings: Settings, *, twice: bool = False) -> dict[str, ProjectionStatus]:
    """Every projection by name; looked at twice, a second apart, they have a rate.

    Raises DatabaseAway.
    """
    try:
        return run(_read(database_url(settings), twice=twice))
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseAway("its tables are not there yet: start Backlot on it once") from error
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise DatabaseAway(f"the database does not answer: {reason}") from error


async def _read(url: str, *, twice: bool) -> dict[str, ProjectionStatus]:
    models, mapper, rates = ReadModels.make().all(), EventMapper(), Rates()
    async with await AsyncConnection.connect(
        url, autocommit=True, application_name="backlot operator", connect_timeout=CONNECT_SECONDS
    ) as conn:
        found = await statuses(conn, models, mapper, rates)
        if twice:
            await asyncio.sleep(LOOK_SECONDS)
            found = await statuses(conn, models, mapper, rates)
        return found
