"""Forgetting: how far it is with a user, and a certificate of what is left of them.

That looks in every declared place, and for the name in all that is stored: row by row and key by
key, whatever has been declared, which takes as long as there is much. It finds a word of its own,
in texts and in the bytes of JSON; what is encrypted or compressed by the program it does not see.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import psycopg
from fastapi import APIRouter, Depends, Path, Request, Response
from psycopg import Connection
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier
from redis import RedisError
from redis.asyncio import Redis

from engine.connections import in_thread
from engine.erasures import Erasure, ErasureStep, find_erasure
from engine.personal_data import PersonalPlace, Unsearched, json_bytes
from engine.persons import KnownPerson, Persons
from infra.http.auth import Admin
from infra.http.problems import Problem, problems
from infra.http.responses import NOT_MODIFIED, conditional_wire, wire
from infra.http.shapes import Time, Wire
from infra.postgres.connection import open_connection
from infra.security_log import SecurityEvent, record
from readapi.pages import IfNoneMatch
from readapi.privacy import Data, ExportedPart, Holding, PersonSearch, UserId
from readapi.queries import ReadModelUnavailable


class ForgettingProgress(Wire):
    """How far it is: the step that is done next or under way, and what was removed, by part.

    `failures` counts how often that step has failed, by `error`.
    """

    user_id: str
    status: Literal["forgetting", "forgotten"]
    requested_at: Time
    step: ErasureStep | None = None
    failures: int | None = None
    error: str | None = None
    counts: dict[str, int]
    forgotten_at: Time | None = None


@dataclass(frozen=True)
class ErasureSearch:
    """Finds how far it is with a user of a database; may block."""

    persons: Persons
    database_url: str

    def find(self, user_id: str) -> Erasure | None:
        """Return it; None where nobody asked to have that user forgotten. Raise psycopg.Error."""
        person = self.persons.look_up(user_id)
        if person is None:
            return None
        with open_connection(self.database_url, "erasure") as conn:
            return find_erasure(conn, person.pseudonym)


def progress_of(user_id: str, found: Erasure) -> ForgettingProgress:
    """Return the same as it is told."""
    done = found.finished_at is not None
    return ForgettingProgress(
        user_id=user_id,
        status="forgotten" if done else "forgetting",
        requested_at=found.fenced_at,
        step=None if done else found.step,
        failures=found.failures or None,
        error=found.error,
        counts=dict(found.counts),
        forgotten_at=found.finished_at,
    )


async def _search(request: Request) -> ErasureSearch:
    search: ErasureSearch = request.app.state.erasures
    return search


router = APIRouter(tags=["privacy"])


@router.get(
    "/users/{user_id}/forgetting",
    response_model=ForgettingProgress,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="How far it is with a user who is forgotten",
)
async def get_forgetting(
    user_id: Annotated[str, Path(min_length=1, max_length=128, examples=["alice"])],
    request: Request,
    caller: Admin,
    search: Annotated[ErasureSearch, Depends(_search)],
    if_none_match: IfNoneMatch = None,
) -> Response:
    try:
        found = await in_thread(search.find, user_id)
    except psycopg.Error as error:
        raise ReadModelUnavailable(str(error)) from error
    if found is None:
        raise Problem(404, "not-found", "Nobody asked to have this user forgotten.")
    return await conditional_wire(request, progress_of(user_id, found))


class PersonCertificate(Wire):
    """What every place has of a user now; `found` is how much that is in all.

    `complete` is false where a place did not answer: it may have more.
    """

    user_id: str
    looked_at: Time
    found: int
    complete: bool
    parts: list[ExportedPart]


@router.get(
    "/users/{user_id}/certificate",
    response_model=PersonCertificate,
    responses=problems(401, 403, 409, 422, 503),
    summary="What is left of a user, looked for in every place",
)
async def get_certificate(user_id: UserId, caller: Admin, request: Request, data: Data) -> Response:
    """The same as `backlot privacy certify`: whatever is stored is read, which takes its time.

    409 while another one, or an export, is made.
    """
    search: ErasureSearch = request.app.state.erasures
    if data.busy.locked():
        raise Problem(409, "conflict", "Another export or certificate is made; try again soon.")
    try:
        async with data.busy:
            person = await in_thread(search.persons.look_up, user_id)
            subject = user_id if person is None else person.pseudonym
            told = {"path": request.url.path, "actor": subject}
            record(SecurityEvent.PERSONAL_DATA_READ, caller.person, **told)
            async with data.look(subject) as looking:
                holdings = await certificate(looking, user_id, person)
    except psycopg.Error as error:
        raise ReadModelUnavailable(str(error)) from error
    return wire(
        PersonCertificate(
            user_id=user_id,
            looked_at=datetime.now(UTC),
            found=sum(each.count or 0 for each in holdings),
            complete=not any(each.is_away for each in holdings),
            parts=[data.described(each) for each in holdings],
        )
    )


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


TABLES = b"""
SELECT nspname, relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE relkind = 'r' AND nspname <> 'information_schema' AND nspname !~ '^pg_' ORDER BY 1, 2
"""
ROWS = """
SELECT count(*) FROM {table} AS t
WHERE t::text ~ %(word)s OR position(%(hex)s IN t::text) > 0
"""
# What a word does not go on with, before it and behind it.
WORD = "(?<![[:alnum:]_])%s(?![[:alnum:]_])"
SPECIAL = re.compile(r"([^A-Za-z0-9_])")
KEYS_AT_ONCE = 1_000


def rows_with(conn: Connection[TupleRow], text: str) -> Counter[str]:
    """Return how many rows say a text, by `schema.table`, where any do; raise psycopg.Error.

    A table that is dropped meanwhile, as a copy is after a replay, has none.
    """
    given = {"word": WORD % SPECIAL.sub(r"\\\1", text), "hex": json_bytes(text).hex()}
    found: Counter[str] = Counter()
    with conn.transaction():
        conn.execute("SET LOCAL statement_timeout = 0")
        for schema, name in conn.execute(TABLES).fetchall():
            query = SQL(ROWS).format(table=Identifier(schema, name))
            with suppress(UndefinedTable), conn.transaction():
                ((found[f"{schema}.{name}"],),) = conn.execute(query, given).fetchall()
    return +found


async def keys_with(redis: Redis, text: str) -> Counter[str]:
    """Return how many keys of Redis say a text, in their names or values; raise RedisError."""
    word = re.compile(rb"(?<!\w)%s(?!\w)" % re.escape(text.encode()))
    found: Counter[str] = Counter()
    async for key in redis.scan_iter(count=KEYS_AT_ONCE):
        name = _bytes(key)
        values = [name, *[each async for each in _values(redis, name)]]
        if any(word.search(each) for each in values):
            found[name.decode(errors="backslashreplace")] += 1
    return found


async def _values(redis: Redis, key: bytes) -> AsyncIterator[bytes]:
    reads: dict[str, Any] = {
        "string": lambda: redis.mget([key]),
        "hash": lambda: redis.hgetall(key),
        "list": lambda: redis.lrange(key, 0, -1),
        "set": lambda: redis.smembers(key),
        "zset": lambda: redis.zrange(key, 0, -1),
    }
    kind = _bytes(await redis.type(key)).decode()
    # What ends meanwhile has no kind.
    held: Any = await reads[kind]() if kind in reads else ()
    parts: Iterable[Any] = [*held.keys(), *held.values()] if isinstance(held, dict) else held
    for part in parts:
        if part is not None:
            yield _bytes(part)


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
