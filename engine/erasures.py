"""Erasures: how far it is with each person whom the program forgets.

Each has a row since the fence, which outlives every process. A step that is under way when its
process dies is done again from its beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import kwargs_row
from psycopg.types.json import Jsonb

from engine.personal_data import Left, PersonalTable
from infra.http.auth import REMEMBER_SECONDS


class ErasureStep(StrEnum):
    """What is done about a person, in this order.

    `settling` waits for what was under way; it counts from the beginning of the step before, so
    that a purge that takes long makes nobody wait longer.
    """

    REQUEST = "request"
    COMMENTS = "comments"
    TEXTS = "texts"
    VIDEOS = "videos"
    KEY = "key"
    PLACES = "places"
    SETTLING = "settling"
    FINISH = "finish"

    @property
    def following(self) -> ErasureStep:
        """The next one; of the last one, itself."""
        steps = list(ErasureStep)
        return steps[min(steps.index(self) + 1, len(steps) - 1)]


class Erasure(NamedTuple):
    """One person's: since when it waits in all, and in this step.

    `counts` is what was removed so far, `failures` are those of this step.
    """

    pseudonym: str
    fenced_at: datetime
    waits: timedelta
    step: ErasureStep
    step_waits: timedelta
    counts: Mapping[str, int]
    failures: int
    error: str | None
    finished_at: datetime | None


PERSONAL = (
    PersonalTable(
        name="erasures",
        holds="how far it is with somebody who is forgotten, and how much was removed",
        kept="for good: who was forgotten stays so",
        table="public.backlot_erasures",
        columns=("pseudonym",),
        forget=Left("a pseudonym that names nobody", for_good=True),
    ),
)

ROWS = """
SELECT pseudonym, fenced_at, clock_timestamp() - fenced_at AS waits, step,
       clock_timestamp() - step_at AS step_waits, counts, failures, error, finished_at
FROM public.backlot_erasures JOIN public.backlot_persons USING (pseudonym)
"""
OPEN = (ROWS + "WHERE finished_at IS NULL ORDER BY fenced_at, pseudonym").encode()
ONE = (ROWS + "WHERE pseudonym = %s").encode()
ADVANCE = b"""
UPDATE public.backlot_erasures
SET step = %(next)s, counts = %(counts)s, failures = 0, error = NULL,
    step_at = CASE WHEN %(next)s = 'settling' THEN step_at ELSE clock_timestamp() END
WHERE pseudonym = %(pseudonym)s AND step = %(step)s
"""
FAIL = b"""
UPDATE public.backlot_erasures SET failures = failures + 1, error = %s WHERE pseudonym = %s
"""
FINISH = b"""
UPDATE public.backlot_erasures
SET finished_at = coalesce(finished_at, clock_timestamp()), counts = %s, failures = 0, error = NULL
WHERE pseudonym = %s
"""
# A process remembers a token for less than that: afterwards nobody who is fenced gets here.
LONGEST_MEMORY = timedelta(seconds=2 * REMEMBER_SECONDS)
FENCED = f"""
SELECT pseudonym FROM public.backlot_erasures WHERE finished_at IS NULL
UNION ALL SELECT pseudonym FROM public.backlot_erasures
WHERE finished_at > now() - interval '{LONGEST_MEMORY.total_seconds():.0f} s'
""".encode()
"""Asks who is fenced and might still be taken for a user by some process: few, at any time."""
LATELY = b"""
SELECT pseudonym FROM public.backlot_erasures
WHERE finished_at > now() - %s::interval ORDER BY pseudonym
"""


def open_erasures(conn: Connection[Any]) -> list[Erasure]:
    """Return those that are not finished, the oldest first."""
    with conn.cursor(row_factory=kwargs_row(_erasure)) as cursor:
        return cursor.execute(OPEN).fetchall()


def find_erasure(conn: Connection[Any], pseudonym: str) -> Erasure | None:
    """Return that of a person; None of one who was not fenced."""
    with conn.cursor(row_factory=kwargs_row(_erasure)) as cursor:
        return cursor.execute(ONE, (pseudonym,)).fetchone()


def _erasure(step: str, **rest: Any) -> Erasure:
    return Erasure(step=ErasureStep(step), **rest)


def advance(conn: Connection[Any], erasure: Erasure, removed: Mapping[str, int]) -> None:
    """Go on to the next step, with what this one has removed; twice is once."""
    counts = +(Counter(erasure.counts) + Counter(removed))
    values = {
        "next": erasure.step.following,
        "counts": Jsonb(dict(counts)),
        "pseudonym": erasure.pseudonym,
        "step": erasure.step,
    }
    conn.execute(ADVANCE, values)


def fail(conn: Connection[Any], pseudonym: str, error: str) -> None:
    """Count a failure of the present step; `error` names nobody."""
    conn.execute(FAIL, (error, pseudonym))


def finish(conn: Connection[Any], pseudonym: str, counts: Mapping[str, int]) -> None:
    """Take the person for forgotten, with all that was removed; twice is once."""
    conn.execute(FINISH, (Jsonb(dict(counts)), pseudonym))


def finished_within(conn: Connection[Any], term: timedelta) -> list[str]:
    """Return the pseudonyms of those who were forgotten within that time until now."""
    return [pseudonym for (pseudonym,) in conn.execute(LATELY, (term,)).fetchall()]
