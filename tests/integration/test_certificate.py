"""What a certificate says of somebody who is forgotten: nobody's pseudonym, and the name itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fakeredis import FakeServer
from psycopg import Connection
from redis.asyncio import Redis

from backlot.features import PERSONAL, read_models
from backlot.privacy import personal_data
from engine.installation import install
from engine.personal_data import PersonalTable, count_rows
from engine.persons import KnownPerson
from infra.objects.folder import FolderStore
from infra.objects.port import StoredObject
from infra.pseudonyms import OwnNames
from infra.redis import embedded_redis
from infra.settings import load_settings
from readapi.erasure import certificate, keys_with, rows_with
from readapi.privacy import Holding
from tests.integration.projection_support import Writer, origin
from tests.support import eventually

NOW = datetime.now(UTC)
FORGOTTEN = KnownPerson("ann", NOW, NOW)
LETTER = """
INSERT INTO backlot_dead_letters (kind, subscription, source, partition, position, error, value,
                                  status)
VALUES ('consumer', 'c', 's', 0, %s, 'broke', %s, 'dead')
"""
LIKES = next(
    each for each in PERSONAL if isinstance(each, PersonalTable) and each.name == "likes.likes"
)
WAITING = """
SELECT FROM pg_locks
WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture
def conn(database_url: str, writer: Writer) -> Iterator[Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as opened:
        install(opened, read_models().all())
        yield opened


def redis() -> Redis:
    return embedded_redis(FakeServer(version=(7, 4)))


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("ann@home", b"", 1),
        ("by ann@home: hello", b"", 1),
        ("joann@home", b"", 0),
        ("ann@homestead", b"", 0),
        ("annxhome", b"", 0),
        ("", b'{"userId":"ann@home"}', 1),
        ("", b'{"userId":"joann@home"}', 0),
    ],
)
def test_a_name_is_found_as_a_word_of_its_own(
    conn: Connection[Any], text: str, value: bytes, found: int
) -> None:
    conn.execute(LETTER, (1, value))
    conn.execute("UPDATE backlot_dead_letters SET error = %s", (text,))
    assert rows_with(conn, "ann@home") == Counter(
        {"public.backlot_dead_letters": found} if found else {}
    )


@pytest.mark.parametrize(
    "look",
    [
        lambda conn: rows_with(conn, "ann")["likes.likes"],
        lambda conn: count_rows(conn, LIKES, "ann"),
    ],
    ids=["a text", "a person"],
)
def test_a_table_that_is_dropped_meanwhile_has_nothing(
    conn: Connection[Any], database_url: str, look: Callable[[Connection[Any]], int]
) -> None:
    conn.execute("INSERT INTO likes.likes VALUES (gen_random_uuid(), 'ann', 1)")
    assert look(conn) == 1
    with ThreadPoolExecutor() as pool, psycopg.connect(database_url) as replay:
        replay.execute("DROP TABLE likes.likes")
        # It is there for everybody else as long as that is not committed.
        looked = pool.submit(look, conn)
        eventually(lambda: replay.execute(WAITING).fetchall())
        replay.commit()
        assert looked.result() == 0


def test_a_name_is_found_in_keys_and_in_what_they_hold() -> None:
    async def work() -> Counter[str]:
        client = redis()
        await client.set("by:ann", "1")
        await client.set("by:joanna", "1")
        await client.set("text", b"told by ann")
        await client.hset("hash", "field", "ann")
        await client.rpush("list", "ann")
        await client.sadd("set", "annabel")
        await client.zadd("sorted", {"ann": 1})
        return await keys_with(client, "ann")

    assert asyncio.run(work()) == {"by:ann": 1, "text": 1, "hash": 1, "list": 1, "sorted": 1}


def certified(
    database_url: str, tmp_path: Path, user: str, person: KnownPerson | None, **keys: str
) -> list[Holding]:
    async def work() -> list[Holding]:
        objects = FolderStore(tmp_path, b"s" * 32, timedelta(hours=1), lambda: NOW)
        client = redis()
        for key, value in keys.items():
            await client.set(key, value)
        data = personal_data(load_settings({}), database_url, client, objects, OwnNames())
        subject = user if person is None else person.pseudonym
        async with data.look(subject) as search:
            return await certificate(search, user, person)

    return asyncio.run(work())


def found(holdings: list[Holding]) -> dict[str, int]:
    """What is found where anything is, by the part and, of the name itself, by where."""
    return {
        each.place.source if each.place.name == "name" else each.place.name: each.count
        for each in holdings
        if each.count
    }


def test_events_of_a_forgotten_person_are_nobody_s_and_the_name_is_looked_for(
    database_url: str, conn: Connection[Any], writer: Writer, tmp_path: Path
) -> None:
    writer.like(writer.video("bob").id, "ann")
    assert found(certified(database_url, tmp_path, "ann@home", None)) == {}
    assert found(certified(database_url, tmp_path, "ann@home", KnownPerson("ann"))) == {"events": 1}
    whole = certified(database_url, tmp_path, "ann@home", FORGOTTEN)
    assert found(whole) == {}
    (events,) = (each for each in whole if each.place.name == "events")
    assert (events.count, events.note) == (0, f"1 under a pseudonym: {events.place.forget}")
    conn.execute(LETTER, (1, b'{"userId":"ann@home"}'))
    assert found(certified(database_url, tmp_path, "ann@home", FORGOTTEN, old="ann@home")) == {
        "table public.backlot_dead_letters": 1,
        "Redis, old": 1,
    }


def test_whose_user_id_is_the_pseudonym_is_named_by_events(
    database_url: str, conn: Connection[Any], writer: Writer, tmp_path: Path
) -> None:
    writer.like(writer.video("bob").id, "ann")
    told = found(certified(database_url, tmp_path, "ann", FORGOTTEN))
    assert told == {"events": 1, "table public.backlot_events": 1}


def test_films_that_stay_as_somebody_else_s_are_not_the_person_s(
    database_url: str,
    conn: Connection[Any],
    writer: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def head(self: FolderStore, key: str) -> StoredObject:
        return StoredObject(key, 4, "etag")

    monkeypatch.setattr(FolderStore, "head", head)
    kept, _ = writer.video("ann"), writer.video("ann")
    assert found(certified(database_url, tmp_path, "ann", KnownPerson("ann")))["objects"] == 2
    kept.erase("ann", "heir", origin("privacy"))
    writer.save(kept)
    assert found(certified(database_url, tmp_path, "ann", KnownPerson("ann")))["objects"] == 1
