"""Whom the logs of older releases name: found by the migration, whatever else lies in them."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest
from psycopg import Connection

from domain.model import EVENTS, SystemActor
from engine.archive.persons import named_in
from engine.installation import ENGINE, LOG, migrate
from engine.persons import Persons
from infra.key_encryption import GivenKey
from tests.support import PROJECT

GOLDEN = PROJECT / "tests" / "golden" / "events"
FIRST_WITH_PSEUDONYMS = 11
LIKED = "video_likes.liked.v1"


@pytest.fixture
def former(empty_database_url: str, tmp_path: Path) -> str:
    """A database of the last release before there were pseudonyms."""
    folder = tmp_path / "sql"
    copytree(ENGINE.folder, folder)
    for path in folder.glob("*.sql"):
        if int(path.name[:4]) >= FIRST_WITH_PSEUDONYMS:
            path.unlink()
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        migrate(conn, replace(ENGINE, folder=folder), LOG)
    return empty_database_url


def store(database_url: str, *states: tuple[str, bytes]) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        for position, (topic, state) in enumerate(states, start=1):
            conn.execute(
                "INSERT INTO backlot_events VALUES (%s, 1, %s, %s, %s)",
                (uuid4(), topic, state, position),
            )


def migrated(database_url: str) -> set[str]:
    with psycopg.connect(database_url, autocommit=True) as conn:
        migrate(conn, ENGINE, LOG)
        return names(conn)


def names(conn: Connection[Any]) -> set[str]:
    return {name for (name,) in conn.execute("SELECT name FROM backlot_former_names").fetchall()}


def golden() -> list[tuple[str, bytes]]:
    """An event of each kind and version that any release before has recorded."""
    found = (orjson.loads(path.read_bytes()) for path in sorted(GOLDEN.glob("*.json")))
    return [
        (each["topic"], each["state"].encode())
        for each in found
        if not each["topic"].startswith("person.")
    ]


def test_whoever_is_named_in_any_kind_of_event_keeps_the_name(former: str) -> None:
    events = golden()
    assert {topic for topic, _ in events} <= EVENTS.keys()
    store(former, *events)
    payloads = ((topic, orjson.loads(state)) for topic, state in events)
    expected = {name for topic, payload in payloads for _, name in named_in(topic, payload)}
    assert len(expected) > 2
    assert migrated(former) == expected


ODD = [
    b"\xff\xfe not utf-8",
    b"not json",
    b'"a text"',
    b"[1, 2]",
    b"null",
    b"17",
    b"",
    b"{" * 100_000,
    b'{"actor": "cut off',
    b'{"actor": "\\u0000", "viewer": "\\ud800"}',
    b'{"actor": 1e400000, "viewer": "a number too large"}',
    orjson.dumps({"actor": {"viewer": "within"}, "viewer": ["within"], "owner": None}),
    orjson.dumps({"actor": "long" * 1_000, "viewer": ""}),
    *(orjson.dumps({"actor": str(each)}) for each in SystemActor),
    orjson.dumps({"actor": "operator:root"}),
    orjson.dumps({"actor": "a-key", "actor_kind": "anonymous"}),
    orjson.dumps({"actor": "named-system", "actor_kind": "system"}),
]


def test_nothing_that_lies_in_a_log_stops_the_migration(former: str) -> None:
    named = [
        orjson.dumps({"actor": "ann", "content": "a NUL: \0", "viewer": "bob"}),
        orjson.dumps({"actor": "c\\u0000d", "content": "\\\0"}),
        orjson.dumps({"actor": "Zoë 🎬", "actor_kind": "operator"}),
    ]
    store(former, *((LIKED, state) for state in (*ODD, *named)))
    found = migrated(former)
    assert found == {"ann", "bob", "c\\u0000d", "Zoë 🎬"}


def test_a_log_with_far_positions_ends_too(former: str) -> None:
    with psycopg.connect(former, autocommit=True) as conn:
        for position, name in ((-5, "ann"), (2**62, "bob")):
            conn.execute(
                "INSERT INTO backlot_events VALUES (%s, 1, %s, %s, %s)",
                (uuid4(), LIKED, orjson.dumps({"actor": name}), position),
            )
    assert migrated(former) == {"ann", "bob"}


def test_who_has_only_watched_keeps_the_name_too(former: str) -> None:
    with psycopg.connect(former, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO backlot_telemetry (event_id, topic, video_id, user_id, happened_at, "
            "details) VALUES (gen_random_uuid(), 'video.viewed', gen_random_uuid(), 'eve', now(), "
            "'{}')"
        )
    assert migrated(former) == {"eve"}


def test_who_is_named_goes_on_as_the_same_person(former: str) -> None:
    store(former, (LIKED, orjson.dumps({"actor": "ann", "viewer": "ann"})))
    migrated(former)
    persons = Persons(former, GivenKey(secrets.token_hex(32)))
    try:
        persons.open()
        assert persons.admit("ann") == "ann"
        assert persons.admit("bob") != "bob"
        assert persons.names(["ann"]) == {"ann": "ann"}
    finally:
        persons.close()
