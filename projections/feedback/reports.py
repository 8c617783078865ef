"""Reports of recommendations: each stored once, and what they come to by source and variant.

The tables lie beside the analytics. Hours are those in which the lists were given, so that a choice
counts where its being shown does, however much later it comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import comb, erfc, sqrt
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from domain.feedback import CHOSEN, Signal, Variant
from engine.installation import MigrationSet
from engine.personal_data import Left, Unsearched
from engine.projection import columns
from infra.advisory_locks import Lock, lock_in_transaction
from infra.postgres.connection import fetch_as

TABLES = MigrationSet("feedback", Path(__file__).with_name("migrations"), "lists")
"""The key of lists in the main database; reports and their sums in that of the analytics."""
SCHEMA = "feedback"
"""What a rebuild makes anew."""

CONSUMER = "feedback"

PERSONAL = (
    Unsearched(
        name="feedback",
        holds="what was shown and chosen of a list; its id is made from a user id and an hour",
        kept="so many days one by one; for good, how experiments compared in a list",
        setting="ANALYTICS_RETENTION_DAYS",
        where="tables feedback.reports and feedback.comparisons (analytics)",
        forget=Left("made from a pseudonym that names nobody", for_good=True),
    ),
)

KEY = b"SELECT key FROM lists.key"
# A report that is there counts no more. Keys in order: two writers never wait for each other.
STORE = """
WITH fresh AS (
    INSERT INTO {schema}.reports
        (event_id, given_at, list_id, video_id, source, variant, experiment, chosen)
    SELECT * FROM unnest(%b::uuid[], %b::timestamptz[], %b::uuid[], %b::uuid[], %b::text[],
                         %b::text[], %b::int[], %b::bool[])
        AS told (event_id, given_at, list_id, video_id, source, variant, experiment, chosen)
    ORDER BY event_id
    ON CONFLICT DO NOTHING
    RETURNING given_at, list_id, source, variant, experiment, chosen),
counted AS (
    INSERT INTO {schema}.hours AS h (hour, source, variant, shown, chosen)
    SELECT given_at, source, variant, count(*) FILTER (WHERE NOT chosen),
           count(*) FILTER (WHERE chosen)
    FROM fresh GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (hour, source, variant) DO UPDATE
    SET shown = h.shown + excluded.shown, chosen = h.chosen + excluded.chosen),
compared AS (
    INSERT INTO {schema}.comparisons AS c (list_id, experiment, given_at, a, b)
    SELECT list_id, experiment, min(given_at), count(*) FILTER (WHERE variant = 'a'),
           count(*) FILTER (WHERE variant = 'b')
    FROM fresh WHERE chosen AND experiment IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (list_id, experiment) DO UPDATE SET a = c.a + excluded.a, b = c.b + excluded.b)
SELECT source, variant, count(*) FILTER (WHERE NOT chosen), count(*) FILTER (WHERE chosen)
FROM fresh GROUP BY 1, 2
"""
SUMS = b"""
SELECT source, variant, sum(shown)::bigint AS shown, sum(chosen)::bigint AS chosen
FROM feedback.hours WHERE hour >= %s GROUP BY source, variant
"""
COMPARED = b"""
SELECT experiment, count(*) FILTER (WHERE b > a) AS wins, count(*) FILTER (WHERE b < a) AS losses,
       count(*) FILTER (WHERE b = a) AS ties, max(given_at) AS latest
FROM feedback.comparisons WHERE given_at >= %s GROUP BY experiment ORDER BY latest DESC, experiment
"""  # Their sums stay.
OLD = "DELETE FROM {schema}.reports WHERE given_at < %b"


class ReportedVideo(NamedTuple):
    """That a video of a list was shown to its user, or chosen by them."""

    event_id: UUID
    given_at: datetime
    list_id: UUID
    video_id: UUID
    source: Signal
    variant: Variant
    experiment: int | None
    chosen: bool


class Sums(NamedTuple):
    """How often videos of one source and variant were shown, and chosen."""

    source: str
    variant: str
    shown: int
    chosen: int


class TeamScore(NamedTuple):
    """Of how many lists more of team B were chosen (`wins`), more of team A, or equally many."""

    experiment: int
    wins: int
    losses: int
    ties: int
    latest: datetime


def report_of(topic: str, id_: UUID, value: Mapping[str, Any]) -> ReportedVideo:
    """Return the report that a message tells; raise KeyError, TypeError or ValueError."""
    return ReportedVideo(
        id_,
        datetime.fromisoformat(value["givenAt"]),
        UUID(value["listId"]),
        UUID(value["videoId"]),
        Signal(value["source"]),
        Variant(value["variant"]),
        value.get("experiment"),
        topic == CHOSEN,
    )


def store(
    conn: Connection[TupleRow], reports: Sequence[ReportedVideo], schema: str = SCHEMA
) -> list[Sums]:
    """Store the reports that are new, and return what they come to; in the caller's transaction."""
    lock_in_transaction(conn, Lock.FEEDBACK_ROWS)
    if not reports:
        return []
    statement = STORE.format(schema=schema).encode()
    return [Sums(*row) for row in conn.execute(statement, columns(reports)).fetchall()]


def prune(conn: Connection[TupleRow], before: datetime, schema: str = SCHEMA) -> int:
    """Delete the reports of lists given before that; return how many. What they came to stays."""
    return conn.execute(OLD.format(schema=schema).encode(), (before,)).rowcount


async def key_of_lists(conn: AsyncConnection[TupleRow]) -> bytes:
    """Return the key with which lists are signed; `conn` leads to the main database."""
    ((key,),) = await (await conn.execute(KEY)).fetchall()
    return bytes(key)


async def sums(conn: AsyncConnection[TupleRow], since: datetime) -> list[Sums]:
    """Return what lists given since then came to."""
    return await fetch_as(conn, Sums, SUMS, (since,))


async def comparisons(conn: AsyncConnection[TupleRow], since: datetime) -> list[TeamScore]:
    """Return how the experiments did in lists given since then, the latest first."""
    return await fetch_as(conn, TeamScore, COMPARED, (since,))


# Of a two-sided interval that holds the true share 95 times in 100.
Z_95 = 1.959963984540054
# Beyond this many the exact sum would take longer than the normal distribution is wrong.
MOST_EXACT = 1_000


class Interval(NamedTuple):
    """The bounds of a share, between 0 and 1."""

    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval | None:
    """Return the 95 % score interval of a share; None without trials.

    By E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal
    of the American Statistical Association 22 (1927): it stays within 0 and 1, and holds what it
    promises also for few trials and for shares near 0, where those of clicks lie.
    """
    if not trials:
        return None
    share, z2 = successes / trials, Z_95 * Z_95
    middle = share + z2 / (2 * trials)
    reach = Z_95 * sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    scale = 1 + z2 / trials
    return Interval(max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale))


def sign_test(wins: int, losses: int) -> float | None:
    """Return the two-sided p value of so many wins if both sides were equal; None without any.

    Exact (binomial) up to 1,000 decisions; beyond, by the normal distribution with a correction
    for continuity. Ties decide nothing and are left out (Dixon and Mood, "The Statistical Sign
    Test", Journal of the American Statistical Association 41, 1946).
    """
    decided = wins + losses
    if not decided:
        return None
    if decided > MOST_EXACT:
        distance = max(abs(wins - losses) - 1, 0) / sqrt(decided)
        return erfc(distance / sqrt(2))
    tail = sum(comb(decided, fewer) for fewer in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**decided))
