"""What is left of a person: in every declared place, and of the name in all that is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from redis import RedisError

from engine.inspection.raw_search import keys_with, rows_with
from engine.personal_data import PersonalPlace, Unsearched
from engine.persons import KnownPerson
from readapi.privacy import Holding, PersonSearch

NAMES = "the name itself, in whatever is stored"
KEPT = "nothing is meant to be here once somebody is forgotten"


async def certificate(
    search: PersonSearch, user_id: str, person: KnownPerson | None
) -> list[Holding]:
    """Return what each place has of a person; of one who is fenced, also where the name stands.

    What stays for good has the pseudonym of somebody who is forgotten: nobody. Raise psycopg.Error.
    """
    found = [await search.count(place) for place in search.data.distinct()]
    if person is None or person.fenced_at is None:
        return found
    if person.forgotten_at is not None and person.pseudonym != user_id:
        found = [_of_nobody(each) for each in found]
    return found + await _said(search, user_id)


def _of_nobody(holding: Holding) -> Holding:
    place = holding.place
    if not holding.count or not place.stays:
        return holding
    return replace(holding, count=0, note=f"{holding.count:,} under a pseudonym: {place.forget}")


async def _said(search: PersonSearch, text: str) -> list[Holding]:
    """Return what says a text: a place for each table and each key of Redis, or one without any."""
    found: Counter[str] = await search.main.do(rows_with, text)
    if search.data.analytics_url != search.data.database_url:
        analytics = await search.analytics.do(rows_with, text)
        found += Counter({f"{table} (analytics)": count for table, count in analytics.items()})
    told = [Holding(_place(f"table {table}"), count) for table, count in sorted(found.items())]
    if search.data.redis is not None:
        try:
            keys = await keys_with(search.data.redis, text)
            told += [Holding(_place(f"Redis, {key}"), count) for key, count in sorted(keys.items())]
        except RedisError as error:
            away = f"it does not answer: {' '.join(str(error).split())}"
            told.append(Holding(_place("Redis"), None, away, is_away=True))
    return told or [Holding(_place("all tables and keys"), 0)]


def _place(where: str) -> PersonalPlace:
    return Unsearched(name="name", holds=NAMES, kept=KEPT, where=where)
