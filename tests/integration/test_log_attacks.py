"""What whoever can write to the database may do to the log, and by what each attack is found.

Sealing stops with a log line and a metric; `doctor`, `events verify` and `/audit/verify` say why.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from backlot import health
from backlot.events.commands import app
from engine.seals import chain
from engine.seals.anchors import FileAnchors, HeadFile
from engine.seals.chain import connect
from engine.seals.outside import Outside
from engine.seals.proofs import Proofs
from engine.seals.sealer import LogRewritten, Sealer
from infra import metrics
from infra.data_folder import seal_head_path
from infra.settings import load_settings
from readapi.audit.routes import Integrity
from tests.integration.event_log import rows
from tests.integration.seal_support import (
    TOPICS,
    change,
    make_log,
    seal_all,
    seal_anew,
    sealer,
    verify,
)
from workers import maintenance

EVENTS, SEALS = 35, 4
FORGE: LiteralString = "UPDATE backlot_events SET state = '{}' WHERE notification_id = %s"


@dataclass(frozen=True)
class Guarded:
    """A log with what is known of its seals outside: the head, and if so a file of anchors."""

    database_url: str
    folder: Path
    anchored: bool = True

    @property
    def head(self) -> HeadFile:
        return HeadFile(seal_head_path(self.folder))

    @property
    def anchors(self) -> list[FileAnchors]:
        return [FileAnchors(self.folder / "anchors.jsonl")] if self.anchored else []

    @property
    def proofs(self) -> Proofs:
        return Proofs(outside=Outside(self.head, self.anchors))

    def settings(self) -> dict[str, str]:
        where = {"SEAL_ANCHOR": self.anchors[0].name} if self.anchored else {}
        return {"DATABASE_URL": self.database_url, "BACKLOT_DATA_DIR": str(self.folder), **where}

    def sealer(self, **options: Any) -> Sealer:
        return sealer(self.database_url, head=self.head, anchors=self.anchors, **options)

    def seal(self) -> int:
        return seal_all(self.database_url, head=self.head, anchors=self.anchors)

    def fault(self) -> str:
        """The kind of what a verification finds first."""
        found = verify(self.database_url, proofs=self.proofs).fault
        assert found is not None
        return found.kind.value

    def doctor(self) -> tuple[bool, str]:
        part = health.seals(load_settings(self.settings()))
        return part.ok, part.detail

    def stopped(self) -> str:
        """Why a sealer that begins now does not seal: what it logs, which its metric counts."""
        make_log(self.database_url, 3)
        working = self.sealer()
        counted = metrics.value("backlot_seal_failures_total", step="history")
        sealed = last_seal(self.database_url)
        with capture_logs() as lines:
            pause = asyncio.run(maintenance._seal(working))
        working.close()
        assert pause == maintenance.AFTER_FAILURE_SECONDS
        assert metrics.value("backlot_seal_failures_total", step="history") == counted + 1
        assert last_seal(self.database_url) == sealed, "nothing is sealed"
        (line,) = [line for line in lines if line["event"] == "log_rewritten"]
        assert line["log_level"] == "error"
        return str(line["error"])


@pytest.fixture(params=[True, False], ids=["anchored", "head alone"])
def guarded(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Guarded:
    """35 events under 4 seals."""
    made = Guarded(database_url, tmp_path, anchored=request.param)
    make_log(database_url, EVENTS)
    assert made.seal() == SEALS
    assert made.doctor()[0]
    assert verify(database_url, proofs=made.proofs).ok
    return made


@pytest.fixture
def anchored(database_url: str, tmp_path: Path) -> Guarded:
    made = Guarded(database_url, tmp_path)
    make_log(database_url, EVENTS)
    assert made.seal() == SEALS
    return made


def last_seal(database_url: str) -> tuple[int, bytes] | None:
    with connect(database_url, "test") as conn:
        return chain.tip(conn)


def test_event_1_rewritten_and_all_seals_recomputed(guarded: Guarded) -> None:
    change(guarded.database_url, FORGE, 1)
    seal_anew(guarded.database_url)
    assert verify(guarded.database_url).ok, "the database alone can't show it"
    assert "seal 4 is not the one that" in guarded.stopped()
    assert guarded.fault() == ("anchor-differs" if guarded.anchored else "head-differs")
    ok, told = guarded.doctor()
    assert (ok, "was written anew" in told) == (False, True)


def test_the_live_sealer_signs_no_new_history(guarded: Guarded) -> None:
    """Between two turns, and between two seals of one turn."""
    working = guarded.sealer()
    assert working.turn() == 0
    change(guarded.database_url, FORGE, 1)
    seal_anew(guarded.database_url)
    make_log(guarded.database_url, 10)
    for _ in range(2):
        with pytest.raises(LogRewritten, match="seal 4 is not the one"):
            working.turn()
    working.close()


def test_seals_are_changed_between_two_seals_of_one_turn(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(guarded.database_url, 20)
    working = guarded.sealer()
    made = Sealer._seal

    def seal_and_attack(self: Sealer, conn: Any, size: int) -> None:
        made(self, conn, size)
        change(guarded.database_url, "DELETE FROM backlot_seals WHERE number > 2")

    monkeypatch.setattr(Sealer, "_seal", seal_and_attack)
    with pytest.raises(LogRewritten, match="seal 5 was changed or removed a moment ago"):
        working.turn()
    with pytest.raises(LogRewritten, match=r"the seals end with 2, and .* knows seal 5"):
        working.turn()
    working.close()


@pytest.mark.parametrize("left", [0, 1, 3])
def test_truncated_seals(guarded: Guarded, left: int) -> None:
    change(guarded.database_url, "DELETE FROM backlot_seals WHERE number > %s", left)
    assert f"the seals end with {left}, and" in guarded.stopped()
    assert guarded.fault() == ("anchor-differs" if guarded.anchored else "head-differs")
    assert guarded.doctor()[0] is False


def test_the_last_event_deleted_with_its_seal(guarded: Guarded) -> None:
    change(guarded.database_url, "DELETE FROM backlot_seals WHERE number = 4")
    change(guarded.database_url, "DELETE FROM backlot_events WHERE notification_id > 30")
    assert verify(guarded.database_url).ok, "the database alone can't show it"
    assert guarded.fault() == ("anchor-differs" if guarded.anchored else "head-differs")
    assert "was cut off, or restored" in guarded.stopped()
    assert guarded.doctor()[0] is False


def test_the_last_event_deleted_without_its_seal(guarded: Guarded) -> None:
    change(guarded.database_url, "DELETE FROM backlot_events WHERE notification_id = 35")
    working = guarded.sealer()
    with pytest.raises(LogRewritten, match="ends with position 34, and is sealed up to 35"):
        working.turn()
    working.close()
    assert guarded.fault() == "missing"


def test_a_changed_time_of_a_seal(guarded: Guarded) -> None:
    later: LiteralString = "UPDATE backlot_seals SET sealed_at = sealed_at - interval '1 day'"
    change(guarded.database_url, later + " WHERE number = 2")
    found = verify(guarded.database_url).fault
    assert found is not None
    assert (found.kind, found.seal) == ("seal-altered", 2)


def integrity(guarded: Guarded, clock: Callable[[], float] = lambda: 0.0) -> Integrity:
    return Integrity(guarded.database_url, guarded.proofs, TOPICS, clock)


FORGED_RESULT: LiteralString = """
INSERT INTO backlot_verifications (complete, ok, report, seal, seal_hash)
SELECT true, true, '{"ok": true, "from": 1, "events": 35, "sealedTo": 35, "seals": 4}',
       number, hash FROM backlot_seals WHERE number = 4
