"""What is held about one person: looked for in every place that features declare, and exported."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from tempfile import TemporaryFile
from typing import IO, Annotated, Any

import psycopg
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse
from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import AfterValidator
from pydantic.alias_generators import to_camel
from redis import RedisError
from redis.asyncio import Redis

from engine.connections import ThreadedConnection, in_thread
from engine.inspection.names import with_names
from engine.inspection.persons import (
    begun,
    events_by_topic,
    events_in_streams,
    streams_with,
)
from engine.personal_data import (
    PersonalEntries,
    PersonalEvents,
    PersonalKeys,
    PersonalObjects,
    PersonalPlace,
    PersonalStreams,
    PersonalTable,
    Row,
    count_rows,
    rows_of,
)
from engine.purge import entries_of
from infra.http.auth import Admin, Caller, Identity, ask, person_named
from infra.http.openapi import sends
from infra.http.problems import Problem, problems
from infra.http.responses import wire
from infra.http.shapes import Time, Wire, rfc3339
from infra.objects.port import NoSuchUpload, ObjectStore, ObjectStoreUnavailable
from infra.postgres.connection import open_connection
from infra.pseudonyms import UNKNOWN, OwnNames, Pseudonyms, new_pseudonym
from infra.security_log import SecurityEvent, record
from readapi.pages import storable
from readapi.queries import ReadModelUnavailable

KEYS_AT_ONCE = 1_000
CHUNK_BYTES = 64 * 1024

Batches = Iterator[list[Row]]


@dataclass(frozen=True, slots=True)
class Holding:
    """How much a place has of a person; None where that could not be looked at, and why.

    `is_away`: what has the place does not answer now.
    """

    place: PersonalPlace
    count: int | None
    note: str | None = None
    is_away: bool = False


class ExportedPart(Wire):
    """One place where something about the person is held, and how long.

    `count` is missing where nobody can look; `note` then says why. `setting` is the variable that
    decides how long, and `value` what it says here.
    """

    part: str
    holds: str
    source: str
    count: int | None = None
    kept: str
    setting: str | None = None
    value: int | float | None = None
    note: str | None = None


class PersonalExport(Wire):
    """Everything that is held about a person: what there is, and the parts by their names."""

    user_id: str
    exported_at: Time
    index: list[ExportedPart]
    parts: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class PersonalData:
    """All places, and what is needed to look into them.

    `redis` or `objects` is None where this process can't reach it; `terms` has the value of each
    setting that says how long something is kept.
    """

    places: Sequence[PersonalPlace]
    database_url: str
    analytics_url: str
    redis: Redis | None
    objects: ObjectStore | None
    terms: Mapping[str, Any]
    self_service: bool = False
    persons: Pseudonyms = field(default_factory=OwnNames)
    # One export at a time in a process: each may be large.
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @asynccontextmanager
    async def look(self, subject: str) -> AsyncIterator[PersonSearch]:
        """Connect to look for a person; raise psycopg.Error, now and while it is used.

        What is kept for all whom nobody knows here is nobody's.
        """
        subject = new_pseudonym() if subject == UNKNOWN else subject
        opened: list[Connection[TupleRow]] = []

        def open_both() -> None:
            urls = (self.database_url, self.analytics_url)
            opened.extend(open_connection(url, "personal data") for url in urls)

        try:
            await in_thread(open_both)
            main, analytics = map(ThreadedConnection, opened)
            yield PersonSearch(self, subject, main, analytics)
        finally:
            for conn in opened:
                await in_thread(conn.close)

    def distinct(self) -> list[PersonalPlace]:
        """Return the places, without tables of the analytics that are the main database's own."""
        if self.database_url != self.analytics_url:
            return list(self.places)
        tables = [place for place in self.places if isinstance(place, PersonalTable)]
        main = {(place.table, place.condition) for place in tables if not place.analytics}
        twice = [t for t in tables if t.analytics and (t.table, t.condition) in main]
        return [place for place in self.places if place not in twice]

    def described(self, holding: Holding) -> ExportedPart:
        """Return what an index says of a place."""
        place = holding.place
        return ExportedPart(
            part=place.name,
            holds=place.holds,
            source=place.source,
            count=holding.count,
            kept=place.kept,
            setting=place.setting,
            value=self.terms.get(place.setting) if place.setting else None,
            note=holding.note,
        )


