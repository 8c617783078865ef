"""A database from a backup: whom the places outside know as forgotten is erased again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from structlog.testing import capture_logs

from domain.errors import Forgotten
from engine.erasures import ERASED_AGAIN, compare_forgotten, erase_again, purge_restored
from engine.personal_data import Pace, PersonalTable, Rewritten
from engine.persons import Persons
from engine.purge import SharedTime, purge_tables
from engine.seals.forgotten_list import ForgottenList, person_digest, record_forgotten
from engine.seals.outside import Outside
from engine.seals.places import AnchorsUnusable, LineFile
from engine.seals.proofs import Proofs
from infra.key_encryption import GivenKey
from tests.integration.event_log import rows, tables_made

KEK = GivenKey(secrets.token_hex(32))
AT = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def persons(database_url: str) -> Iterator[Persons]:
    tables_made(database_url)
    persons = Persons(database_url, KEK)
    persons.open()
    yield persons
    persons.close()


@pytest.fixture
def places(tmp_path: Path) -> list[ForgottenList]:
    return [ForgottenList(LineFile(tmp_path / name)) for name in ("near", "far")]


def proofs(places: list[ForgottenList]) -> Proofs:
    return Proofs(outside=Outside(forgotten=places))


def compared(
    database_url: str, places: list[ForgottenList], *, completes: bool = True
) -> list[str]:
    with psycopg.connect(database_url, autocommit=True) as conn:
        return compare_forgotten(conn, places, completes=completes)


def forget(persons: Persons, places: list[ForgottenList], name: str) -> str:
    """What the worker does, as far as the places outside are told of it."""
    pseudonym = persons.admit(name)
    persons.fence(pseudonym)
    persons.destroy(pseudonym)
    record_forgotten(proofs(places), pseudonym, AT)
    return pseudonym


def test_whoever_is_alive_again_is_found(
    database_url: str, persons: Persons, places: list[ForgottenList]
) -> None:
    alive, fenced = persons.admit("ann"), persons.admit("bob")
    persons.fence(fenced)
    forget(persons, places, "eve")
    # Somebody who came after the backup is not in it at all.
    for each in (alive, fenced, "came-later"):
        record_forgotten(proofs(places), each, AT)
    persons.admit("zoe")
    assert compared(database_url, places) == sorted([alive, fenced])


def test_whom_a_worker_is_just_forgetting_is_none_of_them(
    database_url: str, persons: Persons, places: list[ForgottenList]
) -> None:
    person = persons.admit("ann")
    persons.fence(person)
    record_forgotten(proofs(places), person, AT)
    assert compared(database_url, places) == [person]
    rows(database_url, "UPDATE backlot_erasures SET step = 'key' RETURNING 1")
    assert compared(database_url, places) == []


def test_who_is_known_in_one_place_only_is_found(
    database_url: str, persons: Persons, places: list[ForgottenList]
) -> None:
    alive = persons.admit("ann")
    record_forgotten(proofs(places[1:]), alive, AT)
    assert compared(database_url, places, completes=False) == [alive]
    assert places[0].read() == {}
    assert compared(database_url, places) == [alive]
    assert places[0].read() == places[1].read() == {person_digest(alive): AT}


def test_a_place_that_is_new_or_cut_off_is_completed_from_the_database(
    database_url: str, persons: Persons, places: list[ForgottenList], tmp_path: Path
) -> None:
    forgotten = {person_digest(forget(persons, places, name)) for name in ("ann", "bob", "eve")}
    whole = (tmp_path / "far").read_bytes()
    (tmp_path / "far").write_bytes(b"".join(whole.splitlines(keepends=True)[:1]))
    (tmp_path / "near").unlink()
    with capture_logs() as told:
        assert compared(database_url, places) == []
    assert [each.read().keys() for each in places] == [forgotten, forgotten]
    said = [(each["event"], each["log_level"], each["persons"]) for each in told]
    assert said == [
        ("forgotten_list_completed", "info", 3),
        ("forgotten_list_completed", "warning", 2),
    ]


def test_a_list_that_was_changed_stops_it(
    database_url: str, persons: Persons, places: list[ForgottenList], tmp_path: Path
) -> None:
    forget(persons, places, "ann")
    forget(persons, places, "bob")
    lines = (tmp_path / "far").read_bytes().splitlines(keepends=True)
    (tmp_path / "far").write_bytes(lines[1])
    with pytest.raises(AnchorsUnusable, match="the list was changed"):
        compared(database_url, places)


def test_a_list_that_was_changed_is_told_by_verifications_and_doctor(
    database_url: str, persons: Persons, places: list[ForgottenList], tmp_path: Path
) -> None:
    forget(persons, places, "ann")
    outside = Outside(forgotten=places)
    with psycopg.connect(database_url, autocommit=True) as conn:
        assert outside.compare(conn).unusable == []
        (tmp_path / "far").write_bytes(b"something else\n")
        (told,) = outside.compare(conn).unusable
    assert "far, line 1 is no entry of who was forgotten" in told


def test_a_place_that_takes_nothing_is_only_told(
    database_url: str, persons: Persons, places: list[ForgottenList], tmp_path: Path
) -> None:
    forget(persons, places, "ann")
    lost = ForgottenList(LineFile(tmp_path / "not mounted" / "list"))
    with capture_logs() as told:
        assert compared(database_url, [*places, lost]) == []
    assert [each["event"] for each in told] == ["forgotten_list_not_completed"]


def test_the_restored_are_purged_and_have_neither_name_nor_key(
    database_url: str, persons: Persons, places: list[ForgottenList]
) -> None:
    ann, bob = persons.admit("ann"), persons.admit("bob")
    for each in (ann, bob):
        record_forgotten(proofs(places), each, AT)
    counted, purged = ERASED_AGAIN._value.get(), list[str]()
    with capture_logs() as told:
        erase_again(persons, compared(database_url, places), purged.append)
    assert purged == sorted([ann, bob])
    assert ERASED_AGAIN._value.get() == counted + 2
    (line,) = told
    assert (line["event"], line["persons"]) == ("restored_persons_erased", 2)
    for name in ("ann", "bob"):
        with pytest.raises(Forgotten):
            persons.admit(name)
    assert persons.names([ann, bob]) == dict.fromkeys((ann, bob), "forgotten")
    left = rows(database_url, "SELECT name, key, fenced_at IS NULL FROM backlot_persons")
    assert left == [(None, None, False)] * 2
    assert compared(database_url, places) == []


def test_whom_only_an_old_log_names_is_erased_before_they_come(
    database_url: str, persons: Persons, places: list[ForgottenList]
) -> None:
    """A backup of the release before pseudonyms has nobody but in its log."""
    for name in ("ann", "bob"):
        rows(database_url, "INSERT INTO backlot_former_names VALUES (%s) RETURNING 1", (name,))
    record_forgotten(proofs(places), "ann", AT)
    found = compared(database_url, places)
    assert found == ["ann"]
    erase_again(persons, found, lambda pseudonym: None)
    with pytest.raises(Forgotten):
        persons.admit("ann")
    assert persons.admit("bob") == "bob"
    assert compared(database_url, places) == []


def test_a_start_that_was_cut_off_is_done_again_by_the_next(
    database_url: str, persons: Persons, places: list[ForgottenList]
) -> None:
    ann = persons.admit("ann")
    record_forgotten(proofs(places), ann, AT)

    def cut_off(pseudonym: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erase_again(persons, compared(database_url, places), cut_off)
    with pytest.raises(Forgotten):
        persons.admit("ann")
    purged = list[str]()
    erase_again(persons, compared(database_url, places), purged.append)
    assert purged == [ann]
    assert compared(database_url, places) == []


def test_a_start_does_not_pause_for_others_and_a_worker_does(database_url: str) -> None:
    paces = list[Pace]()

    def note(_: Connection[Any], __: str, pace: Pace) -> int:
        paces.append(pace)
        return 0

    place = PersonalTable(
        name="noted", holds="nothing", kept="never", table="noted", forget=Rewritten(note, "noted")
    )
    with psycopg.connect(database_url, autocommit=True) as conn:
        purge_restored(conn, conn, [place], "ann")
        purge_tables(conn, [place], "ann")
    assert paces[0] is nullcontext
    assert isinstance(paces[1], SharedTime)


def test_nothing_is_said_where_nobody_is_alive_again(
    database_url: str, persons: Persons, places: list[ForgottenList]
) -> None:
    forget(persons, places, "ann")
    with capture_logs() as told:
        erase_again(persons, compared(database_url, places), lambda pseudonym: None)
    assert told == []
