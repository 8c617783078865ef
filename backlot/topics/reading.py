"""The database, for whoever looks into what is published and consumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot.database import DatabaseAway, database_url
from infra.connecting import explained, open_connection
from infra.settings import Settings


@contextmanager
def looking(settings: Settings) -> Iterator[Connection[TupleRow]]:
    """A connection to the database at hand; raises DatabaseAway, whenever it goes away."""
    url = database_url(settings)
    try:
        with open_connection(url, "operator") as conn:
            yield conn
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseAway("its tables are not there yet: start Backlot on it once") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseAway(f"the database does not answer: {explained(error)}") from error