"""


def test_a_forged_verification(guarded: Guarded) -> None:
    change(guarded.database_url, FORGE, 7)
    change(guarded.database_url, FORGED_RESULT)
    found = asyncio.run(integrity(guarded).result(full=False))
    assert found.verification.report["ok"] is False
    assert found.verification.complete, "it skips nothing because of the row"
    assert found.hint is not None
    assert found.hint.report["ok"] is True, "which is told as what it is"


def test_a_forged_verification_over_a_chain_written_anew(guarded: Guarded) -> None:
    proving = integrity(guarded)
    assert asyncio.run(proving.result(full=False)).verification.report["ok"]
    change(guarded.database_url, FORGE, 1)
    seal_anew(guarded.database_url)
    change(guarded.database_url, FORGED_RESULT)
    found = asyncio.run(proving.result(full=False)).verification.report
    assert found["ok"] is False, "within the hour, too: the head is compared at once"


def test_an_anchor_replaced_by_an_older_one(anchored: Guarded) -> None:
    path = anchored.anchors[0].path
    older = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(older[:2]))
    wrong = "ends with seal 2, and seals up to 4 were written there: it was replaced"
    assert wrong in anchored.stopped()
    assert anchored.fault() == "head-differs"
    ok, told = anchored.doctor()
    assert (ok, wrong in told) == (False, True)
    path.unlink()
    assert "holds nothing, and seals up to 4" in anchored.stopped()


def test_an_anchor_replaced_under_the_live_sealer(anchored: Guarded) -> None:
    working, path = anchored.sealer(), anchored.anchors[0].path
    assert working.turn() == 0
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    make_log(anchored.database_url, 10)
    for _ in range(2):
        with pytest.raises(LogRewritten, match="it was replaced"):
            working.turn()
    path.write_bytes(whole)
    assert working.turn() == 1, "it was mended"
    working.close()


def test_anchor_and_database_put_back_together(anchored: Guarded) -> None:
    """As long as the head is there, they can't agree on an older state."""
    path = anchored.anchors[0].path
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    change(anchored.database_url, "DELETE FROM backlot_seals WHERE number = 4")
    change(anchored.database_url, "DELETE FROM backlot_events WHERE notification_id > 30")
    assert "the seals end with 3, and" in anchored.stopped()


