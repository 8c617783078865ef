"""Operators' actions over HTTP: taken by one process, carried out by another, whatever dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import psycopg
import pytest

from tests.e2e.program import Program
from tests.e2e.videos import read, upload
from tests.integration.event_log import rows
from tests.integration.operator_desk import desk, standing_still, working_on
from tests.support import eventually

POSTS = (
    "replay", "verify", "completeness", "pause", "resume", "cancel", "confirm", "rollback",
    "drop-old", "drop-look", "park", "retry", "discard",
)  # fmt: skip

Make = Callable[..., Program]


def ask(root: httpx.Client, action: str, name: str = "likes", **body: object) -> str:
    """Ask for something; the operation's id."""
    answer = root.post(f"/projections/{name}/{action}", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Backlot-Position"]
    assert answer.json()["status"] == "requested"
    return str(answer.json()["operationId"])


def ended(root: httpx.Client, operation_id: str) -> dict[str, Any]:
    """The operation, once it has ended."""
    eventually(lambda: "finishedAt" in root.get(f"/operations/{operation_id}").text)
    found = read(root.get(f"/operations/{operation_id}"))
    assert isinstance(found, dict)
    return found


COUNTED = "SELECT likes FROM likes.counts"


def likes(program: Program, *viewers: str) -> str:
    """A video that they like."""
    video = upload(program.client("alice"))
    for viewer in viewers:
        assert program.client(viewer).put(f"/videos/{video}/like").is_success
    return video


def projecting(make_program: Make, database_url: str) -> Program:
    return make_program(DATABASE_URL=database_url, BACKLOT_ROLES="projections")


class TestElsewhere:
    def test_a_post_is_carried_out_by_another_process(
        self, make_program: Make, database_url: str
    ) -> None:
        serving = make_program(DATABASE_URL=database_url, BACKLOT_ROLES="commands,queries").start()
        projecting(make_program, database_url).start()
        likes(serving, "ann", "bob")
        root = serving.client("root", admin=True)
        answer = root.post(
            "/projections/likes/replay",
            json={"yes": True, "reason": "a test"},
            headers={"X-Request-Id": "conversation-1"},
        )
        operation_id = answer.json()["operationId"]
        found = ended(root, operation_id)
        assert (found["action"], found["subject"]) == ("replay", "likes")
        assert found["parameters"] == {"yes": True, "reason": "a test"}
        assert (found["requestedBy"], found["status"]) == ("root", "done")
        assert found["correlationId"] == "conversation-1"
        assert (found["result"]["state"], found["result"]["events"]) == ("switched", 2)
        status = read(root.get("/projections/likes"))
        assert [copy["kind"] for copy in status["copies"]] == ["live", "previous"]
        assert status["replay"]["operationId"] == operation_id
        assert status["replay"]["finishedAt"]
        told = read(root.get("/audit/events", params={"correlationId": "conversation-1"}))["items"]
        assert sorted((each["type"], each["actor"]) for each in told) == [
            ("operation.finished", "projections"),
            ("operation.requested", "root"),
        ]

    @pytest.mark.chaos
    def test_killed_in_the_middle_another_process_goes_on(
        self, make_program: Make, database_url: str
    ) -> None:
        serving = make_program(DATABASE_URL=database_url, BACKLOT_ROLES="commands,queries").start()
        both = [projecting(make_program, database_url).start() for _ in range(2)]
        likes(serving, "ann")
        root = serving.client("root", admin=True)
        with standing_still(database_url, "likes"):
            operation_id = ask(root, "replay", yes=True)
            child = at_work(operation_id)
            folders = Path(child.cwd()).parents
            first, second = sorted(both, key=lambda each: each.home not in folders)
            first.kill()
            # Nobody tells it: it sees that its parent is gone.
            eventually(lambda: not child.is_running())
            eventually(lambda: bool(working_on(UUID(operation_id))))
        assert ended(root, operation_id)["result"]["state"] == "switched"
        with desk(database_url) as log:
            assert len(log.events(UUID(operation_id))) == 2
        assert rows(database_url, "SELECT count(*) FROM projections.replays") == [(1,)]
        assert second.stop() == 0


@pytest.mark.chaos
def test_a_database_that_dies_in_the_middle_costs_only_time(make_program: Make) -> None:
    program = make_program().start()
    likes(program, "ann")
    root = program.client("root", admin=True)
    # The connection that holds the replay up dies with the server.
    with suppress(psycopg.OperationalError), standing_still(program.database_url, "likes"):
        operation_id = ask(root, "replay", yes=True)
        at_work(operation_id)
        eventually(lambda: "replay" in read(root.get("/projections/likes")))
        program.postmaster.kill()
    eventually(lambda: root.get("/readyz").status_code == 200)
    found = ended(root, operation_id)
    assert (found["status"], found["result"]["state"]) == ("done", "switched")
    assert program.stop() == 0


def at_work(operation_id: str) -> psutil.Process:
    """The process that carries it out, once it has begun."""

    def alone() -> psutil.Process | None:
        # Others may have begun too, and find that it is taken.
        found = working_on(UUID(operation_id))
        return found[0] if len(found) == 1 else None

    child = eventually(alone)
    assert child is not None
    return child


class TestCallers:
    @pytest.mark.parametrize("action", POSTS)
    def test_only_for_operators(
        self, alice: httpx.Client, nobody: httpx.Client, action: str
    ) -> None:
        # The body is wrong on purpose: who may not ask is not told so.
        for client, status in ((nobody, 401), (alice, 403)):
            answer = client.post(f"/projections/likes/{action}", content=b"{")
            assert answer.status_code == status
        for client, status in ((nobody, 401), (alice, 403)):
            assert client.get(f"/operations/{uuid4()}").status_code == status
            assert client.get("/projections/likes/parked").status_code == status
            assert client.get("/projections/likes/completeness").status_code == status

    def test_what_is_not_there_or_not_valid(self, server: Program) -> None:
        root = server.client("root", admin=True)
        for action in POSTS[:9]:
            assert root.post(f"/projections/nothing/{action}").status_code == 404
        assert root.get(f"/operations/{uuid4()}").status_code == 404
        assert root.get("/projections/nothing/parked").status_code == 404
        assert root.get("/projections/nothing/completeness").status_code == 404
        for action, body in [
            ("replay", {"to": 0}),
            ("replay", {"to": "7"}),
            ("replay", {"workers": 0}),
            ("replay", {"yes": "yes"}),
            ("pause", {"replay": 1}),
            ("pause", {"reason": ""}),
            ("cancel", {"reason": "a\x00b"}),
            ("park", {}),
            ("drop-look", {}),
            ("discard", {"position": 1}),
            ("discard", {"reason": "why not"}),
            ("discard", {"position": 1, "allLike": 1, "reason": "why not"}),
            ("discard", {"allLike": 0, "reason": "why not"}),
            ("retry", {"position": 1, "allLike": 1}),
            ("park", {"allLike": "1", "reason": "why not"}),
        ]:
            answer = root.post(f"/projections/likes/{action}", json=body)
            assert answer.status_code == 422, (action, body)
            assert "Value error" not in answer.text

    def test_the_same_key_is_the_same_operation(self, server: Program) -> None:
        root = server.client("root", admin=True)
        headers = {"Idempotency-Key": uuid4().hex}
        path = "/projections/likes/completeness"
        first, again = (root.post(path, headers=headers) for _ in range(2))
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json() == again.json()
        assert again.headers["Idempotency-Replayed"] == "true"
        other = root.post("/projections/comments/completeness", headers=headers)
        assert other.status_code == 409
        assert ended(root, first.json()["operationId"])["result"]["complete"] is True


def test_whatever_an_operator_has_to_know_is_told(make_program: Make) -> None:
    program = make_program().start()
    video = likes(program, "ann", "bob")
    root = program.client("root", admin=True)
    assert replay_part(root) is None
    assert "8 in order" in doctor(program)["detail"]
    with psycopg.connect(program.database_url, autocommit=True) as conn:
        eventually(lambda: conn.execute(COUNTED).fetchall() == [(2,)])
        conn.execute("UPDATE likes.counts SET likes = 77")
    operation_id = ask(root, "replay", reason="a count is doubted")
    eventually(lambda: (replay_part(root) or {}).get("state") == "waiting")
    part = replay_part(root)
    assert part is not None
    assert part["ok"] is False
    assert "confirm" in part["detail"]
    told = doctor(program)
    assert told["ok"] is False
    assert "projections confirm likes" in told["detail"]
    replay = read(root.get("/projections/likes"))["replay"]
    assert replay["difference"]["keys"][0]["key"] == {"video_id": video}
    assert read(root.get(f"/operations/{operation_id}"))["status"] == "requested"
    # What is in memory, only events change.
    with psycopg.connect(program.database_url) as conn:
        assert conn.execute(COUNTED).fetchall() == [(77,)]
    assert ended(root, ask(root, "confirm"))["status"] == "done"
    assert ended(root, operation_id)["result"]["difference"]["total"] == 1
    assert read(root.get(f"/videos/{video}"))["likes"] == 2
    assert replay_part(root) is None
    ran = program.run("projections", "verify", "--all", "--json")
    assert ran.returncode == 0, ran.stderr
    assert program.stop() == 0


def replay_part(client: httpx.Client) -> dict[str, Any] | None:
    """What readiness says of the likes' replay."""
    answer = client.get("/readyz")
    assert answer.status_code == 200
    found: dict[str, Any] | None = answer.json()["parts"].get("replay likes")
    return found


def doctor(program: Program) -> dict[str, Any]:
    """What the doctor says of the projections."""
    parts = json.loads(program.run("doctor", "--json").stdout)["parts"]
    (found,) = [part for part in parts if part["name"] == "projections"]
    assert isinstance(found, dict)
    return found
