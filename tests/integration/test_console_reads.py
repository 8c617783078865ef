"""What operators read of seals, replays and parked events, on a real log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from domain.model import Origin
from engine.archive.inclusion import check_proof
from engine.connections import connect
from engine.inspection.index import Audit
from engine.installation import install
from engine.seals.anchors import FileAnchors
from engine.seals.outside import Outside
from engine.seals.proofs import Proofs
from infra.llm.spending import SpendingLedger, Spent
from projections.comments import Comments
from projections.likes import Likes
from projections.operations import Operations
from readapi.audit.routes import Integrity
from readapi.spending import Budgets
from tests.integration.operator_desk import Desk, Ran, executing, in_group, replay_state
from tests.integration.projection_support import Writer, caught_up, hosting
from tests.integration.readapi_support import Site
from tests.integration.seal_support import TOPICS, anchored, make_log, new_key, seal_all
from tests.support import eventually

PARKED = """
INSERT INTO backlot_dead_letters (kind, subscription, position, error, status)
VALUES ('projection', %s, %s, 'ValueError: no', %s)
"""


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    opened = Site(database_url, tmp_path)
    opened.counting = False
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, [Audit(), Likes(), Comments()])
    yield opened
    opened.close()


def know(site: Site, proofs: Proofs) -> None:
    site.app.state.integrity = Integrity(site.database_url, proofs, TOPICS)


def told(site: Site, path: str, **params: Any) -> dict[str, Any]:
    answer = site.get(path, "root", admin=True, fresh=False, **params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def pages(site: Site, path: str, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = told(site, path, limit=limit, **cursor)
        assert len(page["items"]) <= limit
        found += page["items"]
        if "nextCursor" not in page:
            return found
        cursor = {"cursor": page["nextCursor"]}


def test_seals_are_listed_with_what_proves_them(
    site: Site, database_url: str, tmp_path: Path
) -> None:
    make_log(database_url, 25)
    outside, key = Outside(anchors=[FileAnchors(tmp_path / "anchors.jsonl")]), new_key()
    seal_all(database_url, key=key, anchors=outside.anchors)
    know(site, Proofs(key.public, outside))
    seals = pages(site, "/audit/seals", 2)
    assert [each["number"] for each in seals] == [3, 2, 1]
    assert [(each["firstPosition"], each["lastPosition"]) for each in seals][-1] == (1, 10)
    assert [each["previousHash"] for each in seals[:2]] == [each["hash"] for each in seals[1:]]
    assert all(each["anchored"] and not each["stamped"] for each in seals)
    assert {each["keyId"] for each in seals} == {key.key_id}
    (place,) = told(site, "/audit/anchors")["items"]
    assert (place["newestSeal"], place["lastPosition"]) == (3, 25)
    assert place["hash"] == seals[0]["hash"]

    proof = told(site, "/audit/seals/3/proof", position=7)
    verdict = check_proof(proof, public_keys=key.public)
    assert (verdict.ok, verdict.position, proof["head"]["number"]) == (True, 7, 3)
    for number, position in ((9, 7), (1, 25)):
        path = f"/audit/seals/{number}/proof"
        answer = site.get(path, "root", admin=True, fresh=False, position=position)
        assert answer.status_code == 404
    assert site.get("/audit/seals", "aud", roles=["auditor"], fresh=False).status_code == 200
    answer = site.get("/audit/seals/3/proof", "aud", roles=["auditor"], fresh=False, position=7)
    assert answer.status_code == 403


def test_a_place_of_anchors_that_cannot_be_read_says_so(
    site: Site, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "anchors.jsonl").mkdir()
    know(site, Proofs(None, anchored(tmp_path / "anchors.jsonl")))
    (place,) = told(site, "/audit/anchors")["items"]
    assert "can't be read" in place["error"]
    assert told(site, "/audit/seals")["items"] == []


def test_parked_events_of_all_projections_come_in_one_list(site: Site) -> None:
    site.writer.like(site.writer.video().id, "ann", "bob")
    with psycopg.connect(site.database_url) as conn:
        for schema, at, status in (
            ("likes", 2, "parked"), ("comments", 2, "parked"), ("comments", 1, "parked"),
            ("likes", 3, "discarded"), ("likes__previous", 1, "parked"),
        ):  # fmt: skip
            conn.execute(PARKED, (schema, at, status))
    found = [(each["position"], each["projection"]) for each in pages(site, "/admin/parked", 1)]
    assert found == [(1, "comments"), (2, "comments"), (2, "likes")]


def test_comments_that_nobody_could_translate_are_listed(site: Site, database_url: str) -> None:
    video, at = site.writer.video().id, datetime(2026, 3, 1, tzinfo=UTC)
    for number in range(5):
        comment = site.writer.comment(video, "bob", f"Bonito {number}")
        said = Origin("translation", at + timedelta(hours=number), "x", "x")
        if number != 3:
            comment.fail_translation(1, "refused", said)
            site.writer.save(comment)
    with hosting(database_url, Comments()):
        caught_up(database_url, ["comments"], site.writer.head)
    found = pages(site, "/admin/translations/failed", 2)
    assert [each["content"] for each in found] == [f"Bonito {n}" for n in (4, 2, 1, 0)]
    assert {each["reason"] for each in found} == {"refused"}
    assert {each["userId"] for each in found} == {"bob"}


def test_spending_adds_up_over_processes(site: Site, database_url: str) -> None:
    one, other = SpendingLedger(), SpendingLedger()
    one.add("translate", "m1", Spent(2, 1, 100, 10, 0.5))
    one.add("embed", "m2", Spent(1, 0, 7, 0))
    other.add("translate", "m1", Spent(1, 0, 50, 5, 0.25))
    with psycopg.connect(database_url, autocommit=True) as conn:
        assert (one.write(conn), other.write(conn), one.write(conn)) == (2, 1, 0)
        # What an older installation did.
        conn.execute(
            "INSERT INTO backlot_llm_calls VALUES (now() - interval '3 days', 'detect', 'm1', "
            "9, 9, 9, 9, NULL)"
        )
    site.app.state.budgets = Budgets(site.rankings, {"translation": 20})
    day = told(site, "/admin/spending", timeRange="24h")
    assert day["totals"] == {
        "calls": 4, "failed": 1, "promptTokens": 157, "completionTokens": 15, "cost": 0.75,
    }  # fmt: skip
    assert [(e["purpose"], e["calls"], e.get("cost")) for e in day["byPurpose"]] == [
        ("embed", 1, None),
        ("translate", 3, 0.75),
    ]
    assert sum(each["calls"] for each in day["byDay"]) == 4
    assert day["budgets"] == [{"name": "translation", "limit": 20, "used": 0, "period": "day"}]
    week = told(site, "/admin/spending")
    assert week["byDay"][0]["calls"] == 9


def test_what_was_counted_is_kept_while_the_database_fails(database_url: str) -> None:
    ledger = SpendingLedger()
    ledger.add("translate", "m1", Spent(1))
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE backlot_llm_calls RENAME TO away")
        with pytest.raises(psycopg.Error):
            ledger.write(conn)
        conn.execute("ALTER TABLE away RENAME TO backlot_llm_calls")
        assert ledger.write(conn) == 1
        assert conn.execute("SELECT sum(calls) FROM backlot_llm_calls").fetchone() == (1,)


def test_a_replay_that_differs_shows_the_rows_before_the_switch(
    site: Site, root: Desk, writer: Writer
) -> None:
    video = writer.video()
    writer.like(video.id, "ann", "bob")
    with executing(root.database_url):
        caught_up(root.database_url, ["likes", "audit"], writer.head)
        before = told(site, "/projections/likes/estimate")
        assert before["events"] == 2
        assert before["positions"] >= writer.head
        assert before["diskBytes"] > 0
        assert "expectedSeconds" not in before
        missing = site.get("/projections/likes/differences", "root", admin=True, fresh=False)
        assert missing.status_code == 404
        with connect(root.database_url, "test") as conn:
            conn.execute("UPDATE likes.counts SET likes = 77")
            conn.execute("DELETE FROM likes.likes WHERE viewer = 'ann'")
        operation_id = root.ask("replay", "likes")
        eventually(lambda: replay_state(root, state="waiting", paused=False))
        found = told(site, "/projections/likes/differences", limit=1)
        assert (found["state"], found["differs"], found["total"]) == ("waiting", True, 2)
        assert found["operationId"] == str(operation_id)
        items = pages(site, "/projections/likes/differences", 1)
        by_table = {each["table"]: each for each in items}
        count = by_table["counts"]
        assert (count["kind"], count["columns"]) == ("different", ["likes"])
        assert (count["live"]["likes"], count["rebuilt"]["likes"]) == (77, 2)
        like = by_table["likes"]
        assert (like["kind"], like["rebuilt"]["viewer"]) == ("missing", "ann")
        assert "live" not in like
        root.done("confirm", "likes")
        root.end(operation_id)
        later = pages(site, "/projections/likes/differences", 5)
        assert all("live" not in each and "rebuilt" not in each for each in later)
        after = told(site, "/projections/likes/estimate")
        assert after["expectedSeconds"] > 0


def test_the_command_line_tells_the_same(
    root: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", root.database_url)

    def backlot(group: str, *words: str) -> Ran:
        return in_group(group, monkeypatch, capsys)(*words)

    with connect(root.database_url, "test") as conn:
        install(conn, [Audit(), Likes(), Operations()])
        ledger = SpendingLedger()
        ledger.add("translate", "m1", Spent(2, 1, 100, 10, 0.5))
        ledger.write(conn)
    root.ask("discard-dead", "dead messages", {"ids": [1], "reason": "old"}, "operator:ann")
    (told,) = backlot("operations", "list", "--json").data["items"]
    assert (told["actor"], told["action"], told["reason"]) == (
        "operator:ann",
        "discard-dead",
        "old",
    )
    assert told["outcome"] == "requested"
    assert "operator:ann" in backlot("operations", "list").out
    assert backlot("operations", "list", "--actor", "operator:bob", "--json").data["items"] == []
    assert backlot("spending", "--json").data["totals"]["calls"] == 2
    assert "translate" in backlot("spending").out
    assert backlot("projections", "estimate", "likes", "--json").data["events"] == 0