def test_a_damaged_head(guarded: Guarded) -> None:
    guarded.head.path.write_bytes(b"no head")
    assert "is not an anchor" in guarded.stopped()
    assert guarded.doctor()[0] is False


def test_a_head_removed_under_the_live_sealer(guarded: Guarded) -> None:
    working = guarded.sealer()
    assert working.turn() == 0
    guarded.head.path.unlink()
    change(guarded.database_url, "DELETE FROM backlot_seals WHERE number = 4")
    for _ in range(2):
        with pytest.raises(LogRewritten, match="the head in the data folder is gone"):
            working.turn()
    working.close()


def test_a_crash_between_the_commit_and_the_head_is_no_alarm(guarded: Guarded) -> None:
    """The head lags: what follows it in the database is taken for ours, if it follows."""
    kept = guarded.head.path.read_bytes()
    make_log(guarded.database_url, 30)
    assert guarded.seal() == 3
    guarded.head.path.write_bytes(kept)
    assert guarded.doctor()[0]
    assert verify(guarded.database_url, proofs=guarded.proofs).ok
    make_log(guarded.database_url, 10)
    assert guarded.seal() == 1
    head = guarded.head.read()
    assert head is not None
    assert head.seal.number == SEALS + 4
    guarded.head.path.write_bytes(kept)
    change(guarded.database_url, "UPDATE backlot_seals SET previous = hash WHERE number = 6")
    assert "seal 6 does not follow the one before it" in guarded.stopped()


def test_a_head_that_can_not_be_written_stops_nothing(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = guarded.sealer()
    assert working.turn() == 0
    make_log(guarded.database_url, 10)
    draft = guarded.head.path.with_name("seal-head.json.draft")
    draft.mkdir()
    counted = metrics.value("backlot_seal_failures_total", step="head")
    assert working.turn() == 1
    assert metrics.value("backlot_seal_failures_total", step="head") == counted + 1
    draft.rmdir()
    assert working.turn() == 0
    head = guarded.head.read()
    assert head is not None
    assert head.seal.number == SEALS + 1
    working.close()


@pytest.fixture
def restored(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    """Restored from a backup of when there were two seals."""
    for name, value in guarded.settings().items():
        monkeypatch.setenv(name, value)
    change(guarded.database_url, "DELETE FROM backlot_seals WHERE number > 2")
    change(guarded.database_url, "DELETE FROM backlot_events WHERE notification_id > 20")
    return guarded


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    told = result.stdout + (str(result.exception) if result.exception else "")
    return getattr(result.exception, "exit_code", result.exit_code), told


def test_an_operator_accepts_a_restore(restored: Guarded) -> None:
    working = restored.sealer()
    with pytest.raises(LogRewritten):
        working.turn()
    assert run("accept", "--reason", "a drill")[0] != 0, "without a yes nothing happens"
    code, told = run("accept", "--reason", "the disk died", "--yes")
    assert (code, told) == (0, "sealing goes on after seal 2, position 20\n")
    # The live sealer goes on by itself: the two events that the operation is.
    assert working.turn() == 1
    working.close()
    report = verify(restored.database_url, proofs=restored.proofs)
    assert report.ok
    if restored.anchored:
        caveat = report.caveats[-1]
        assert caveat.kind == "accepted"
        assert "went on from seal 2, position 20" in caveat.detail
        assert "the disk died" in caveat.detail
        assert [anchor.number for anchor in restored.anchors[0].read()] == [1, 2, 3]
    assert restored.doctor()[0]
    said = rows(
        restored.database_url,
        "SELECT convert_from(state, 'UTF8')::json->>'reason' FROM backlot_events "
        "WHERE topic = 'operation.requested.v1'",
    )
    assert said[-1] == ("the disk died",)
    code, told = run("accept", "--reason", "again", "--yes")
    assert (code, "nothing to accept" in told) == (4, True)


def test_an_accepted_restore_of_an_empty_log(restored: Guarded) -> None:
    change(restored.database_url, "DELETE FROM backlot_seals")
    change(restored.database_url, "DELETE FROM backlot_events")
    assert run("accept", "--reason", "all is lost", "--yes")[0] == 0
    assert restored.seal() == 1
    assert verify(restored.database_url, proofs=restored.proofs).ok


def test_verify_says_in_words_what_is_lacking(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in guarded.settings().items():
        monkeypatch.setenv(name, value)
    code, told = run("verify")
    assert code == 0
    assert "unsigned: the newest seal is not signed: whoever can write to the database" in told
    assert ("unanchored: " in told) is not guarded.anchored
    found = json.loads(run("verify", "--json")[1])
    kinds = [caveat["kind"] for caveat in found["caveats"]]
    assert kinds == ["unsigned"] + ["unanchored"] * (not guarded.anchored)
    told = guarded.doctor()[1]
    assert "unsigned: " in told
    assert ("unanchored: " in told) is not guarded.anchored
