"""Invariant 5 over HTTP: one viewer holds at most one like, and of many viewers none is lost."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.load import Request, together
from tests.e2e.program import Program
from tests.e2e.recorded import Recorded
from tests.e2e.videos import everything, read, see

STORMS = 200


def test_200_first_likes_of_one_viewer_at_once_are_one_like(
    server: Program, alice: httpx.Client, video: str
) -> None:
    likes = [Request("eager", "PUT", f"/videos/{video}/like") for _ in range(STORMS)]
    answers = together(server, likes, connections=STORMS)
    assert [read(answer) for answer in answers] == [{"hasLiked": True, "likesCount": 1}] * STORMS
    assert Recorded.of(server).likes(video) == {"eager": 1}
    see_last(alice, video)
    assert read(alice.get(f"/videos/{video}/like"))["likesCount"] == 1


def test_200_toggles_of_one_viewer_at_once_alternate(
    server: Program, alice: httpx.Client, video: str
) -> None:
    toggles = [Request("unsure", "POST", f"/videos/{video}/like") for _ in range(STORMS)]
    states = [read(answer) for answer in together(server, toggles, connections=STORMS)]
    assert sum(state["hasLiked"] for state in states) == STORMS / 2
    assert all(state["likesCount"] == state["hasLiked"] for state in states)
    recorded = Recorded.of(server)
    assert recorded.likes(video) == recorded.unlikes(video) == {"unsure": STORMS / 2}
    see_last(alice, video)
    assert read(alice.get(f"/videos/{video}/like"))["likesCount"] == 0


@pytest.mark.parametrize("fans", [STORMS, pytest.param(2000, marks=pytest.mark.chaos)])
def test_many_viewers_at_once_are_as_many_likes(
    server: Program, alice: httpx.Client, video: str, fans: int
) -> None:
    likes = [Request(f"fan-{number}", "POST", f"/videos/{video}/like") for number in range(fans)]
    answers = together(server, likes, connections=100)
    assert all(read(answer)["hasLiked"] for answer in answers)
    assert Recorded.of(server).likes(video) == {request.user: 1 for request in likes}
    see_last(alice, video)
    assert read(alice.get(f"/videos/{video}/like"))["likesCount"] == fans
    assert read(alice.get(f"/videos/{video}"))["likes"] == fans


def test_everybody_who_comments_at_once_is_heard(
    server: Program, alice: httpx.Client, video: str
) -> None:
    path = f"/videos/{video}/comments"
    comments = [
        Request(f"fan-{number}", "POST", path, {"content": f"I am number {number}"})
        for number in range(STORMS)
    ]
    together(server, comments, connections=STORMS)
    see_last(alice, video)
    heard = {item["userId"]: item["content"] for item in everything(alice, path)}
    assert heard == {request.user: request.body["content"] for request in comments if request.body}


def see_last(owner: httpx.Client, video: str) -> None:
    """Let the owner's reads include all that was acknowledged before."""
    see(owner, owner.patch(f"/videos/{video}", json={"description": "after the crowd"}))
