"""Viewers without a name are told apart for a day, and nobody can say afterwards who they were."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from engine.viewers import Salt, ViewerKeys, salt_of_today
from tests.integration.event_log import rows
from workers.maintenance import forget

ADDRESS, CLIENT = "203.0.113.7", "VLC/3.0.20"
HOUR = timedelta(hours=1)


@pytest.fixture
def database(database_url: str) -> str:
    return database_url


def keys(viewers: ViewerKeys, *who: tuple[str, str]) -> list[str]:
    async def made() -> Sequence[str]:
        return await asyncio.gather(*(viewers.key(*one) for one in who))

    return list(asyncio.run(made()))


def salts(database: str) -> list[tuple[bytes]]:
    return rows(database, "SELECT salt FROM backlot_viewer_salts")


def let_a_day_pass(database: str) -> None:
    rows(database, "UPDATE backlot_viewer_salts SET day = day - 1 RETURNING 1")


def test_address_and_client_are_a_viewer_in_every_process(database: str) -> None:
    who = [(ADDRESS, CLIENT), (ADDRESS, CLIENT), (ADDRESS, "curl/8"), ("203.0.113.8", CLIENT)]
    one, same, other_client, other_address = keys(ViewerKeys(database), *who)
    assert one == same
    assert len({one, other_client, other_address}) == 3
    assert keys(ViewerKeys(database), who[0]) == [one]


def test_a_key_is_a_hash_that_needs_the_salt(database: str) -> None:
    (key,) = keys(ViewerKeys(database), (ADDRESS, CLIENT))
    assert (len(key), len(bytes.fromhex(key))) == (64, 32)
    ((salt,),) = salts(database)
    assert len(salt) == 32


def test_processes_that_begin_the_day_together_use_one_salt(database: str) -> None:
    def read(_: int) -> Salt:
        with psycopg.connect(database, autocommit=True) as conn:
            return salt_of_today(conn)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(read, range(8)))) == 1


def test_the_next_day_has_another_salt_and_the_old_one_is_gone(database: str) -> None:
    now = datetime.now(UTC)
    viewers = ViewerKeys(database, clock=lambda: now)
    (before,) = keys(viewers, (ADDRESS, CLIENT))
    (old,) = salts(database)
    ((today,),) = rows(database, "SELECT day FROM backlot_viewer_salts")
    now = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
    let_a_day_pass(database)
    assert keys(viewers, (ADDRESS, CLIENT)) == [before]
    now += timedelta(days=1)
    (after,) = keys(viewers, (ADDRESS, CLIENT))
    (new,) = salts(database)
    assert (before != after, old != new) == (True, True)


def test_a_salt_is_deleted_after_its_day_even_where_nobody_comes_any_more(database: str) -> None:
    keys(ViewerKeys(database), (ADDRESS, CLIENT))
    assert forget(database, HOUR)["salts"] == 0
    let_a_day_pass(database)
    assert forget(database, HOUR)["salts"] == 1
    assert salts(database) == []


def test_without_salts_there_is_no_key(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("DROP TABLE backlot_viewer_salts")
    with pytest.raises(psycopg.Error):
        keys(ViewerKeys(database), (ADDRESS, CLIENT))
