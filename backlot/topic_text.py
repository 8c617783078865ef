"""What `backlot topics` asks the database, and says to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot.database import DatabaseAway, database_url
from backlot.output import table
from infra.postgres.connection import explained, open_connection
from infra.settings import Settings
from workers import topics
from workers.topics import ConsumerPlace, RelayProgress


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


def as_lines(relay: Sequence[RelayProgress], consumers: Sequence[ConsumerPlace]) -> list[str]:
    """Three short tables: topics, the relay, consumers."""
    rows = [(each["topic"], each["source"], each["deadLetters"]) for each in topics.topics()]
    lines = [*table(("topic", "made from", "dead letters"), rows), ""]
    lines += table(("published", "position", "head", "lag"), map(_published, relay))
    if consumers:
        headings = ("consumer", "source", "partition", "position", "dead")
        places = [(e.consumer, e.source, e.partition, e.position, e.dead) for e in consumers]
        lines += ["", *table(headings, places)]
    return lines


def _published(each: RelayProgress) -> tuple[object, ...]:
    return each.source, each.position if each.updated_at else "never", each.head, each.lag_events
