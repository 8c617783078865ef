"""The wrapping keys of a database: who makes them, how they are rotated, and by what wrapped."""

from __future__ import annotations

import secrets
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from engine import wrapping_keys
from engine.persons import Persons
from engine.wrapping_keys import (
    KeyDamaged,
    RotationElsewhere,
    WrappedKey,
    WrappingKeys,
    load_wrapping_keys,
    look,
    rewrap,
    rotate,
)
from infra.advisory_locks import hold, job_lock
from infra.key_encryption import FileKey, GivenKey, KeyEncryptionFailed, VaultKey
from tests.integration.key_servers import NAME, TOKEN, VaultServer, serving
from tests.integration.person_support import KEK, opened

pytestmark = pytest.mark.no_analytics
USERS = [f"user {number}" for number in range(7)]


def start(database_url: str, kek: FileKey | GivenKey) -> bytes | str:
    """Start with a key: what a name is found by, or why the start ends."""
    try:
        with opened(database_url, kek):
            pass
    except KeyEncryptionFailed as error:
        return str(error)
    with psycopg.connect(database_url, autocommit=True) as conn:
        return load_wrapping_keys(conn, kek).digest("alice")


def rows(conn: Connection[TupleRow]) -> list[Any]:
    return conn.execute("SELECT * FROM backlot_wrapping_keys ORDER BY number").fetchall()


def wrapped_by(conn: Connection[TupleRow]) -> dict[int, int]:
    """How many persons' keys each wrapping key wraps."""
    return {each.number: each.persons for each in look(conn) if each.purpose == "persons"}


