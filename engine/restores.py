"""Restores: a database from a backup forgets again whom the places outside it know as forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.personal_data import PersonalPlace, PersonalTable, given, statements
from engine.persons import Persons
from engine.purge import purge_copies, purge_tables
from engine.seals.forgotten import ForgottenList, person_digest
from engine.seals.places import AnchorsUnusable
from infra.metrics import counter

log = structlog.get_logger(__name__)

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
