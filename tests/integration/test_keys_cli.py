"""`backlot keys` on a real database: what is shown, rotated, wrapped anew, and recorded of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot.doctor import examine
from backlot.health import DoctorPart
from domain.operation import OperationOutcome
from engine.persons import Persons
from engine.wrapping_keys import look
from infra.key_encryption import FileKey, GivenKey
from tests.e2e.program import OWN_VARIABLES
from tests.fork_server import ForkedProcess
from tests.integration.operator_desk import Backlot, Desk, in_group
from tests.integration.person_support import opened
from tests.support import PROJECT, eventually

pytestmark = pytest.mark.no_analytics
USERS = [f"user {number}" for number in range(5)]
ROTATE_IN_PAIRS = """
import sys
from engine import wrapping_keys
wrapping_keys.BATCH_PERSONS = 2
sys.argv = ["backlot", "keys", "rotate", "--yes"]
from backlot.cli import main
main()
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The key of a data folder, which the commands use."""
    monkeypatch.setenv("BACKLOT_DATA_DIR", str(tmp_path))
    return tmp_path / "key-encryption-key"


@pytest.fixture
def persons(database_url: str, file: Path) -> Iterator[Persons]:
    with opened(database_url, FileKey(file)) as made:
        for user in USERS:
            made.admit(user)
        yield made


@pytest.fixture
def keys(
    database_url: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Backlot:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return in_group("keys", monkeypatch, capsys)


def numbers(conn: Connection[TupleRow]) -> dict[int, int]:
    """How many persons' keys each wrapping key wraps."""
    return {each.number: each.persons for each in look(conn) if each.purpose == "persons"}


def doctors_line() -> DoctorPart:
    (found,) = (each for each in examine() if each.name == "keys")
    return found