class TestStart:
    def test_a_new_database_gets_one_key_of_each_kind(
        self, conn: Connection[TupleRow], database_url: str, tmp_path: Path
    ) -> None:
        kek = FileKey(tmp_path / "kek")
        first = start(database_url, kek)
        assert [each.purpose for each in look(conn)] == ["lookup", "persons"]
        assert isinstance(first, bytes)
        assert start(database_url, kek) == first

    def test_nothing_but_a_start_makes_keys(
        self, conn: Connection[TupleRow], database_url: str, tmp_path: Path
    ) -> None:
        persons = Persons(database_url, FileKey(tmp_path / "kek"))
        try:
            for ask in (persons.admit, persons.find):
                with pytest.raises(KeyEncryptionFailed, match="start Backlot on it once"):
                    ask("alice")
        finally:
            persons.close()
        assert rows(conn) == []
        assert not list(tmp_path.iterdir())

    def test_a_lost_file_has_no_successor(
        self, conn: Connection[TupleRow], database_url: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "kek"
        start(database_url, FileKey(path))
        before = rows(conn)
        path.unlink()
        told = start(database_url, FileKey(path))
        assert isinstance(told, str)
        assert f"the key-encryption key {path} is missing" in told
        assert "\n" not in told
        assert rows(conn) == before
        assert not list(tmp_path.iterdir())

    def test_another_key_changes_nothing(
        self, conn: Connection[TupleRow], database_url: str, tmp_path: Path
    ) -> None:
        start(database_url, FileKey(tmp_path / "kek"))
        before = rows(conn)
        told = start(database_url, GivenKey(secrets.token_hex(32)))
        assert isinstance(told, str)
        assert told.startswith("KEY_ENCRYPTION_KEY is another key-encryption key")
        assert f"wrapped by {tmp_path / 'kek'}" in told
        assert rows(conn) == before

    def test_of_two_processes_with_folders_of_their_own_one_makes_the_keys(
        self,
        conn: Connection[TupleRow],
        database_url: str,
        tmp_path: Path,
        processes: ProcessPoolExecutor,
    ) -> None:
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder in folders:
            folder.mkdir()
        asked = [processes.submit(start, database_url, FileKey(each / "kek")) for each in folders]
        ended = [each.result() for each in asked]
        (told,) = (each for each in ended if isinstance(each, str))
        assert "give that key to every process, such as by KEY_ENCRYPTION_KEY_FILE" in told
        assert len(rows(conn)) == 2
        # The one that came second has made no key that fits nothing.
        assert len([each for folder in folders for each in folder.iterdir()]) == 1

    def test_processes_with_one_key_start_together(
        self, conn: Connection[TupleRow], database_url: str, processes: ProcessPoolExecutor
    ) -> None:
        asked = [processes.submit(start, database_url, KEK) for _ in range(6)]
        (digest,) = {each.result() for each in asked}
        assert isinstance(digest, bytes)
        assert len(rows(conn)) == 2

    def test_persons_without_wrapping_keys_are_an_accident(
        self, conn: Connection[TupleRow], database_url: str, tmp_path: Path
    ) -> None:
        conn.execute(
            "INSERT INTO backlot_persons (pseudonym, lookup, fenced_at, forgotten_at)"
            " VALUES ('a', 'b', now(), now())"
        )
        told = start(database_url, FileKey(tmp_path / "kek"))
        assert isinstance(told, str)
        assert "restore the table backlot_wrapping_keys" in told
        assert not list(tmp_path.iterdir())

    def test_a_key_in_the_place_of_another_is_refused(
        self, conn: Connection[TupleRow], database_url: str
    ) -> None:
        start(database_url, KEK)
        conn.execute(
            "UPDATE backlot_wrapping_keys SET wrapped = (SELECT wrapped FROM backlot_wrapping_keys "
            "WHERE purpose = 'persons') WHERE purpose = 'lookup'"
        )
        assert "another key-encryption key" in str(start(database_url, KEK))


class TestRotation:
    def test_every_person_s_key_is_wrapped_anew(
        self, conn: Connection[TupleRow], database_url: str
    ) -> None:
        with opened(database_url) as persons:
            pseudonyms = [persons.admit(user) for user in USERS]
            texts = {each: seal(persons, each) for each in pseudonyms}
            (before,) = wrapped_by(conn)
            done = rotate(conn, KEK)
            assert done == (before + 1, True, len(USERS), [before])
            assert wrapped_by(conn) == {before + 1: len(USERS)}
        with opened(database_url) as persons:
            assert [persons.admit(user) for user in USERS] == pseudonyms
            assert {each: unseal(persons, each, text) for each, text in texts.items()} == dict(
                zip(pseudonyms, pseudonyms, strict=True)
            )

    def test_processes_that_run_meanwhile_go_on(
        self, conn: Connection[TupleRow], database_url: str
    ) -> None:
        with opened(database_url) as persons:
            alice = persons.admit("alice")
            text = seal(persons, alice)
            for turn in range(3):
                rotate(conn, KEK)
                # What it has read is forgotten, and the key that it makes persons with is gone.
                persons.drop(alice)
                assert unseal(persons, alice, text) == alice
                assert persons.names([persons.admit(f"newcomer {turn}")])
        assert sum(wrapped_by(conn).values()) == 4

    def test_a_newcomer_is_admitted_by_who_knows_only_the_removed_key(
        self, conn: Connection[TupleRow], database_url: str
    ) -> None:
        with opened(database_url) as persons:
            rotate(conn, KEK)
            assert persons.names([persons.admit("alice")]) == {persons.find("alice"): "alice"}
            rotate(conn, KEK)
            conn.execute("INSERT INTO backlot_former_names VALUES ('bob')")
            assert persons.names(["bob"]) == {"bob": "bob"}

    def test_what_was_interrupted_goes_on(
        self, conn: Connection[TupleRow], database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wrapping_keys, "BATCH_PERSONS", 2)
        with opened(database_url) as persons:
            for user in USERS:
                persons.admit(user)
        with broken_after(5), pytest.raises(KeyboardInterrupt):
            rotate(conn, KEK)
        # Whole batches are done, and both keys are there.
        assert sorted(wrapped_by(conn).values()) == [3, 4]
        with opened(database_url) as persons:
            assert len(persons.names(filter(None, map(persons.find, USERS)))) == len(USERS)
        done = rotate(conn, KEK)
        assert (done.begun, done.persons) == (False, 3)
        assert wrapped_by(conn) == {done.newest: len(USERS)}

    def test_persons_come_and_go_meanwhile(
        self, conn: Connection[TupleRow], database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wrapping_keys, "BATCH_PERSONS", 3)
        start(database_url, KEK)
        ended, made = Event(), dict[str, str]()

        def come_and_go(part: int) -> None:
            with opened(database_url) as persons:
                number = 0
                while not ended.is_set() or number < 20:
                    user = f"{part} {number}"
                    made[user] = persons.admit(user)
                    if number % 3 == 0:
                        persons.fence(made[user])
                        persons.destroy(made.pop(user))
                    number += 1

        with ThreadPoolExecutor(3) as threads:
            parts = [threads.submit(come_and_go, part) for part in range(3)]
            try:
                for _ in range(5):
                    rotate(conn, KEK)
            finally:
                ended.set()
            for part in parts:
                part.result()
        rotate(conn, KEK)
        with opened(database_url) as persons:
            assert persons.names(made.values()) == {name: user for user, name in made.items()}
        (newest,) = wrapped_by(conn)
        assert wrapped_by(conn) == {newest: len(made)}

    def test_only_one_process_rotates(self, conn: Connection[TupleRow], database_url: str) -> None:
        start(database_url, KEK)
        with (
            psycopg.connect(database_url, autocommit=True) as other,
            hold(other, job_lock("wrapping keys")),
            pytest.raises(RotationElsewhere),
        ):
            rotate(conn, KEK)
        assert rotate(conn, KEK).begun

    def test_a_changed_row_keeps_the_old_key(
        self, conn: Connection[TupleRow], database_url: str
    ) -> None:
        with opened(database_url) as persons:
            alice, bob = persons.admit("alice"), persons.admit("bob")
            conn.execute("UPDATE backlot_persons SET key = name WHERE pseudonym = %s", (alice,))
            with pytest.raises(KeyDamaged, match=alice):
                rotate(conn, KEK)
            assert len(wrapped_by(conn)) == 2
            persons.drop(bob)
            assert persons.names([bob]) == {bob: "bob"}
            persons.fence(alice)
            persons.destroy(alice)
        assert not rotate(conn, KEK).begun
        assert list(wrapped_by(conn).values()) == [1]


class TestRewrapping:
    def test_another_key_takes_over(
        self, conn: Connection[TupleRow], database_url: str, tmp_path: Path
    ) -> None:
        former = FileKey(tmp_path / "kek")
        digest, new = start(database_url, former), GivenKey(secrets.token_hex(32))
        done = rewrap(conn, new, former)
        assert done == ("KEY_ENCRYPTION_KEY", 2, [former.name])
        assert start(database_url, new) == digest
        assert "another key-encryption key" in str(start(database_url, former))
        # Twice is once: what the new key has wrapped needs no former one.
        assert rewrap(conn, new, FileKey(tmp_path / "none")).keys == 2
        assert start(database_url, new) == digest

    def test_a_file_is_made_for_who_goes_back_to_one(
        self, conn: Connection[TupleRow], database_url: str, tmp_path: Path
    ) -> None:
        digest, file = start(database_url, KEK), FileKey(tmp_path / "kek")
        rewrap(conn, file, KEK)
        assert start(database_url, file) == digest

    def test_a_new_version_in_vault_is_used(
        self, conn: Connection[TupleRow], database_url: str
    ) -> None:
        server = VaultServer()
        with serving(server):
            kek = VaultKey(server.url, TOKEN, NAME)
            rewrap(conn_with_keys(conn, database_url), kek, KEK)
            server.rotate()
            rewrap(conn, kek, KEK)
        wrapped = conn.execute("SELECT wrapped, kek FROM backlot_wrapping_keys").fetchall()
        assert {(bytes(each)[:9], by) for each, by in wrapped} == {(b"vault:v2:", "vault:backlot")}

    def test_a_lost_key_has_no_successor(
        self, conn: Connection[TupleRow], database_url: str, tmp_path: Path
    ) -> None:
        start(database_url, KEK)
        before, lost = rows(conn), FileKey(tmp_path / "kek")
        with pytest.raises(KeyEncryptionFailed, match=r"missing, and .* OLD_KEY_ENCRYPTION_KEY"):
            rewrap(conn, lost, lost)
        assert rows(conn) == before
        assert not list(tmp_path.iterdir())

    def test_all_are_wrapped_anew_or_none(
        self, conn: Connection[TupleRow], database_url: str
    ) -> None:
        class Forgetful(GivenKey):
            def wrap(self, key: bytes, purpose: str) -> bytes:
                return super().wrap(key if purpose == "lookup" else key[::-1], purpose)

        start(database_url, KEK)
        before = rows(conn)
        with pytest.raises(KeyEncryptionFailed, match="does not give back"):
            rewrap(conn, Forgetful(secrets.token_hex(32)), KEK)
        assert rows(conn) == before

    def test_a_new_database_has_nothing_to_wrap(self, conn: Connection[TupleRow]) -> None:
        with pytest.raises(KeyEncryptionFailed, match="no wrapping keys yet"):
            rewrap(conn, KEK, KEK)


def conn_with_keys(conn: Connection[TupleRow], database_url: str) -> Connection[TupleRow]:
    start(database_url, KEK)
    return conn


def seal(persons: Persons, pseudonym: str) -> bytes:
    cipher = persons.cipher(pseudonym)
    assert cipher is not None
    return cipher.encrypt(bytes(12), pseudonym.encode(), None)


def unseal(persons: Persons, pseudonym: str, text: bytes) -> str:
    cipher = persons.cipher(pseudonym)
    assert cipher is not None
    return cipher.decrypt(bytes(12), text, None).decode()


def broken_after(keys: int) -> Any:
    """Have Ctrl-C pressed once so many keys are unwrapped."""
    unwrap, done = WrappingKeys.unwrap, iter(range(keys))

    def counted(self: WrappingKeys, wrapped: WrappedKey, pseudonym: str) -> bytes:
        if next(done, None) is None:
            raise KeyboardInterrupt
        return unwrap(self, wrapped, pseudonym)

    return patch.object(WrappingKeys, "unwrap", counted)