@dataclass(frozen=True)
class PersonSearch:
    """Looks for one person, by the pseudonym; to be used from one event loop."""

    data: PersonalData
    subject: str
    main: ThreadedConnection
    analytics: ThreadedConnection

    async def count(self, place: PersonalPlace) -> Holding:
        """Return how much there is, all copies of a table together; raise psycopg.Error."""
        if isinstance(place, PersonalTable):
            return Holding(place, await self._database(place).do(count_rows, place, self.subject))
        return await self._take(place, lambda rows: sum(map(len, rows)))

    async def write(self, place: PersonalPlace, out: IO[bytes], between: bytes) -> Holding:
        """Write what an export shows, a JSON object for each thing; raise psycopg.Error.

        Persons have their user ids there. What is only counted is not written.
        """
        hidden = isinstance(place, PersonalTable) and place.shown is None
        if hidden or (isinstance(place, PersonalEvents) and not place.shown):
            return await self.count(place)
        return await self._take(place, partial(_write, out, between, partial(self._named, place)))

    def _named(self, place: PersonalPlace, rows: list[Row]) -> list[Row]:
        columns = place.others if isinstance(place, PersonalTable) else ()
        others = {str(row[to_camel(column)]) for row in rows for column in columns}
        names = self.data.persons.names({self.subject, *others})
        return [with_names(row, names) for row in rows]

    async def _take(self, place: PersonalPlace, take: Callable[[Batches], int]) -> Holding:
        """Return how many things `take` has taken; it may run in a thread."""
        try:
            match place:
                case PersonalTable():
                    rows = partial(rows_of, place=place, subject=self.subject)
                    return Holding(place, await self._database(place).do(_taken, rows, take))
                case PersonalEvents():
                    events = partial(events_by_topic, place=place, subject=self.subject)
                    return Holding(place, await self.main.do(_taken, events, take))
                case PersonalStreams():
                    streams = partial(events_in_streams, subject=self.subject)
                    return Holding(place, await self.main.do(_taken, streams, take))
                case PersonalKeys() if self.data.redis is not None:
                    return Holding(place, take(iter([await self._keys(self.data.redis, place)])))
                case PersonalEntries() if self.data.redis is not None:
                    return Holding(place, take(iter([await self._entries(self.data.redis, place)])))
                case PersonalObjects() if self.data.objects is not None:
                    found = await self._objects(self.data.objects, place)
                    return Holding(place, take(iter([found])))
                case PersonalKeys() | PersonalEntries():
                    return Holding(place, None, "it lies inside of the running process")
                case PersonalObjects():
                    return Holding(place, None, "the objects are not on this machine")
        except (RedisError, ObjectStoreUnavailable) as error:
            told = " ".join(str(error).split())
            return Holding(place, None, f"it does not answer: {told}", is_away=True)
        return Holding(place, None, "it can't be searched by person")

    def _database(self, place: PersonalTable) -> ThreadedConnection:
        return self.analytics if place.analytics else self.main

    async def _keys(self, redis: Redis, place: PersonalKeys) -> list[Row]:
        found: list[Row] = []
        async for key in redis.scan_iter(match=place.of(self.subject), count=KEYS_AT_ONCE):
            value = await redis.get(key)
            # It may have expired meanwhile.
            if value is not None:
                found.append({"key": _text(key), "value": _text(value)})
        return found

    async def _entries(self, redis: Redis, place: PersonalEntries) -> list[Row]:
        found = entries_of(redis, place, self.subject)
        return [{"key": key, "value": _text(value)} async for key, _, value in found]

    async def _objects(self, objects: ObjectStore, place: PersonalObjects) -> list[Row]:
        events = await self.main.do(begun, place.begun_by, self.subject)
        given = [event.originator_id for event in events]
        others = await self.main.do(streams_with, place.disowned_by, given)
        rows = [
            await _object(objects, vars(event)["object_key"], vars(event)["store_upload_id"])
            for event in events
            if event.originator_id not in others
        ]
        return [row for row in rows if row is not None]


async def _object(objects: ObjectStore, key: str, store_upload_id: str) -> Row | None:
    """Return what the store has of an upload: the object, or the parts that have arrived."""
    stored = await objects.head(key)
    if stored is not None:
        return {"key": key, "sizeBytes": stored.size, "etag": stored.etag}
    try:
        parts = await objects.list_parts(key, store_upload_id)
    except NoSuchUpload:
        return None
    return {"key": key, "parts": len(parts), "sizeBytes": sum(part.size for part in parts)}


def _taken(
    conn: Connection[TupleRow],
    rows: Callable[[Connection[TupleRow]], Batches],
    take: Callable[[Batches], int],
) -> int:
    return take(rows(conn))


