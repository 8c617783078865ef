"""Moderation over HTTP, on the started program: what each caller may do, and what each one sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.program import Program
from tests.e2e.videos import problem, read, upload
from tests.support import eventually, unused_port

Clients = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def server(short_dir: Path) -> Iterator[Program]:
    """A program that watches words, of a list and of a file."""
    words = short_dir / "words.txt"
    words.write_text("# one a line\n\nscheiße\n傻瓜\n")
    settings = {"WATCHED_WORDS": "badword, buy now", "WATCHED_WORDS_FILE": str(words)}
    quick = {"ANALYTICS_FLUSH_SECONDS": "0.2"}
    program = Program(short_dir / "moderation", unused_port(), {**settings, **quick})
    try:
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained
        assert "a command broke" not in program.complained
    finally:
        program.clean_up()


@pytest.fixture(scope="module")
def caller(server: Program) -> Clients:
    """Makes clients; what one of them is told of, all of them see."""
    told: dict[str, str] = {}

    def note(answer: httpx.Response) -> None:
        if "Backlot-Position" in answer.headers:
            told["Backlot-Min-Position"] = answer.headers["Backlot-Position"]

    def ask(request: httpx.Request) -> None:
        request.headers.update({**told, "Backlot-Timeout-Ms": "20000"})

    @cache
    def make(user: str | None = None, *roles: str) -> httpx.Client:
        client = server.client(user, roles=roles)
        client.event_hooks = {"request": [ask], "response": [note]}
        return client

    return make


def post(client: httpx.Client, video: str, content: str = "Nice") -> dict[str, Any]:
    answer = client.post(f"/videos/{video}/comments", json={"content": content})
    assert answer.status_code == 201, answer.text
    return read(answer)


def seen(client: httpx.Client, video: str, **params: str) -> list[tuple[str, str | None]]:
    items = read(client.get(f"/videos/{video}/comments", params=params))["items"]
    return [(item["content"], item.get("status")) for item in items]


def counted(client: httpx.Client, video: str) -> int:
    return int(read(client.get(f"/videos/{video}"))["comments"])


def test_a_comment_is_removed_and_restored_by_the_videos_owner(caller: Clients) -> None:
    alice, bob, eve, nobody = caller("alice"), caller("bob"), caller("eve"), caller()
    video = upload(alice)
    comment = post(bob, video)["commentId"]
    problem(eve.delete(f"/comments/{comment}"), 403, "forbidden")
    gone = read(alice.delete(f"/comments/{comment}", params={"reason": "off topic"}))
    assert gone == {"commentId": comment, "status": "removed"}
    assert seen(nobody, video) == seen(alice, video) == seen(eve, video) == []
    (own,) = read(bob.get(f"/videos/{video}/comments"))["items"]
    assert (own["status"], own["statusReason"], own["removedBy"]) == (
        "removed",
        "off topic",
        "owner",
    )
    assert counted(nobody, video) == 0
    told = problem(bob.patch(f"/comments/{comment}", json={"content": "Other"}), 409, "conflict")
    assert told["commentStatus"] == "removed"
    problem(bob.post(f"/comments/{comment}/restore"), 404, "not-found")
    # To a stranger it is not there.
    for refused in (
        eve.delete(f"/comments/{comment}"),
        eve.post(f"/comments/{comment}/restore"),
        eve.post(f"/comments/{comment}/report", json={"reason": "spam"}),
    ):
        problem(refused, 404, "not-found")
    assert seen(alice, video, status="removed") == [("Nice", "removed")]
    assert read(alice.post(f"/comments/{comment}/restore"))["content"] == "Nice"
    assert seen(nobody, video) == [("Nice", None)]
    assert counted(nobody, video) == 1
    # And what its author deletes is gone for good.
    assert read(bob.delete(f"/comments/{comment}"))["status"] == "deleted"
    problem(alice.post(f"/comments/{comment}/restore"), 404, "not-found")


@pytest.mark.parametrize("role", ["moderator", "admin"])
def test_what_a_moderator_removed_only_a_moderator_restores(caller: Clients, role: str) -> None:
    alice, bob, mod = caller("alice"), caller("bob"), caller("mod", role)
    video = upload(alice)
    comment = post(bob, video)["commentId"]
    answer = mod.request("DELETE", f"/comments/{comment}", json={"reason": "an insult"})
    assert read(answer)["status"] == "removed"
    (own,) = read(bob.get(f"/videos/{video}/comments"))["items"]
    assert (own["statusReason"], own["removedBy"]) == ("an insult", "moderator")
    problem(alice.post(f"/comments/{comment}/restore"), 403, "forbidden")
    read(mod.post(f"/comments/{comment}/restore", json={"reason": "a mistake"}))
    assert seen(caller(), video) == [("Nice", None)]
    events = caller("root", "admin").get("/audit/events", params={"stream": comment})
    told = [(each["topic"], each["actor"]) for each in read(events)["items"]]
    assert ("comment.removed.v1", "mod") in told
    assert ("comment.restored.v1", "mod") in told


def test_stats_follow_what_everybody_sees(caller: Clients) -> None:
    alice, bob = caller("alice"), caller("bob")
    video = upload(alice)

    def comments() -> int:
        return int(read(alice.get(f"/videos/{video}/stats"))["totals"]["comments"])

    first, _ = (post(bob, video)["commentId"] for _ in range(2))
    eventually(lambda: comments() == 2)
    alice.delete(f"/comments/{first}")
    eventually(lambda: comments() == 1)
    alice.post(f"/comments/{first}/restore")
    eventually(lambda: comments() == 2)


def test_reports_come_into_a_queue_and_are_decided_once(caller: Clients) -> None:
    alice, bob, mod = caller("alice"), caller("bob"), caller("mod", "moderator")
    video = upload(alice)
    comment = post(bob, video, "Cheap watches")["commentId"]
    path = f"/comments/{comment}/report"
    for user, reason in (("eve", "spam"), ("eve", "hate"), ("joe", "spam")):
        answer = caller(user).post(path, json={"reason": reason, "detail": f"says {user}"})
        assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
    problem(caller().post(path, json={"reason": "spam"}), 401, "unauthenticated")
    problem(caller("eve").post(path, json={"reason": "what"}), 422, "invalid")
    problem(caller("eve").post(path, json={"reason": "spam", "detail": " "}), 422, "invalid")
    queue = read(mod.get("/moderation/reports", params={"limit": 100}))["items"]
    (item,) = [each for each in queue if each.get("commentId") == comment]
    assert (item["reports"], item["reasons"]) == (2, {"spam": 2})
    assert item["comment"]["content"] == "Cheap watches"
    assert {each["detail"] for each in item["details"]} == {"says eve", "says joe"}
    decide = f"/moderation/reports/{item['reportId']}"
    for other in (bob, alice, caller("eve"), caller("audit", "auditor")):
        problem(other.get("/moderation/reports"), 403, "forbidden")
        problem(other.post(decide, json={"decision": "dismiss"}), 403, "forbidden")
    decided = read(mod.post(decide, json={"decision": "remove", "reason": "an ad"}))
    assert (decided["status"], decided["commentId"]) == ("removed", comment)
    told = problem(mod.post(decide, json={"decision": "dismiss"}), 409, "conflict")
    assert told["decision"] == "remove"
    assert seen(caller(), video) == []
    assert seen(bob, video) == [("Cheap watches", "removed")]
    still = read(mod.get("/moderation/reports", params={"limit": 100}))["items"]
    assert item["reportId"] not in [each["reportId"] for each in still]
    problem(mod.post(f"/moderation/reports/{comment}", json={"decision": "remove"}), 404)


def test_a_dismissed_thing_may_be_reported_by_others(caller: Clients) -> None:
    alice, mod = caller("alice"), caller("mod", "moderator")
    video = upload(alice)

    def mine() -> list[dict[str, Any]]:
        queue = read(mod.get("/moderation/reports", params={"limit": 100}))["items"]
        return [each for each in queue if each["videoId"] == video]

    for user in ("eve", "joe"):
        assert (
            caller(user).post(f"/videos/{video}/report", json={"reason": "rights"}).status_code
            == 202
        )
        (item,) = mine()
        assert (item["reports"], item["video"]["ownerId"]) == (1, "alice")
        path = f"/moderation/reports/{item['reportId']}"
        decision = "dismiss" if user == "eve" else "remove"
        read(mod.post(path, json={"decision": decision}))
        assert mine() == []
        # Reporting it again changes nothing.
        if user == "eve":
            caller(user).post(f"/videos/{video}/report", json={"reason": "rights"})
            assert mine() == []
    problem(alice.get(f"/videos/{video}"), 404, "not-found")
    problem(caller("ann").post(f"/videos/{video}/report", json={"reason": "spam"}), 404)


def test_an_owner_approves_comments_closes_them_and_opens_them_again(caller: Clients) -> None:
    alice, bob, eve, nobody = caller("alice"), caller("bob"), caller("eve"), caller()
    video = upload(alice, commentPolicy="approval")
    assert read(nobody.get(f"/videos/{video}"))["commentPolicy"] == "approval"
    held, no = (post(bob, video, content) for content in ("Let me in", "Nonsense"))
    assert held["status"] == "held"
    assert seen(nobody, video) == seen(alice, video) == []
    assert seen(bob, video) == [("Nonsense", "held"), ("Let me in", "held")]
    assert counted(nobody, video) == 0
    (_, first) = read(alice.get("/moderation/held"))["items"][:2]
    assert (first["commentId"], first["heldFor"]) == (held["commentId"], "approval")
    approve = f"/comments/{held['commentId']}/approve"
    problem(bob.post(approve), 404, "not-found")
    problem(eve.post(approve), 404, "not-found")
    read(bob.patch(f"/comments/{held['commentId']}", json={"content": "Let us in"}))
    late = problem(alice.post(approve, json={"revision": 1}), 409, "conflict")
    assert late["revision"] == 2
    assert read(alice.post(approve, json={"revision": 2}))["content"] == "Let us in"
    assert read(alice.delete(f"/comments/{no['commentId']}"))["status"] == "removed"
    assert seen(nobody, video) == [("Let us in", None)]
    assert counted(nobody, video) == 1
    # What an approved comment becomes has to be approved, too.
    edited = read(bob.patch(f"/comments/{held['commentId']}", json={"content": "Spam"}))
    assert edited["status"] == "held"
    assert seen(nobody, video) == []
    assert "status" not in post(alice, video, "My own")
    path = f"/videos/{video}"
    problem(bob.patch(path, json={"commentPolicy": "open"}), 403, "forbidden")
    problem(alice.patch(path, json={"commentPolicy": "what"}), 422, "invalid")
    assert read(alice.patch(path, json={"commentPolicy": "closed"}))["commentPolicy"] == "closed"
    for refused in (
        bob.post(f"{path}/comments", json={"content": "Hello"}),
        bob.patch(f"/comments/{held['commentId']}", json={"content": "Hello"}),
    ):
        assert problem(refused, 409, "comments-closed")["commentPolicy"] == "closed"
    assert "commentPolicy" not in read(alice.patch(path, json={"commentPolicy": "open"}))
    assert "status" not in post(bob, video, "At last")


def test_whom_the_owner_blocks_does_not_comment(caller: Clients) -> None:
    alice, mallory = caller("alice"), caller("mallory")
    video, other = upload(alice), upload(caller("carol"))
    comment = post(mallory, video)["commentId"]
    path = "/users/me/blocked/mallory"
    assert read(alice.put(path)) == {"userId": "mallory", "blocked": True}
    assert read(alice.put(path)) == {"userId": "mallory", "blocked": True}
    assert read(alice.get("/users/me/blocked"))["items"] == [{"userId": "mallory"}]
    for refused in (
        mallory.post(f"/videos/{video}/comments", json={"content": "Hello"}),
        mallory.patch(f"/comments/{comment}", json={"content": "Hello"}),
    ):
        problem(refused, 403, "blocked")
    # A like is no word, and a delete is their own business.
    assert mallory.put(f"/videos/{video}/like").status_code == 200
    assert read(mallory.delete(f"/comments/{comment}"))["status"] == "deleted"
    assert post(mallory, other, "Look, @alice!")["status"] == "held"
    assert "status" not in post(mallory, other, "Look!")
    assert read(alice.delete(path)) == {"userId": "mallory", "blocked": False}
    assert "status" not in post(mallory, video, "Hello")
    problem(alice.put("/users/me/blocked/alice"), 422, "invalid")
    problem(alice.put("/users/me/blocked/%00"), 422, "invalid")


def test_watched_words_hold_a_comment_wherever_it_is_written(caller: Clients) -> None:
    alice, bob, mod = caller("alice"), caller("bob"), caller("mod", "moderator")
    video = upload(alice)
    wide = "\uff22\uff21\uff24word"
    for content in ("A BÁDWORD!", wide, "Buy   now", "SCHEISSE", "这是傻瓜啊"):
        assert post(bob, video, content)["status"] == "held"
    comment = post(bob, video, "badwords are not it")
    assert "status" not in comment
    path = f"/comments/{comment['commentId']}"
    assert read(bob.patch(path, json={"content": "badword"}))["status"] == "held"
    assert seen(caller(), video) == []
    waiting = read(mod.get("/moderation/held", params={"limit": 100}))["items"]
    mine = [each for each in waiting if each["videoId"] == video]
    assert {each["heldFor"] for each in mine} == {"watched_word"}
    assert len(mine) == 6
    own = post(alice, video, "badword")
    assert own["status"] == "held"
    problem(alice.post(f"/comments/{own['commentId']}/approve"), 403, "forbidden")
    read(mod.post(f"/comments/{own['commentId']}/approve"))
    assert seen(caller(), video) == [("badword", None)]
    assert "status" not in post(mod, video, "No badword here")


def test_a_repeated_post_is_answered_as_before(caller: Clients) -> None:
    alice, bob = caller("alice"), caller("bob")
    video = upload(alice)
    key = {"Idempotency-Key": "comment-1"}
    path = f"/videos/{video}/comments"
    first = bob.post(path, json={"content": "Hello"}, headers=key)
    alice.patch(f"/videos/{video}", json={"commentPolicy": "closed"})
    again = bob.post(path, json={"content": "Hello"}, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
