"""Persons: who is who, what a destroyed key leaves, and what somebody can do to a row."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import repeat
from threading import Barrier
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.errors import Forgotten
from domain.model import FORGOTTEN, Origin
from engine import persons as module
from engine.command_bus import Aggregates, Command, CommandBus
from engine.erasures import FENCED
from engine.log import MAPPER, Log
from engine.persons import Known, Persons, Remembered
from engine.wrapping_keys import KeyDamaged, load_wrapping_keys, rotate
from infra.key_encryption import GivenKey
from tests.integration.person_support import KEK, opened
from tests.integration.projection_support import Writer

pytestmark = pytest.mark.no_analytics
MANY = 24


@pytest.fixture
def persons(database_url: str) -> Iterator[Persons]:
    with opened(database_url) as made:
        yield made


@pytest.fixture
def another(persons: Persons, database_url: str) -> Iterator[Persons]:
    """The same persons, as another process has them."""
    with opened(database_url) as made:
        yield made


def admit(database_url: str, kek: GivenKey, user_id: str) -> str:
    with opened(database_url, kek) as persons:
        return persons.admit(user_id)


def read_texts(persons: Persons, sealed: dict[str, bytes]) -> dict[str, str]:
    """What the texts of persons say, by who said it."""
    try:
        found = {}
        for person, text in sealed.items():
            cipher = persons.cipher(person)
            assert cipher is not None
            found[person] = cipher.decrypt(bytes(12), text, None).decode()
        return found
    finally:
        persons.close()


class TestAdmission:
    def test_a_user_has_one_random_pseudonym(self, persons: Persons, another: Persons) -> None:
        alice = persons.admit("alice")
        assert len(alice) == 32
        assert persons.admit("alice") == another.admit("alice") == another.find("alice") == alice
        assert persons.admit("Alice") != alice
        assert persons.find("bob") is None
        assert persons.look_up("bob") is None

    def test_threads_and_processes_that_race_agree(
        self, database_url: str, persons: Persons, processes: ProcessPoolExecutor
    ) -> None:
        together = Barrier(MANY)

        def in_thread() -> str:
            together.wait()
            return persons.admit("alice")

        with ThreadPoolExecutor(MANY) as threads:
            asked = [threads.submit(in_thread) for _ in range(MANY)]
            also = processes.map(admit, repeat(database_url, 4), repeat(KEK), repeat("alice"))
            assert len({*(each.result() for each in asked), *also}) == 1

    def test_neither_names_nor_their_hashes_are_in_the_table(
        self, persons: Persons, conn: Connection[TupleRow], database_url: str
    ) -> None:
        persons.admit("alice@example.com")
        (row,) = conn.execute("SELECT * FROM backlot_persons").fetchall()
        (hexadecimal,) = conn.execute("SELECT p::text FROM backlot_persons p").fetchall()
        told = f"{row} {hexadecimal}"
        assert "alice" not in told
        assert sha256(b"alice@example.com").hexdigest() not in told
        # Who has the key finds them.
        digest = load_wrapping_keys(conn, KEK).digest("alice@example.com")
        assert digest.hex() in told

    def test_who_is_named_by_older_releases_keeps_that_name(
        self, persons: Persons, conn: Connection[TupleRow]
    ) -> None:
        conn.execute("INSERT INTO backlot_former_names VALUES ('old alice'), ('old bob')")
        assert persons.names(["old bob", "nobody"]) == {"old bob": "old bob"}
        assert persons.admit("old bob") == "old bob"
        assert persons.admit("old alice") == "old alice"
        assert persons.names(["old alice"]) == {"old alice": "old alice"}
        assert persons.cipher("old bob") is not None


class TestNames:
    def test_many_are_read_at_once_however_few_are_remembered(
        self, persons: Persons, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = {persons.admit(f"user {number}"): f"user {number}" for number in range(9)}
        monkeypatch.setattr(module, "REMEMBER", 3)
        with opened(database_url) as forgetful:
            assert forgetful.names([*wanted, "operator:root", "no\0body"]) == wanted

    def test_recalling_asks_nobody(self, persons: Persons, another: Persons) -> None:
        alice, bob = persons.admit("alice"), another.admit("bob")
        assert persons.recall([alice]) == {alice: "alice"}
        assert persons.recall([alice, bob]) is None
        persons.prepare([bob, "system"])
        assert persons.recall([alice, bob, "system"]) == {alice: "alice", bob: "bob"}

    def test_who_is_asked_for_again_and_again_is_read_once(
        self, persons: Persons, another: Persons, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alice, asked = another.admit("alice"), list[str]()
        read = Persons._read

        def counted(self: Persons, wanted: Set[str]) -> dict[str, Known]:
            asked.extend(wanted)
            return read(self, wanted)

        monkeypatch.setattr(Persons, "_read", counted)
        for _ in range(3):
            persons.prepare([alice, "nobody"])
            assert persons.cipher(alice) is not None
            assert persons.names([alice, "nobody"]) == {alice: "alice"}
            with pytest.raises(KeyError):
                persons.cipher("nobody")
        assert sorted(asked) == sorted([alice, "nobody"])


class TestFence:
    def test_a_fence_holds_at_once_everywhere(
        self, persons: Persons, another: Persons, conn: Connection[TupleRow]
    ) -> None:
        alice, bob = persons.admit("alice"), persons.admit("bob")
        assert another.admit("alice") == alice
        since = persons.fence(alice)
        for each in (persons, another):
            with pytest.raises(Forgotten):
                each.admit("alice")
            assert each.find("alice") is None
        assert another.look_up("alice") == (alice, since, None)
        assert persons.fence(alice) == since
        assert conn.execute(FENCED).fetchall() == [(alice,)]
        assert persons.admit("bob") == bob
        # What they said is still read, until the key is destroyed.
        assert persons.cipher(alice) is not None
        with pytest.raises(KeyError):
            persons.fence("nobody")


class TestDestruction:
    def test_name_and_key_are_gone_and_the_person_does_not_come_back(
        self, persons: Persons, another: Persons, conn: Connection[TupleRow]
    ) -> None:
        alice = persons.admit("alice")
        persons.fence(alice)
        persons.destroy(alice)
        persons.destroy(alice)
        assert persons.cipher(alice) is None
        assert persons.names([alice]) == {alice: FORGOTTEN}
        row = conn.execute("SELECT name, key, wrapping_key FROM backlot_persons").fetchone()
        assert row == (None, None, None)
        for each in (persons, another):
            with pytest.raises(Forgotten):
                each.admit("alice")
        found = another.look_up("alice")
        assert found is not None
        assert found.forgotten_at is not None

    def test_who_is_not_fenced_is_not_destroyed(self, persons: Persons) -> None:
        alice = persons.admit("alice")
        with pytest.raises(psycopg.errors.CheckViolation):
            persons.destroy(alice)
        assert persons.names([alice]) == {alice: "alice"}

    def test_a_former_name_does_not_bring_a_person_back(
        self, persons: Persons, another: Persons, conn: Connection[TupleRow]
    ) -> None:
        conn.execute("INSERT INTO backlot_former_names VALUES ('alice')")
        persons.admit("alice")
        persons.fence("alice")
        persons.destroy("alice")
        assert conn.execute("SELECT * FROM backlot_former_names").fetchall() == []
        assert another.cipher("alice") is None
        with pytest.raises(Forgotten):
            another.admit("alice")

    def test_another_process_knows_it_once_it_has_forgotten(
        self, persons: Persons, another: Persons
    ) -> None:
        alice = persons.admit("alice")
        another.prepare([alice])
        persons.fence(alice)
        persons.destroy(alice)
        assert another.names([alice]) == {alice: "alice"}
        another.drop(alice)
        assert another.names([alice]) == {alice: FORGOTTEN}
        assert another.cipher(alice) is None


class TestChangedRows:
    """What somebody can do who writes to the database, and has no key."""

    @pytest.mark.parametrize(
        "taken",
        [
            "key = b.key",
            "name = b.name",
            "key = b.key, name = b.name, wrapping_key = b.wrapping_key",
            "key = ''",
            "name = 'x'",
        ],
    )
    def test_another_one_s_key_or_name_is_refused_and_harms_nobody_else(
        self, persons: Persons, another: Persons, conn: Connection[TupleRow], taken: str
    ) -> None:
        alice, bob = persons.admit("alice"), persons.admit("bob")
        swap = f"UPDATE backlot_persons a SET {taken} FROM backlot_persons b"
        conn.execute(f"{swap} WHERE a.pseudonym = %s AND b.pseudonym = %s".encode(), (alice, bob))
        another.prepare([alice, bob])
        assert another.names([alice, bob]) == {bob: "bob"}
        with pytest.raises(KeyDamaged, match=alice):
            another.cipher(alice)
        assert another.cipher(bob) is not None

    def test_nobody_becomes_another_by_a_swapped_lookup(
        self, persons: Persons, another: Persons, conn: Connection[TupleRow]
    ) -> None:
        alice = persons.admit("alice")
        digest = load_wrapping_keys(conn, KEK).digest("mallory")
        conn.execute("UPDATE backlot_persons SET lookup = %s WHERE pseudonym = %s", (digest, alice))
        for each in (persons, another):
            with pytest.raises(KeyDamaged, match=alice):
                each.admit("mallory")


class TestRemembered:
    def test_it_keeps_the_last_ones(self) -> None:
        remembered = Remembered(2, 60.0)
        for name in ("a", "b", "a", "c"):
            remembered.put(name, Known(name=name))
        assert [remembered.get(each) is not None for each in "abc"] == [True, False, True]
        remembered.drop("a")
        remembered.drop("a")
        assert remembered.get("a") is None

    def test_it_forgets_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1000.0
        monkeypatch.setattr(module, "monotonic", lambda: now)
        remembered = Remembered(2, 60.0)
        remembered.put("a", Known())
        now += 59.9
        assert remembered.get("a") == Known()
        remembered.put("b", Known())
        now += 0.2
        assert remembered.get("a") is None
        # What is over takes no room.
        remembered.put("c", Known())
        assert set(remembered._values) == {"b", "c"}

    def test_threads_share_it(self) -> None:
        remembered = Remembered(50, 60.0)

        def use(number: int) -> None:
            for turn in range(500):
                name = f"{(number + turn) % 80}"
                remembered.put(name, Known(name=name))
                known = remembered.get(name)
                assert known is None or known.name == name
                remembered.drop(f"{turn % 80}")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(use, range(8)))
        assert len(remembered._values) <= 50


class TestQuestions:
    """How often the database is asked for keys; without that, texts would only be slower."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
        """Who was asked for, each time."""
        found, read = list[set[str]](), Persons._read

        def counted(self: Persons, wanted: Set[str]) -> dict[str, Known]:
            found.append(set(wanted))
            return read(self, wanted)

        monkeypatch.setattr(Persons, "_read", counted)
        return found

    @pytest.fixture
    def comments(
        self, persons: Persons, writer: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> dict[UUID, str]:
        """Comments on one video, each by another author."""
        monkeypatch.setattr(MAPPER, "ciphers", persons)
        writer.mapper = MAPPER
        authors = [persons.admit(f"user {number}") for number in range(8)]
        video = writer.video(persons.admit("owner")).id
        return {writer.comment(video, each, "Hello.").id: each for each in authors}

    def test_a_window_of_the_log_asks_once(
        self,
        comments: dict[UUID, str],
        another: Persons,
        conn: Connection[TupleRow],
        asked: list[set[str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(MAPPER, "ciphers", another)
        window = Log([Comment.Posted], batch_events=100).read(conn, 0, 100)
        assert asked == [{*comments.values()}]
        said = [vars(stored.decode().event)["content"] for stored in window.events]
        assert said == ["Hello."] * len(comments)
        assert len(asked) == 1

    def test_a_batch_of_commands_asks_once(
        self,
        comments: dict[UUID, str],
        another: Persons,
        writer: Writer,
        asked: list[set[str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(MAPPER, "ciphers", another)

        async def edit_all() -> None:
            bus = CommandBus(writer.recorder)
            try:
                await asyncio.gather(
                    *(
                        bus.execute(Edit(comment), actor=author, correlation_id="edits")
                        for comment, author in comments.items()
                    )
                )
            finally:
                await bus.close()

        asyncio.run(edit_all())
        # The first command may be a batch of its own.
        assert len(asked) <= 2
        assert set().union(*asked) == {*comments.values()}


@dataclass(frozen=True)
class Edit(Command[None]):
    comment: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.comment,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> None:
        aggregates.get(Comment, self.comment).edit("Hello again.", origin)


class TestChildren:
    def test_a_child_process_reads_what_its_parent_wrote(
        self, persons: Persons, conn: Connection[TupleRow], processes: ProcessPoolExecutor
    ) -> None:
        alice = persons.admit("alice")
        cipher = persons.cipher(alice)
        assert cipher is not None
        sealed = {alice: cipher.encrypt(bytes(12), b"Hello.", None)}
        assert processes.submit(read_texts, persons, sealed).result() == {alice: "Hello."}
        rotate(conn, KEK)
        copy = pickle.loads(pickle.dumps(persons))
        assert read_texts(copy, sealed) == {alice: "Hello."}

    def test_one_that_was_closed_opens_again(self, persons: Persons) -> None:
        alice = persons.admit("alice")
        persons.close()
        persons.close()
        assert persons.admit("alice") == alice


def test_tickets_of_one_process_are_those_of_all(persons: Persons, another: Persons) -> None:
    assert persons.ticket_key() == another.ticket_key() == persons.ticket_key()
    assert persons.ticket_key() != persons.webhook_key()