class TestShow:
    def test_what_wraps_what(self, keys: Backlot, persons: Persons, file: Path) -> None:
        shown = keys("show", "--json")
        assert shown.code == 0
        told = shown.data
        assert (told["keyEncryptionKey"], told["kind"]) == (str(file), "embedded")
        assert (told["fits"], told["detail"]) == (True, None)
        assert [(each["purpose"], each["persons"]) for each in told["wrappingKeys"]] == [
            ("lookup", 0),
            ("persons", len(USERS)),
        ]
        assert {each["wrappedBy"] for each in told["wrappingKeys"]} == {str(file)}
        text = keys("show").out
        assert f"key-encryption key: {file}" in text
        assert file.read_text().strip() not in text + shown.out

    def test_a_key_that_does_not_fit_is_told(
        self, keys: Backlot, persons: Persons, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KEY_ENCRYPTION_KEY", secrets.token_hex(32))
        shown = keys("show", "--json")
        assert shown.code == 1
        assert (shown.data["kind"], shown.data["fits"]) == ("external", False)
        assert f"wrapped by {file}" in shown.data["detail"]
        assert f"wrapped by {file}" in keys("show").out

    def test_a_database_without_keys_gets_none(
        self, keys: Backlot, conn: Connection[TupleRow], file: Path
    ) -> None:
        shown = keys("show")
        assert shown.code == 1
        assert "no wrapping keys yet" in shown.out
        assert look(conn) == []
        assert not file.exists()

    def test_a_database_that_is_away_is_told(
        self, keys: Backlot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
        for words in (("show",), ("rotate", "--yes"), ("rewrap", "--yes")):
            ran = keys(*words)
            assert ran.code == 4
            assert ran.err.startswith("backlot: the database does not answer")
            assert ran.err.count("\n") == 1


class TestRotate:
    def test_it_is_done_and_recorded(
        self, keys: Backlot, persons: Persons, conn: Connection[TupleRow], root: Desk
    ) -> None:
        (before,) = numbers(conn)
        ran = keys("rotate", "--yes", "--json")
        done = {"newest": before + 1, "begun": True, "persons": 5, "removed": [before]}
        assert (ran.code, ran.data) == (0, done)
        assert numbers(conn) == {before + 1: 5}
        requested, finished = root.events()
        assert (requested.action, requested.subject) == ("rotate", "keys")
        assert requested.actor.startswith("operator:")
        assert vars(finished)["outcome"] == OperationOutcome.DONE
        assert vars(finished)["result"] == done
        assert "removed: " in keys("rotate", "--yes").out

    def test_it_asks_first(
        self, keys: Backlot, persons: Persons, conn: Connection[TupleRow], root: Desk
    ) -> None:
        before = numbers(conn)
        for words in (("rotate",), ("rewrap",)):
            ran = keys(*words)
            assert ran.code == 2
            assert "say --yes" in ran.err
        assert numbers(conn) == before
        assert root.events() == []

    def test_a_changed_row_is_named(
        self, keys: Backlot, persons: Persons, conn: Connection[TupleRow], root: Desk
    ) -> None:
        mallory = persons.admit("mallory")
        conn.execute("UPDATE backlot_persons SET key = '' WHERE pseudonym = %s", (mallory,))
        ran = keys("rotate", "--yes")
        assert ran.code == 4
        assert mallory in ran.err
        assert "restore it, or forget the person" in ran.err
        assert vars(root.events()[-1])["outcome"] == OperationOutcome.FAILED

    def test_killed_it_goes_on(
        self, keys: Backlot, persons: Persons, conn: Connection[TupleRow], tmp_path: Path
    ) -> None:
        (before,) = numbers(conn)
        last = max(filter(None, map(persons.find, USERS)))
        foreign = {name: text for name, text in os.environ.items() if name not in OWN_VARIABLES}
        own = {name: os.environ[name] for name in ("DATABASE_URL", "BACKLOT_DATA_DIR")}
        with psycopg.connect(own["DATABASE_URL"]) as holder:
            # It has to wait for the last one.
            holder.execute("SELECT FROM backlot_persons WHERE pseudonym = %s FOR UPDATE", (last,))
            process = ForkedProcess(
                "-c",
                [ROTATE_IN_PAIRS],
                cwd=PROJECT,
                env={**foreign, **own, "PYTHONPATH": str(PROJECT)},
                stdout=tmp_path / "out",
                stderr=tmp_path / "err",
            )
            eventually(lambda: numbers(conn).get(before) == 1 or process.poll() is not None)
            assert process.poll() is None, (tmp_path / "err").read_text()
            process.kill()
            process.wait()
        assert numbers(conn) == {before: 1, before + 1: 4}
        assert persons.names(filter(None, map(persons.find, USERS))).keys()
        ran = keys("rotate", "--yes", "--json")
        assert ran.data == {"newest": before + 1, "begun": False, "persons": 1, "removed": [before]}


class TestRewrap:
    def test_a_setting_takes_over_from_the_file(
        self,
        keys: Backlot,
        persons: Persons,
        file: Path,
        database_url: str,
        monkeypatch: pytest.MonkeyPatch,
        root: Desk,
    ) -> None:
        alice = persons.admit("alice")
        new = secrets.token_hex(32)
        monkeypatch.setenv("KEY_ENCRYPTION_KEY", new)
        ran = keys("rewrap", "--yes", "--json")
        told = {"by": "KEY_ENCRYPTION_KEY", "keys": 2, "before": [str(file)]}
        assert (ran.code, ran.data) == (0, told)
        assert vars(root.events()[-1])["result"] == told
        assert new not in ran.out + ran.err + str([vars(event) for event in root.events()])
        file.unlink()
        with opened(database_url, GivenKey(new)) as after:
            assert after.find("alice") == alice

    def test_a_former_setting_is_named(
        self, keys: Backlot, database_url: str, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = secrets.token_hex(32)
        with opened(database_url, GivenKey(old)) as persons:
            alice = persons.admit("alice")
        refused = keys("rewrap", "--yes")
        assert refused.code == 4
        assert "OLD_KEY_ENCRYPTION_KEY_FILE" in refused.err
        assert not file.exists()
        monkeypatch.setenv("OLD_KEY_ENCRYPTION_KEY", old)
        assert "restart every process" in keys("rewrap", "--yes").out
        with opened(database_url, FileKey(file)) as after:
            assert after.find("alice") == alice


class TestDoctor:
    def test_a_new_database(self, keys: Backlot) -> None:
        assert doctors_line() == DoctorPart(
            "keys", "embedded", None, True, "made at the first start"
        )

    def test_one_in_use(self, keys: Backlot, persons: Persons, file: Path) -> None:
        found = doctors_line()
        assert found.ok
        assert found.detail.startswith(f"5 persons; their keys are wrapped by {file}; keep a copy")

    def test_a_file_that_others_can_read(self, keys: Backlot, persons: Persons, file: Path) -> None:
        file.chmod(0o640)
        found = doctors_line()
        assert not found.ok
        assert f"chmod 600 {file}" in found.detail

    def test_another_key(
        self, keys: Backlot, persons: Persons, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KEY_ENCRYPTION_KEY", secrets.token_hex(32))
        found = doctors_line()
        assert (found.kind, found.ok) == ("external", False)
        assert "is another key-encryption key" in found.detail

    def test_a_database_that_is_away(
        self, keys: Backlot, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
        found = doctors_line()
        assert found.ok
        assert found.detail.startswith("not known")

    def test_nothing_runs(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert doctors_line().detail == "made at the first start"
        FileKey(file).make()
        assert doctors_line().detail.startswith(f"{file}; not running")
