"""Erasures: how far it is with each person whom the program forgets, also after a restore.

Each has a row since the fence, which outlives every process. A step that is under way when its
process dies is done again from its beginning. A database from a backup forgets again whom the
places outside it know as forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow, kwargs_row
from psycopg.types.json import Jsonb

from engine.personal_data import Left, PersonalPlace, PersonalTable, given, statements
from engine.persons import Persons
from engine.purge import purge_copies, purge_tables
from engine.seals.forgotten_list import ForgottenList, person_digest
from engine.seals.places import AnchorsUnusable
from infra.http.auth import REMEMBER_SECONDS
from infra.metrics import counter

log = structlog.get_logger(__name__)


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


FORGOTTEN = b"""
SELECT pseudonym, forgotten_at FROM public.backlot_persons
WHERE fenced_at IS NOT NULL AND forgotten_at IS NOT NULL
"""
# Whose key a worker is just about to destroy was not restored. There may be millions of others.
# Whom an old log names has no row before it is asked for.
ALIVE = b"""
SELECT pseudonym FROM public.backlot_persons AS p WHERE forgotten_at IS NULL AND NOT EXISTS (
    SELECT FROM public.backlot_erasures AS e WHERE e.pseudonym = p.pseudonym AND step = 'key')
UNION ALL
SELECT f.name FROM public.backlot_former_names AS f WHERE NOT EXISTS (
    SELECT FROM public.backlot_persons AS p WHERE p.pseudonym = f.name)
"""
ROWS_AT_ONCE = 10_000

ERASED_AGAIN = counter(
    "backlot_restored_persons_erased",
    "Persons whom a restored database had again, and who were erased at the start of this process.",
)


def compare_forgotten(
    conn: Connection[Any], lists: Sequence[ForgottenList], *, completes: bool
) -> list[str]:
    """Return the pseudonyms of those who are forgotten outside, and not in the database.

    What `completes` the lists tells each place whom another one or the database knows. `conn` is in
    autocommit mode. Raise AnchorsUnusable where a place can't be read or was changed, and
    psycopg.Error.
    """
    known = {person_digest(each): at for each, at in conn.execute(FORGOTTEN).fetchall()}
    found = [(each, each.read()) for each in lists]
    outside = {person: at for _, persons in found for person, at in persons.items()}
    for each, persons in found if completes else ():
        _complete(each, persons, known | outside)
    wanted = outside.keys() - known.keys()
    return _alive(conn, wanted) if wanted else []


def _complete(
    place: ForgottenList, persons: Mapping[bytes, datetime], known: Mapping[bytes, datetime]
) -> None:
    """Tell a place whom it lacks: it is new, or somebody has cut its end off."""
    if known.keys() <= persons.keys():
        return
    try:
        added = place.add(known)
    except AnchorsUnusable as error:
        log.warning("forgotten_list_not_completed", place=place.name, error=str(error))
    else:
        tell = log.warning if persons else log.info
        tell("forgotten_list_completed", place=place.name, persons=added)


def _alive(conn: Connection[Any], wanted: set[bytes]) -> list[str]:
    with conn.transaction(), conn.cursor("restores") as cursor:
        cursor.itersize = ROWS_AT_ONCE
        cursor.execute(ALIVE)
        return sorted(each for (each,) in cursor if person_digest(each) in wanted)


def erase_again(
    persons: Persons, pseudonyms: Sequence[str], purge: Callable[[str], object]
) -> None:
    """Fence, purge and destroy whom a restored database has again; may be killed and called again.

    `purge` removes what tables and caches say of a person. What else forgetting is, the worker
    does for everybody who is fenced.
    """
    persons.prepare(pseudonyms)
    for pseudonym in pseudonyms:
        persons.fence(pseudonym)
        # The key last: until then, another start finds the person alive, and does all of this.
        purge(pseudonym)
        persons.destroy(pseudonym)
        ERASED_AGAIN.inc()
    if pseudonyms:
        log.warning(
            "restored_persons_erased",
            persons=len(pseudonyms),
            why="they were forgotten after this database's backup was made",
        )


def purge_restored(
    conn: Connection[TupleRow],
    analytics: Connection[TupleRow],
    places: Sequence[PersonalPlace],
    person: str,
) -> None:
    """Have no table show a person, before the events of forgetting remove the rest.

    Caches are the worker's: nothing in them is read for somebody who is fenced. Both connections
    are in autocommit mode. Raise psycopg.Error.
    """
    tables = [place for place in places if isinstance(place, PersonalTable)]
    for database, is_analytics in ((conn, False), (analytics, True)):
        held = [place for place in tables if place.analytics is is_analytics]
        # Nobody is served meanwhile.
        purge_tables(database, held, person, pace=nullcontext)
    purge_copies(conn, tables, person)
    for place in tables:
        if place.projection is not None and place.hide is not None:
            for statement in statements(conn, place, place.hide, copy=place.projection):
                conn.execute(statement, given(person))
