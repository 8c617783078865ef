"""The audit of the started program: the terminal and HTTP say the same, and `tail` follows."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from infra.data_folder import secret_path
from infra.http.auth import mint_token
from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import read, upload
from tests.support import DEADLINE_SECONDS, eventually


@pytest.fixture(scope="module")
def story(server: Program) -> dict[str, str]:
    """A video that was renamed, commented and liked, under correlation ids of their own.

    Nothing is recorded of it any more, and the index knows it.
    """
    ann = server.client("ann")
    video = upload(ann)
    named = {"X-Request-Id": "audit-rename"}
    read(ann.patch(f"/videos/{video}", json={"title": "Sun"}, headers=named))
    said = {"X-Request-Id": "audit-comment"}
    path = f"/videos/{video}/comments"
    comment = read(ann.post(path, json={"content": "¡Qué bonito!"}, headers=said))
    read(ann.put(f"/videos/{video}/like"))
    # Its language is recorded meanwhile, in the same conversation.
    eventually(lambda: read(ann.get(path))["items"][0]["translationStatus"] != "pending")
    eventually(partial(caught_up, server.client("olga", admin=True)))
    return {"video": video, "comment": str(comment["commentId"])}


def caught_up(admin: httpx.Client) -> bool:
    """Whether all that is recorded is in the index."""
    counted = admin.get("/audit/stats").json()
    return bool(counted["indexed"] == counted["head"])


@pytest.fixture(scope="module")
def admin(server: Program) -> httpx.Client:
    return server.client("olga", admin=True)


def shown(server: Program, *arguments: str) -> Any:
    """What `backlot events … --json` prints."""
    ended = server.run("events", *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_terminal_and_http_give_the_same_answers(
    server: Program, story: dict[str, str], admin: httpx.Client
) -> None:
    video, ann = story["video"], server.person("ann")
    (renamed,) = shown(server, "list", "--correlation", "audit-rename")["items"]
    position = renamed["position"]
    assert renamed["topic"] == "upload.details_changed.v1"
    assert renamed["payload"]["title"] == "Sun"
    for arguments, path in (
        (["list", "--stream", video, "--order", "asc"],
         f"/audit/events?stream={video}&order=asc"),
        (["list", "--actor", "ann", "--limit", "2"], "/audit/events?actor=ann&limit=2"),
        (["list", "--actor", ann, "--limit", "2", "--payload", "masked"],
         f"/audit/events?actor={ann}&limit=2&payload=masked"),
        (["show", str(position)], f"/audit/events/{position}"),
        (["stream", video], f"/audit/streams/{video}"),
        (["stream", video, "--at-version", "2"], f"/audit/streams/{video}?atVersion=2"),
        (["trace", "audit-comment"], "/audit/trace/audit-comment"),
    ):  # fmt: skip
        answer = read(admin.get(path))
        assert shown(server, *arguments) == answer, arguments
        assert answer.get("items") != [], arguments
    state = shown(server, "state", video, "--at-version", "2")
    assert state == admin.get(f"/audit/streams/{video}?atVersion=2").json()["state"]
    assert state["fields"]["title"] != "Sun"
    counted = shown(server, "stats")
    assert {each["aggregate"] for each in counted["aggregates"]} >= {"upload", "comment"}


def test_a_token_for_auditors_reads_masked(server: Program, story: dict[str, str]) -> None:
    ended = server.run("token", "--user", "eve", "--auditor", "--json")
    minted = json.loads(ended.stdout)
    assert minted["roles"] == ["auditor"]
    headers = {"Authorization": f"Bearer {minted['token']}"}
    path = f"{server.url}/audit/streams/{story['comment']}"
    answer = plain.get(path, headers=headers)
    assert answer.status_code == 200
    assert "bonito" not in answer.text
    assert plain.get(f"{path}?payload=full", headers=headers).status_code == 403
    assert plain.get(f"{server.url}/projections", headers=headers).status_code == 403


def test_people_read_lines(server: Program, story: dict[str, str]) -> None:
    for arguments in (
        ["list", "--stream", story["comment"]],
        ["stream", story["video"]],
        ["state", story["comment"]],
        ["trace", "audit-comment"],
        ["stats"],
    ):
        ended = server.run("events", *arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert max(map(len, ended.stdout.splitlines())) <= 100


def test_what_is_not_there_is_one_line(server: Program) -> None:
    for code, arguments, why in (
        (4, ["show", "99999999"], "There is no event at position 99999999."),
        (4, ["trace", "unheard-of"], "No event has that correlation id."),
        (2, ["list", "--cursor", "x"], "`cursor` is not one of this list"),
    ):
        ended = server.run("events", *arguments)
        assert ended.returncode == code
        assert ended.stdout == ""
        assert ended.stderr.startswith(f"backlot: {why}")
        assert ended.stderr.count("\n") == 1


def test_all_pages_come_as_lines(server: Program, story: dict[str, str]) -> None:
    ended = server.run("events", "list", "--all", "--order", "asc", "--json")
    positions = [json.loads(line)["position"] for line in ended.stdout.split("\n")[:-1]]
    assert positions == list(range(1, len(positions) + 1))
    assert len(positions) >= 5


@contextmanager
def following(server: Program, *, ignored: bool = False) -> Iterator[subprocess.Popen[str]]:
    """`events tail -f`; `ignored`: started as a shell starts what is behind `&`."""
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    earlier = signal.signal(signal.SIGINT, handler)
    try:
        tail = subprocess.Popen(
            [sys.executable, "-m", "backlot", "events", "tail", "-n", "1", "-f", "--json"],
            cwd=server.home,
            env=server.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, earlier)
    with tail:
        try:
            yield tail
        finally:
            tail.kill()


def heard(tail: subprocess.Popen[str]) -> Any:
    """The next event that it prints."""
    assert tail.stdout is not None
    return json.loads(tail.stdout.readline())


@pytest.mark.parametrize("ignored", [False, True])
def test_tail_follows_until_ctrl_c(server: Program, story: dict[str, str], ignored: bool) -> None:
    with following(server, ignored=ignored) as tail:
        first = heard(tail)
        bob, seen = server.client(f"bob-{ignored}"), []
        for _ in range(3):
            read(bob.post(f"/videos/{story['video']}/like"))
            seen.append(heard(tail))
        assert [each["position"] for each in seen] == [first["position"] + n for n in (1, 2, 3)]
        assert {each["actor"] for each in seen} == {f"bob-{ignored}"}
        tail.send_signal(signal.SIGINT)
        out, err = tail.communicate(timeout=DEADLINE_SECONDS)
        assert (tail.returncode, out, err) == (0, "", "")


@pytest.mark.chaos
def test_tail_ends_whenever_ctrl_c_comes(server: Program, story: dict[str, str]) -> None:
    """In the midst of a wait, of a query, of an event that is just printed."""
    chance, path = random.Random(17), f"/videos/{story['video']}/like"
    bob = server.client("bob")
    with following(server) as first, following(server) as second, following(server) as third:
        tails = [first, second, third]
        for tail in tails:
            heard(tail)
        for tail in tails:
            read(bob.post(path))
            time.sleep(chance.uniform(0, 0.005))
            tail.send_signal(signal.SIGINT)
        for tail in tails:
            out, err = tail.communicate(timeout=DEADLINE_SECONDS)
            assert (tail.returncode, err) == (0, "")
            assert all(json.loads(line) for line in out.split("\n")[:-1])


def test_the_index_catches_up(server: Program, story: dict[str, str], admin: httpx.Client) -> None:
    eventually(partial(caught_up, admin))
    minted = mint_token(secret_path(server.data).read_text().strip(), "olga", ["admin"])
    listed = plain.get(f"{server.url}/projections", headers={"Authorization": f"Bearer {minted}"})
    assert "audit" in {each["name"] for each in listed.json()["items"]}
