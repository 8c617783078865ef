"""`backlot events export | import | verify` as a shell sees them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import orjson
import psycopg
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner

from backlot.events.archive import register
from engine.archive.keys import keys_path
from engine.persons import Persons
from engine.seals.anchors import FileAnchors
from engine.seals.proofs import SealKey
from infra.errors import OperatorError
from infra.key_encryption import GivenKey
from tests.integration.projection_support import Writer
from tests.integration.seal_support import change, make_log, seal_all

KEK = secrets.token_hex(32)
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def log_url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATABASE_URL", database_url)
    make_log(database_url, 30)
    seal_all(database_url)
    return database_url


@pytest.fixture
def run() -> Run:
    app = typer.Typer()
    register(app)

    def go(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, words)
        if isinstance(result.exception, OperatorError):
            return result.exception.exit_code, str(result.exception)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    return go


def test_the_log_is_exported_verified_imported_and_verified(
    log_url: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "log.jsonl")
    code, out = run("export", file, "--json")
    assert (code, json.loads(out)) == (
        0,
        {
            "file": file,
            "format": "jsonl",
            "payload": "full",
            "from": 1,
            # The last one says that this export was asked for.
            "to": 31,
            "events": 31,
            "provable": True,
        },
    )
    code, out = run("verify", file, "--json")
    assert code == 0
    whole = json.loads(out)
    assert (whole["ok"], whole["events"], whole["sealedTo"], whole["seals"]) == (True, 31, 30, 3)
    with psycopg.connect(log_url, autocommit=True) as conn:
        conn.execute("TRUNCATE backlot_events, backlot_seals, backlot_verifications")
    code, out = run("import", file, "--json")
    assert (code, json.loads(out)) == (0, {"file": file, **whole})
    code, out = run("verify", "--json")
    # The import, and that this was asked for, are now in the log, too.
    assert (code, json.loads(out)) == (0, {**whole, "events": 34, "unsealed": 4})


def test_keys_go_beside_an_export_on_request(
    log_url: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_ENCRYPTION_KEY", KEK)
    person = encrypted(log_url, "a secret text")
    file = tmp_path / "log.jsonl"
    code, out = run("export", str(file), "--with-keys")
    assert code == 0
    assert "their keys to log.jsonl.keys: keep the two apart" in out
    assert b"a secret text" not in file.read_bytes()
    with psycopg.connect(log_url, autocommit=True) as conn:
        conn.execute("TRUNCATE backlot_events, backlot_seals, backlot_verifications")
        conn.execute("TRUNCATE backlot_persons, backlot_wrapping_keys CASCADE")
    keys = keys_path(file)
    kept = keys.rename(tmp_path / "elsewhere")
    code, told = run("import", str(file))
    assert (code, "import --without-keys" in told) == (4, True)
    kept.rename(keys)
    assert run("import", str(file))[0] == 0
    with closing(Persons(log_url, GivenKey(KEK))) as persons:
        assert persons.find("ann") == person
        cipher = persons.cipher(person)
    assert cipher is not None


def encrypted(database_url: str, text: str) -> str:
    """Have somebody write a comment whose text is encrypted; return the pseudonym."""
    with closing(Persons(database_url, GivenKey(KEK))) as persons:
        persons.open()
        person, writer = persons.admit("ann"), Writer(database_url)
        writer.mapper.ciphers = persons
        writer.comment(uuid4(), person, text)
        writer.close()
    return person


def test_a_log_that_was_not_rewritten_follows_none(log_url: str, run: Run, tmp_path: Path) -> None:
    file = str(tmp_path / "log.jsonl")
    assert run("export", file)[0] == 0
    code, out = run("verify", "--follows", file, "--json")
    assert (code, json.loads(out)["fault"]["kind"]) == (1, "link-differs")


def test_who_exported_and_verified_is_in_the_log(log_url: str, run: Run, tmp_path: Path) -> None:
    file = str(tmp_path / "log.jsonl")
    run("export", file, "--payload", "none")
    run("verify")
    with psycopg.connect(log_url) as conn:
        rows = conn.execute(
            "SELECT topic, state FROM backlot_events WHERE notification_id > 30 ORDER BY 1, 2"
        ).fetchall()
    told = [(topic, orjson.loads(state)) for topic, state in rows]
    asked = [state for topic, state in told if topic == "operation.requested.v1"]
    assert [state["action"] for state in asked] == ["export", "verify"]
    assert asked[0]["parameters"] == {"file": file, "format": "jsonl", "payload": "none"}
    assert all(state["actor"].startswith("operator:") for _, state in told)
    ended = [state for topic, state in told if topic == "operation.finished.v1"]
    assert [state["outcome"] for state in ended] == ["done", "done"]


def test_a_fault_is_told_and_is_exit_code_1(log_url: str, run: Run) -> None:
    change(log_url, "UPDATE backlot_events SET state = 'x' WHERE notification_id = 17")
    code, out = run("verify")
    assert code == 1
    assert "FAULT (altered): the event at position 17 is not the one that was sealed" in out
    assert "version" in out
    code, out = run("verify", "--json")
    fault = json.loads(out)["fault"]
    assert (code, fault["kind"], fault["position"]) == (1, "altered", 17)


def test_a_verification_is_kept(log_url: str, run: Run) -> None:
    run("verify")
    with psycopg.connect(log_url) as conn:
        row = conn.execute("SELECT ok, complete, seal FROM backlot_verifications").fetchone()
    assert row == (True, True, 3)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path, SealKey]:
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    key = Ed25519PrivateKey.generate()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public, SealKey(key)


def test_signatures_and_anchors_are_compared(
    database_url: str,
    run: Run,
    keys: tuple[Path, Path, SealKey],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, public, key = keys
    anchors = tmp_path / "anchors.jsonl"
    monkeypatch.setenv("DATABASE_URL", database_url)
    make_log(database_url, 30)
    seal_all(database_url, key=key, anchors=[FileAnchors(anchors)])
    code, out = run("verify", "--public-key", str(public), "--anchors", str(anchors), "--json")
    assert (code, json.loads(out)["signed"], json.loads(out)["anchored"]) == (0, 3, 3)
    monkeypatch.setenv("SEAL_KEY_FILE", str(private))
    monkeypatch.setenv("SEAL_ANCHOR", f"file:{anchors}")
    change(database_url, "UPDATE backlot_events SET state = 'x' WHERE notification_id = 17")
    change(database_url, "DELETE FROM backlot_seals")
    seal_all(database_url)
    code, out = run("verify", "--json")
    assert (code, json.loads(out)["fault"]["kind"]) == (1, "anchor-differs")
    assert run("verify", "--anchors", str(tmp_path / "none"))[0] == 4


def test_masked_cloud_events_say_what_they_lack(log_url: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    code, out = run("export", str(file), "--format", "cloudevents", "--payload", "masked")
    assert code == 0
    assert "can't be verified or imported" in out
    events = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [event["position"] for event in events] == [str(n) for n in range(1, 32)]
    assert run("verify", str(file))[0] == 4


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("export", "log.jsonl", "--to", "32"), "--to: the log ends at position 31"),
        (("export", "log.jsonl", "--from", "32"), "--from: 32 is behind"),
        (("export", "no/such/folder/log.jsonl"), "No such file or directory"),
        (("verify", "nothing.jsonl"), "nothing.jsonl can't be read"),
        (("verify", "--public-key", "none.pem"), "none.pem can't be read"),
        (("import", "nothing.jsonl"), "nothing.jsonl can't be read"),
    ],
)
def test_what_can_not_be_done_is_told_in_one_line(
    log_url: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = run(*words)
    assert code == 4
    assert why in told
    assert "\n" not in told


def test_read_models_of_another_log_are_in_the_way_of_an_import(
    log_url: str, run: Run, tmp_path: Path
) -> None:
    file = str(tmp_path / "log.jsonl")
    run("export", file)
    with psycopg.connect(log_url, autocommit=True) as conn:
        conn.execute("TRUNCATE backlot_events, backlot_seals")
        conn.execute(
            "INSERT INTO backlot_checkpoints (kind, subscription, position) "
            "VALUES ('projection', 'likes', 30)"
        )
    code, told = run("import", file)
    assert code == 4
    assert "read models are of another log" in told


def test_without_a_database_only_files_can_be_verified(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = run("verify")
    assert code == 4
    assert "nothing runs" in told
