"""What an operator's console asks of the running program, and what comes of its decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.e2e.program import Program
from tests.e2e.videos import everything, problem, read, see, upload
from tests.support import eventually

DEAD = """
INSERT INTO backlot_dead_letters
    (kind, subscription, position, topic, key, value, headers, error, status)
VALUES ('consumer', %s, %s, 'comment.created', 'k', %s, %s, 'ValueError: bob wrote it 3', 'dead')
RETURNING id
"""


@pytest.fixture
def root(server: Program) -> httpx.Client:
    return server.client("root", admin=True)


@pytest.fixture
def auditor(server: Program) -> httpx.Client:
    return server.client("aud", roles=["auditor"])


def decided(root: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    """Decide something; the operation once it has ended."""
    answer = root.post(path, json=body)
    assert answer.status_code == 202, answer.text
    found = f"/operations/{answer.json()['operationId']}"
    see(root, answer)
    eventually(lambda: "finishedAt" in root.get(found).text)
    return read(root.get(found))


def test_a_caller_is_told_who_calls(server: Program) -> None:
    found = read(server.client("mira", roles=["moderator", "auditor"]).get("/users/me"))
    ends = datetime.fromisoformat(found.pop("expiresAt"))
    assert found == {"userId": "mira", "roles": ["auditor", "moderator"]}
    assert datetime.now(UTC) < ends < datetime.now(UTC) + timedelta(days=8)
    problem(server.client().get("/users/me"), 401)


def test_the_overview_tells_the_state_of_everything(server: Program, auditor: httpx.Client) -> None:
    def measured() -> dict[str, Any] | None:
        told = read(auditor.get("/admin/overview"))
        in_order = told["parts"] and all(each["ok"] for each in told["parts"])
        running = {each["state"] for each in told["projections"]} == {"running"}
        return told if "requests" in told and in_order and running else None

    found = eventually(measured)
    assert found is not None
    assert found["processes"] == 1
    assert {"commands", "queries", "projections"} <= set(found["roles"])
    parts = {each["name"]: each for each in found["parts"]}
    assert {"database", "objects", "redis", "seals", "auth", "analytics"} <= parts.keys()
    assert {"likes", "comments", "audit"} <= {each["name"] for each in found["projections"]}
    assert "analytics" in {each["name"] for each in found["subscriptions"]}
    assert {"database", "redis"} <= {each["name"] for each in found["breakers"]}
    assert found["requests"]["perSecond"] > 0
    assert found["requests"]["errorsPerSecond"] >= 0
    assert found["requests"]["p50Ms"] <= found["requests"]["p99Ms"]
    assert found["log"]["sealedUpTo"] <= found["log"]["head"] == found["log"]["events"]
    problem(server.client("bob").get("/admin/overview"), 403)


def test_what_needs_a_decision_is_found_decided_and_told(
    server: Program, root: httpx.Client, auditor: httpx.Client
) -> None:
    secret = "a text of bob's"
    with psycopg.connect(server.database_url, autocommit=True) as conn:
        ids = [
            conn.execute(DEAD, ("nobody-consumes", at, secret.encode(), Jsonb({}))).fetchone()
            for at in (1, 2, 3)
        ]
    first, second, third = (row[0] for row in ids if row)
    only = {"subscription": "nobody-consumes"}
    shown = read(root.get("/admin/dead-letters", params=only))["items"]
    assert [each["id"] for each in shown] == [first, second, third]
    assert {each["payload"] for each in shown} == {secret}
    masked = read(auditor.get("/admin/dead-letters", params=only | {"limit": "2"}))
    assert secret not in str(masked)
    assert "wrote it #" in masked["items"][0]["error"]
    assert len(masked["items"]) == 2
    assert masked["nextCursor"]

    def titles() -> set[str]:
        return {each["title"] for each in read(root.get("/admin/overview"))["findings"]}

    assert eventually(lambda: "messages are dead" in titles())
    done = decided(root, f"/admin/dead-letters/{first}/retry")
    assert (done["status"], done["result"]) == ("done", {"redriven": 1})
    shown = read(root.get("/admin/dead-letters", params=only))["items"]
    assert [each["status"] for each in shown] == ["redrive", "dead", "dead"]
    assert shown[0]["decidedBy"] == "root"
    done = decided(root, "/admin/dead-letters/discard", ids=[first, second, third], reason="old")
    assert done["result"]["discarded"] == 3
    assert read(root.get("/admin/dead-letters", params=only))["items"] == []
    again = decided(root, f"/admin/dead-letters/{first}/discard", reason="old")
    assert (again["status"], again["operationId"] != done["operationId"]) == ("refused", True)
    actions = everything(root, "/admin/operations", limit=2)
    assert [(e["actor"], e["action"], e["outcome"]) for e in actions[:3]] == [
        ("root", "discard-dead", "refused"),
        ("root", "discard-dead", "done"),
        ("root", "redrive-dead", "done"),
    ]
    assert actions[1]["reason"] == "old"
    assert UUID(actions[1]["operationId"]) == UUID(done["operationId"])
    blind = read(auditor.get("/admin/operations"))["items"]
    assert "root" not in str(blind)
    assert "reason" not in blind[0]


def test_what_owners_do_is_no_action_of_operators(server: Program, root: httpx.Client) -> None:
    alice = server.client("alice")
    own, others = upload(alice), upload(alice)
    assert alice.delete(f"/videos/{own}").is_success
    removed = root.delete(f"/videos/{others}")
    see(root, removed)
    found = [e for e in everything(root, "/admin/operations") if e["action"] == "upload.removed"]
    assert [(each["target"], each["outcome"]) for each in found] == [(others, "done")]
    by_nobody = root.get("/admin/operations", params={"actor": "nobody-here"})
    assert read(by_nobody)["items"] == []


def test_tasks_and_translations_that_never_were_are_refused(root: httpx.Client) -> None:
    queues = {each["queue"]: each for each in read(root.get("/admin/tasks"))["items"]}
    assert queues["translation"]["failed"] == 0
    assert read(root.get("/admin/tasks/failed"))["items"] == []
    told = decided(root, "/admin/tasks/failed/of-no-task/discard", reason="a test")
    assert (told["status"], told["subject"]) == ("refused", "dead tasks")
    problem(root.post(f"/admin/translations/{uuid4()}/retry"), 404, "not-found")
    assert read(root.get("/admin/translations/failed"))["items"] == []
    assert read(root.get("/admin/parked"))["items"] == []
    assert read(root.get("/audit/anchors"))["items"] == []


def test_spending_is_told_without_a_language_model(auditor: httpx.Client) -> None:
    found = read(auditor.get("/admin/spending", params={"timeRange": "24h"}))
    assert found["totals"] == {"calls": 0, "failed": 0, "promptTokens": 0, "completionTokens": 0}
    assert {each["name"]: each["used"] for each in found["budgets"]} == {
        "translation": 0,
        "recommendations": 0,
    }


def test_other_weights_change_a_ranking_and_nothing_else(
    server: Program, auditor: httpx.Client
) -> None:
    alice, bob = server.client("alice"), server.client("bob")
    liked, watched = upload(alice), upload(alice)
    see(auditor, bob.put(f"/videos/{liked}/like"))
    for viewer in ("w1", "w2", "w3"):
        see(auditor, server.client(viewer).post(f"/videos/{watched}/watch"))

    def ranked(**weights: float) -> list[str]:
        told = auditor.get("/analytics/trending/why", params={"limit": 100, **weights})
        return [each["video"]["videoId"] for each in read(told)["items"]]

    mine = {liked, watched}
    eventually(lambda: mine <= set(ranked()))
    for weights, first in ((({"views": 0.0, "likes": 9.0}), liked), ({"likes": 0.0}, watched)):
        order = [video for video in ranked(**weights) if video in mine]
        assert order[0] == first
    told = read(auditor.get("/analytics/trending/why", params={"likes": 9, "agePenalty": 0.25}))
    assert (told["weights"]["likes"], told["weights"]["agePenalty"]) == (9.0, 0.25)

    def placed() -> bool:
        """The ranking by the settings may be from some seconds ago."""
        shown = read(auditor.get("/analytics/trending/why", params={"limit": 100}))["items"]
        return all(each.get("currentRank") for each in shown)

    assert eventually(placed)
    problem(auditor.get("/analytics/trending/why", params={"recency": 0}), 422)


def test_recommendations_are_explained(server: Program, root: httpx.Client) -> None:
    alice, fan = server.client("alice"), server.client("fan")
    liked, other, own = upload(alice), upload(alice), upload(fan)
    see(root, fan.put(f"/videos/{liked}/like"))

    def explained() -> dict[str, Any] | None:
        found = read(root.get("/recommendations/why", params={"userId": "fan"}))
        return found if other in {each["videoId"] for each in found["candidates"]} else None

    found = eventually(explained)
    assert found is not None
    assert {liked, own}.isdisjoint(each["videoId"] for each in found["candidates"])
    assert all(each["sources"] and each["reason"] for each in found["candidates"])
    assert {each["videoId"]: each["why"] for each in found["filtered"]}.get(liked) in (
        "liked",
        None,
    )
    problem(alice.get("/recommendations/why", params={"userId": "fan"}), 403)
