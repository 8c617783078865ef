"""A proof that one event is in the log: made from a database, checked by who has an anchor only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backlot.events.commands import app
from engine.archive.inclusion import ProofRefused, Verdict, check_proof, make_proof
from engine.seals.anchors import FileAnchors, anchor_of
from engine.seals.chain import Seal, connect, old_seal_hash, seals
from tests.integration.event_log import rows
from tests.integration.seal_support import change, make_log, new_key, seal_all
from tests.support import DatabaseWith

EVENTS, SEALS = 93, 10
KEY = new_key()


def record(database_url: str) -> None:
    make_log(database_url, EVENTS)
    assert seal_all(database_url, key=KEY) == SEALS
    make_log(database_url, 4)


@pytest.fixture
def log_url(database_with: DatabaseWith) -> Iterator[str]:
    """93 events under 10 seals, and 4 that no seal covers."""
    with database_with(record) as url:
        yield url


def proof_of(database_url: str, position: int, until: int | None = None) -> dict[str, Any]:
    with connect(database_url, "test") as conn:
        return make_proof(conn, position, until)


def chain(database_url: str) -> list[Seal]:
    with connect(database_url, "test") as conn:
        return list(seals(conn, 0, 1_000))


@pytest.mark.parametrize("position", [1, 10, 11, 47, 90, EVENTS])
def test_one_anchor_is_enough_for_every_event(log_url: str, position: int) -> None:
    proof = proof_of(log_url, position)
    newest = anchor_of(chain(log_url)[-1])
    verdict = check_proof(proof, [newest])
    assert (verdict.ok, verdict.position, verdict.seal, verdict.by) == (
        True,
        position,
        SEALS,
        "anchor",
    )


def test_it_leads_to_the_seal_that_is_asked_for(log_url: str) -> None:
    known = [anchor_of(seal) for seal in chain(log_url)]
    for until in range(5, SEALS + 1):
        proof = proof_of(log_url, 47, until)
        assert check_proof(proof, [known[until - 1]]).seal == until
    verdict = check_proof(proof_of(log_url, 47), known[:7][-1:])
    assert not verdict.ok
    assert "the anchors end with seal 7 (ask for a proof with --seal 7)" in verdict.detail
    assert check_proof(proof_of(log_url, 47), known[4:5]).ok, "its own seal may be the anchored one"


def test_it_grows_with_the_logarithm_and_shows_no_other_event(log_url: str) -> None:
    proof = proof_of(log_url, 47)
    assert len(proof["path"]) == 9, "the other leaves of a block of ten, as hashes"
    assert len(proof["headPath"]) <= 4
    text = json.dumps(proof)
    ((other, viewer),) = rows(
        log_url,
        "SELECT originator_id::text, convert_from(state, 'UTF8')::json->>'actor' "
        "FROM backlot_events WHERE notification_id = 48",
    )
    assert other not in text
    assert viewer not in text


def test_a_signature_vouches_like_an_anchor(log_url: str) -> None:
    proof = proof_of(log_url, 47)
    assert check_proof(proof, public_keys=KEY.public).by == "signature"
    assert not check_proof(proof, public_keys=new_key().public).ok
    proof["head"]["signature"] = proof["seal"]["signature"]
    del proof["seal"]["signature"]
    assert not check_proof(proof, public_keys=KEY.public).ok
    assert not check_proof(proof).ok, "nothing at hand vouches for it"


Tamper = Callable[[dict[str, Any]], None]


def put(*place: Any, value: Any) -> Tamper:
    def tamper(proof: dict[str, Any]) -> None:
        for name in place[:-1]:
            proof = proof[name]
        assert proof[place[-1]] != value
        proof[place[-1]] = value

    return tamper


ZEROS = "00" * 32
TAMPERED: dict[str, Tamper] = {
    "position": put("event", "position", value=48),
    "stream": put("event", "streamId", value="5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa"),
    "version": put("event", "version", value=7),
    "topic": put("event", "topic", value="comment.posted.v1"),
    "bytes": put("event", "state", value="{}"),
    "what the bytes are said to hold": put("event", "actor", value="somebody else"),
    "path": put("path", 3, value=ZEROS),
    "path in another order": lambda proof: proof["path"].reverse(),
    "path too short": lambda proof: proof["path"].pop(),
    "path too long": lambda proof: proof["path"].append(ZEROS),
    "head path": put("headPath", 1, value=ZEROS),
    "block": put("seal", "last", value=51),
    "block elsewhere": put("seal", "first", value=48),
    "time of the seal": put("seal", "sealedAt", value="2026-11-30T00:00:00+00:00"),
    "number of the seal": put("seal", "number", value=6),
    "hash of the seal": put("seal", "hash", value=ZEROS),
    "key": put("seal", "keyId", value="0123456789abcdef"),
    "time of the head": put("head", "sealedAt", value="2026-11-30T00:00:00+00:00"),
    "number of the head": put("head", "number", value=11),
    "hash of the head": put("head", "hash", value=ZEROS),
    "head before the seal": put("head", "number", value=3),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_proof_that_was_tampered_with_does_not_hold(log_url: str, what: str) -> None:
    proof = proof_of(log_url, 47)
    newest = anchor_of(chain(log_url)[-1])
    assert check_proof(proof, [newest]).ok
    forged = deepcopy(proof)
    TAMPERED[what](forged)
    verdict = check_proof(forged, [newest])
    assert isinstance(verdict, Verdict)
    assert not verdict.ok


def test_a_proof_of_another_log_does_not_hold(log_url: str) -> None:
    newest = anchor_of(chain(log_url)[-1])
    verdict = check_proof(proof_of(log_url, 47), [newest._replace(hash=bytes(32))])
    assert (verdict.ok, verdict.detail) == (
        False,
        "the anchor knows another seal 10 than the proof",
    )


@pytest.mark.parametrize(
    "broken",
    [{}, [], {"backlotProof": 2}, {"backlotProof": 1}, {"backlotProof": 1, "event": {}}, "text", 7],
)
def test_what_is_no_proof_is_refused(broken: Any) -> None:
    with pytest.raises(ProofRefused):
        check_proof(broken)


def test_what_can_not_be_proved_is_said(log_url: str) -> None:
    with pytest.raises(ProofRefused, match="no seal covers position 95 yet"):
        proof_of(log_url, 95)
    with pytest.raises(ProofRefused, match="no event at position 1000"):
        proof_of(log_url, 1_000)
    with pytest.raises(ProofRefused, match="seal 2 is older than the event"):
        proof_of(log_url, 47, 2)
    with pytest.raises(ProofRefused, match="there is no seal 11"):
        proof_of(log_url, 47, 11)
    change(log_url, "UPDATE backlot_events SET state = '{}' WHERE notification_id = 47")
    with pytest.raises(ProofRefused, match="not the one that was sealed"):
        proof_of(log_url, 47)


def seal_as_before(database_url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Seal what is there in the format of the last release."""
    with monkeypatch.context() as patched:
        patched.setattr("engine.seals.sealer.FORMAT", 1)
        patched.setattr("engine.seals.chain.peaks_after", lambda *_: None)
        patched.setattr(
            "engine.seals.sealer.seal_hash",
            lambda seal: old_seal_hash(seal.previous, seal.first, seal.last, seal.leaves),
        )
        return seal_all(database_url)


