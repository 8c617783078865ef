"""The started program seals its log, through kills; and tells when somebody changes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.e2e.program import Program
from tests.e2e.videos import upload
from tests.support import eventually


def verified(program: Program) -> tuple[int, dict[str, Any]]:
    """What `backlot events verify` says."""
    ran = program.run("events", "verify", "--json")
    found: dict[str, Any] = json.loads(ran.stdout)
    return ran.returncode, found


def sealed_to(program: Program) -> int:
    with psycopg.connect(program.database_url) as conn:
        row = conn.execute("SELECT coalesce(max(last), 0) FROM backlot_seals").fetchone()
    assert row is not None
    return int(row[0])


def like_often(program: Program, viewers: int) -> None:
    video = upload(program.client("alice"))
    for number in range(viewers):
        program.client(f"viewer-{number}").put(f"/videos/{video}/like")


def test_what_is_recorded_is_sealed_and_what_is_changed_is_named(
    make_program: Callable[..., Program], tmp_path: Path
) -> None:
    key, anchors = tmp_path / "key.pem", tmp_path / "anchors.jsonl"
    private = Ed25519PrivateKey.generate()
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    program = make_program(
        SEAL_SECONDS="0.2",
        SEAL_BLOCK_EVENTS="5",
        SEAL_KEY_FILE=str(key),
        SEAL_ANCHOR=f"file:{anchors}",
    ).start()
    like_often(program, 6)
    eventually(lambda: sealed_to(program) == 8)
    like_often(program, 6)
    program.kill()
    program.start()
    eventually(lambda: sealed_to(program) == 16)
    code, found = verified(program)
    # The verification itself is in the log, and may be sealed by now.
    assert (code, found["ok"], found["events"]) == (0, True, 17)
    assert found["unsealed"] <= 1
    assert found["signed"] == found["anchored"] == found["seals"] >= 4

    with psycopg.connect(program.database_url, autocommit=True) as conn:
        conn.execute("UPDATE backlot_events SET state = state || ' ' WHERE notification_id = 11")
    code, found = verified(program)
    assert (code, found["fault"]["kind"], found["fault"]["position"]) == (1, "altered", 11)
    told = program.client("root", admin=True).get("/audit/verify", params={"full": True}).json()
    assert (told["ok"], told["fault"]) == (False, found["fault"])
    assert program.stop() == 0


def doctor(program: Program) -> dict[str, Any]:
    """What `backlot doctor` says of the seals."""
    parts = json.loads(program.run("doctor", "--json").stdout)["parts"]
    found: dict[str, Any] = next(part for part in parts if part["name"] == "seals")
    return found


def test_a_log_that_was_cut_off_is_sealed_no_further_until_an_operator_says_so(
    make_program: Callable[..., Program],
) -> None:
    program = make_program(SEAL_SECONDS="0.2", SEAL_BLOCK_EVENTS="5").start()
    like_often(program, 12)
    eventually(lambda: sealed_to(program) == 14)
    # However it ends, its head and its database agree.
    program.kill()
    program.start()
    assert doctor(program)["ok"]
    with psycopg.connect(program.database_url, autocommit=True) as conn:
        conn.execute("DELETE FROM backlot_events WHERE notification_id > 10")
        conn.execute("DELETE FROM backlot_seals WHERE last > 10")
    eventually(lambda: "log_rewritten" in program.complained)
    found = doctor(program)
    assert (found["ok"], "the log was cut off" in found["detail"]) == (False, True)
    code, told = verified(program)
    assert (code, told["fault"]["kind"]) == (1, "head-differs")
    answer = program.client("root", admin=True).get("/audit/verify").json()
    assert (answer["ok"], answer["fault"]["kind"]) == (False, "head-differs")
    left = sealed_to(program)
    assert left <= 10
    accepted = program.run("events", "accept", "--reason", "a drill", "--yes", "--json")
    assert (accepted.returncode, json.loads(accepted.stdout)["position"]) == (0, left)
    eventually(lambda: sealed_to(program) > 10)
    assert verified(program)[1]["ok"]
    assert doctor(program)["ok"]
    assert program.stop() == 0


def test_without_the_role_workers_nothing_is_sealed(make_program: Callable[..., Program]) -> None:
    program = make_program(SEAL_SECONDS="0.1", BACKLOT_ROLES="commands,queries,projections").start()
    like_often(program, 3)
    code, found = verified(program)
    assert (code, found["ok"], found["sealedTo"], found["unsealed"]) == (0, True, 0, 6)
    assert program.stop() == 0


def test_a_key_that_can_not_be_used_stops_the_start(make_program: Callable[..., Program]) -> None:
    program = make_program(SEAL_KEY_FILE="/nowhere/key.pem").launch()
    assert program.wait() == 4
    assert "backlot: the key file /nowhere/key.pem can't be read" in program.complained
    assert program.servers() == []
