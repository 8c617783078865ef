"""Terms: what names persons is deleted when its time is over; and where nobody can look for it.

The event log is never cut, and read models follow it. The analytics delete their own rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from commands.uploads import ENDS
from engine import dead_letters
from engine.command_bus import CommandBus
from engine.connections import in_thread
from engine.personal_data import Left, Unsearched
from engine.reservations import forget_reservations
from engine.schedule import Job, Outage, repeat
from engine.telemetry import forget_events
from infra.metrics import counter
from infra.postgres.connection import open_connection
from infra.settings import Settings
from projections.recommendations.retention import forget_viewers
from workers.maintenance import tell
from workers.parts import Parts

INTERVAL_SECONDS = 3600.0

RETENTION_FAILURES = counter(
    "backlot_retention_failures",
    "Times that what is past its retention could not be deleted; it is tried again in an hour.",
)

PERSONAL = (
    Unsearched(
        name="topics",
        holds="published messages: who liked, watched, commented what, and the texts of comments",
        kept="texts so many days and a day more at most; what has none as long as Kafka keeps it",
        setting="KAFKA_TEXT_RETENTION_DAYS",
        where="Kafka",
        forget=Left("consumers are told; texts go by their term"),
    ),
    Unsearched(
        name="results",
        holds="keys of rows that differed, in the results of replays and verifications",
        kept="the event log is kept for good",
        where="events operation.finished",
        forget=Left("a pseudonym that names nobody", for_good=True),
    ),
    Unsearched(
        name="outside",
        holds="what was copied: logs, backups, WAL, exports of the event log, proxies' logs",
        kept="as long as whoever has them keeps them",
        where="outside of the program",
        forget=Left("for whoever has them: [copies](#copies-outside)"),
    ),
)


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Delete, every hour, what is past its retention; several processes may do it at once."""
    outage = Outage("retention_postponed", (psycopg.Error,), RETENTION_FAILURES)
    urls = (parts.database_url, parts.analytics_url)

    async def run() -> None:
        tell(await in_thread(expire, *urls, parts.settings, datetime.now(UTC)))

    yield Job("retention", INTERVAL_SECONDS, repeat(run), outage)


def expire(
    database_url: str, analytics_url: str, settings: Settings, now: datetime
) -> Counter[str]:
    """Delete what is past its retention; return how much of each. Raise psycopg.Error."""
    terms = settings.privacy
    letters = now - timedelta(days=terms.dead_letter_retention_days)
    viewers = now - timedelta(days=terms.engagement_retention_days)
    deleted: Counter[str] = Counter()
    with open_connection(database_url, "retention") as conn:
        deleted["telemetry"] = forget_events(conn, now - settings.telemetry_retention)
        deleted["reservations"] = forget_reservations(conn, ENDS, now)
        deleted += _letters(conn, letters)
    with open_connection(analytics_url, "retention") as conn:
        deleted["viewers"] = forget_viewers(conn, viewers)
        # Where it is the same database, there are none left.
        deleted += _letters(conn, letters)
    return deleted


def _letters(conn: Connection[TupleRow], before: datetime) -> Counter[str]:
    expired = dead_letters.expire(conn, before)
    return Counter(
        dead_letters=expired.total(), parked_errors=dead_letters.shorten_errors(conn, before)
    )