def test_seals_of_the_last_release_prove_what_they_allow(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(database_url, 30)
    assert seal_as_before(database_url, monkeypatch) == 3
    known = [anchor_of(seal) for seal in chain(database_url)]
    assert {seal.format for seal in chain(database_url)} == {1}
    proof = proof_of(database_url, 15)
    assert "head" not in proof
    assert check_proof(proof, [known[1]]).ok, "the anchor of its own seal"
    assert not check_proof(proof, [known[2]]).ok
    with pytest.raises(ProofRefused, match="seal 3 has the format of an older release"):
        proof_of(database_url, 15, 3)
    make_log(database_url, 25)
    assert seal_all(database_url) == 3
    newest = anchor_of(chain(database_url)[-1])
    proof = proof_of(database_url, 15)
    assert check_proof(proof, [newest]).ok, "seals of this release commit to those before, too"
    proof["event"]["state"] = "{}"
    assert not check_proof(proof, [newest]).ok


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    told = result.stdout + (str(result.exception) if result.exception else "")
    return getattr(result.exception, "exit_code", result.exit_code), told


def test_a_shell_proves_and_checks(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(database_url, EVENTS)
    anchors = tmp_path / "anchors.jsonl"
    seal_all(database_url, anchors=[FileAnchors(anchors)])
    monkeypatch.setenv("DATABASE_URL", database_url)
    file = tmp_path / "proof.json"
    code, told = run("prove", "47", "-o", str(file))
    assert (code, told) == (
        0,
        f"position 47 is in seal 5, and that in the tree of seal 10: proof written to {file}\n",
    )
    code, told = run("prove", "47", "--json")
    assert (code, json.loads(told)) == (0, json.loads(file.read_bytes()))
    # Who checks has no database.
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("BACKLOT_DATA_DIR", str(tmp_path / "nowhere"))
    anchors.write_bytes(anchors.read_bytes().splitlines(keepends=True)[-1])
    code, told = run("prove", "--check", str(file), "--anchors", str(anchors), "--json")
    assert (code, json.loads(told)["ok"], json.loads(told)["seal"]) == (0, True, 10)
    step = json.loads(file.read_bytes())["path"][0]
    file.write_text(file.read_text().replace(step, ZEROS))
    code, told = run("prove", "--check", str(file), "--anchors", str(anchors))
    assert (code, "not in seal 5" in told) == (1, True)
    assert run("prove")[0] == 2
    assert run("prove", "--check", str(tmp_path / "none"))[0] == 4


def test_peaks_are_told_from_the_hashes_after_an_upgrade(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(database_url, 50)
    seal_as_before(database_url, monkeypatch)
    make_log(database_url, 10)
    seal_all(database_url)
    found = chain(database_url)
    assert found[5].peaks is not None
    assert len(found[5].peaks) == 64, "five seals before it: a tree of four, and one"