def _write(
    out: IO[bytes],
    between: bytes,
    named: Callable[[list[Row]], list[Row]],
    batches: Iterable[list[Row]],
) -> int:
    count = 0
    for batch in batches:
        for row in named(batch):
            out.write(between * bool(count))
            out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())
            count += 1
    return count


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


async def document(data: PersonalData, user_id: str, subject: str) -> AsyncIterator[bytes]:
    """Yield an export as one JSON document, the index first. Raise psycopg.Error at the beginning.

    `subject` is the user's pseudonym.

    What was found waits in a temporary file, so that neither memory nor an open transaction
    depends on how fast the caller reads.
    """
    with TemporaryFile() as parts:
        index: list[dict[str, Any]] = []
        async with data.look(subject) as search:
            for place in data.distinct():
                parts.write(b"," * bool(index) + json.dumps(place.name).encode() + b":[")
                holding = await search.write(place, parts, b",")
                parts.write(b"]")
                index.append(data.described(holding).model_dump(by_alias=True, exclude_none=True))
        head = {"userId": user_id, "exportedAt": rfc3339(datetime.now(UTC)), "index": index}
        yield json.dumps(head, ensure_ascii=False).encode()[:-1] + b', "parts": {'
        parts.seek(0)
        while chunk := await asyncio.to_thread(parts.read, CHUNK_BYTES):
            yield chunk
        yield b"}}"


async def _personal_data(request: Request) -> PersonalData:
    found: PersonalData = request.app.state.personal_data
    return found


Data = Annotated[PersonalData, Depends(_personal_data)]
UserId = Annotated[
    str, Path(min_length=1, max_length=128, examples=["alice"]), AfterValidator(storable)
]

router = APIRouter(tags=["privacy"])
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"headers": sends("Content-Disposition")},
    **problems(401, 403, 422, 503),
}


# Before `/users/{user_id}/export`, which would take the word for a user id.
@router.get(
    "/users/me/export",
    response_model=PersonalExport,
    responses=ANSWERS,
    summary="Everything that is held about the caller, where a setting allows that",
)
async def export_own_data(request: Request, caller: Caller, data: Data) -> Response:
    if not data.self_service:
        raise Problem(403, "forbidden", "Here an operator exports personal data: ask for it.")
    names = await ask(data.persons.names, (caller.person,))
    user_id = names.get(caller.person, caller.person)
    return await _exported(request, data, caller, user_id, caller.person)


@router.get(
    "/users/{user_id}/export",
    response_model=PersonalExport,
    responses=ANSWERS,
    summary="Everything that is held about a person",
)
async def export_personal_data(
    user_id: UserId, request: Request, caller: Admin, data: Data
) -> Response:
    subject = await person_named(request, user_id)
    return await _exported(request, data, caller, user_id, subject)


async def _exported(
    request: Request, data: PersonalData, caller: Identity, user_id: str, subject: str
) -> StreamingResponse:
    if data.busy.locked():
        detail = "Another export is being made; try again later."
        raise Problem(503, "unavailable", detail, headers={"Retry-After": "10"})
    _tell(request, caller, subject)
    async with data.busy:
        pieces = document(data, user_id, subject)
        try:
            first = await anext(pieces)
        except psycopg.Error as error:
            raise ReadModelUnavailable(str(error)) from error
    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": 'attachment; filename="export.json"',
    }
    return StreamingResponse(_after(first, pieces), headers=headers, media_type="application/json")


def _tell(request: Request, caller: Identity, subject: str) -> None:
    path = request.scope["route"].path
    record(SecurityEvent.PERSONAL_DATA_READ, caller.person, path=path, actor=subject)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


class PersonPseudonym(Wire):
    """What stands for a user in all that is recorded, published and logged."""

    user_id: str
    pseudonym: str


@router.get(
    "/users/{user_id}/pseudonym",
    response_model=PersonPseudonym,
    responses=problems(401, 403, 404, 422, 503),
    summary="What stands for a user in events, topics and logs",
)
async def get_pseudonym(user_id: UserId, request: Request, caller: Admin) -> Response:
    pseudonym = await person_named(request, user_id)
    if pseudonym == UNKNOWN:
        raise Problem(404, "not-found", "No such user was ever here, or they were forgotten.")
    _tell(request, caller, pseudonym)
    return wire(PersonPseudonym(user_id=user_id, pseudonym=pseudonym))
