"""Likes, comments, lists and stats: repeated safely, and read back."""

from __future__ import annotations

from uuid import UUID, uuid4

import httpx
import pytest
from backlot_client import Backlot, Problem, RetryPolicy
from backlot_client.generated.api.likes import toggle_like
from backlot_client.session import latest

from .conftest import MakeClient
from .faults import Faults


def posted(request: httpx.Request) -> bool:
    return request.method == "POST"


def test_what_a_client_did_is_in_what_it_reads(client: MakeClient, video_id: UUID) -> None:
    alice, bob = client("alice"), client("bob")
    assert bob.like(video_id).likes_count == 1
    comment = bob.comment(video_id, "Nice rain")
    assert bob.edit_comment(comment.comment_id, "Nicer rain").edited
    assert [each.content for each in bob.comments(video_id)] == ["Nicer rain"]
    # Those of others come some seconds later, unless their positions are known.
    alice.position = bob.position
    assert alice.stats(video_id).totals.likes == 1
    assert bob.unlike(video_id).likes_count == 0
    bob.delete_comment(comment.comment_id)
    assert list(bob.comments(video_id)) == []
    alice.position = bob.position
    assert alice.stats(video_id).totals.likes == 0


def test_queries_carry_the_position_of_the_commands_before_them(
    client: MakeClient, video_id: UUID, faults: Faults
) -> None:
    bob = client("bob", transport=faults)
    bob.video(video_id)
    bob.like(video_id)
    bob.video(video_id)
    first, second = faults.sent_to("GET", f"/videos/{video_id}")
    assert "Backlot-Min-Position" not in first.headers
    assert second.headers["Backlot-Min-Position"] == bob.position is not None


def test_a_comment_whose_answer_is_lost_is_posted_once(
    client: MakeClient, video_id: UUID, faults: Faults, slept: list[float]
) -> None:
    bob = client("bob", transport=faults)
    faults.lose_answer += [posted, posted]
    comment = bob.comment(video_id, "Once")
    first, second = slept
    assert 0.1 <= first <= 0.2 <= second <= 0.4
    assert [each.comment_id for each in bob.comments(video_id)] == [comment.comment_id]
    sent = faults.sent_to("POST", "/comments")
    assert len(sent) == 3
    assert len({each.headers["Idempotency-Key"] for each in sent}) == 1


def test_a_key_of_the_callers_outlives_its_process(client: MakeClient, video_id: UUID) -> None:
    key = str(uuid4())
    ids = {
        client("bob").comment(video_id, "Once", idempotency_key=key).comment_id for _ in range(2)
    }
    assert len(ids) == 1
    with pytest.raises(Problem, match="another request") as caught:
        client("bob").comment(video_id, "Another", idempotency_key=key)
    assert (caught.value.status, caught.value.type) == (409, "idempotency-key-reused")
    assert caught.value.request_id


def test_generated_calls_are_repeated_safely_as_well(
    client: MakeClient, video_id: UUID, faults: Faults
) -> None:
    bob = client("bob", transport=faults)
    faults.lose_answer.append(posted)
    toggle_like.sync(video_id, client=bob.api)
    # Done twice, it would be taken back.
    assert bob.video(video_id).has_liked is True
    with pytest.raises(Problem) as caught:
        toggle_like.sync(uuid4(), client=bob.api)
    assert caught.value.type == "not-found"


def test_nothing_is_sent_before_the_time_that_the_answer_names(
    client: MakeClient, video_id: UUID, faults: Faults, slept: list[float]
) -> None:
    bob = client("bob", transport=faults)
    faults.busy.append((lambda _: True, {"Retry-After": "7"}))
    assert bob.like(video_id).likes_count == 1
    assert [7 < pause < 8 for pause in slept] == [True]


def test_patience_ends(
    client: MakeClient, video_id: UUID, faults: Faults, slept: list[float]
) -> None:
    bob = client("bob", transport=faults)
    # Longer than any pause of its own: nobody waits for that.
    faults.busy.append((lambda _: True, {"Retry-After": "31"}))
    with pytest.raises(Problem) as caught:
        bob.like(video_id)
    # A proxy's page is no problem of Backlot.
    assert (caught.value.status, caught.value.type) == (503, "unknown")
    assert slept == []
    faults.lose_answer += [lambda _: True] * 6
    with pytest.raises(httpx.ReadError):
        bob.like(video_id)
    assert len(slept) == 5
    assert faults.lose_answer == []


def test_refusals_are_not_repeated(client: MakeClient, faults: Faults) -> None:
    with pytest.raises(Problem) as caught:
        client("bob", transport=faults).like(uuid4())
    assert (caught.value.status, caught.value.type) == (404, "not-found")
    assert len(faults.sent) == 1


def test_lists_are_read_page_by_page(client: MakeClient, video_id: UUID, faults: Faults) -> None:
    bob = client("bob", transport=faults)
    for number in range(5):
        bob.comment(video_id, f"Number {number}")
    bob.like(video_id)
    found = bob.comments(video_id, page_size=2)
    assert next(found).content == "Number 4"
    assert len(faults.sent_to("GET", "/comments")) == 1
    assert [each.content for each in found] == [f"Number {n}" for n in (3, 2, 1, 0)]
    assert len(faults.sent_to("GET", "/comments")) == 3
    assert next(bob.liked_videos(page_size=1)).video_id == video_id
    assert next(bob.videos(owner="alice", page_size=1)).video_id == video_id


def test_a_refused_token_is_renewed_once(
    client: MakeClient, video_id: UUID, tokens: dict[str, str], faults: Faults
) -> None:
    given = iter([tokens["expired"], tokens["bob"]])
    bob = client(token=lambda: next(given), transport=faults)
    assert bob.like(video_id).has_liked is True
    bob.comment(video_id, "With the new token")
    assert len(faults.sent) == 3
    # Where the new one is refused as well, or there is none, the call ends.
    asked: list[str] = []

    def expired() -> str:
        asked.append("token")
        return tokens["expired"]

    for token in (expired, tokens["expired"]):
        with pytest.raises(Problem) as caught:
            client(token=token).like(video_id)
        assert (caught.value.status, caught.value.type) == (401, "unauthenticated")
    assert len(asked) == 2


def test_nobody_in_particular_may_read(client: MakeClient, video_id: UUID) -> None:
    nobody = client(None)
    assert nobody.video(video_id).title == "Rain"
    with pytest.raises(Problem) as caught:
        nobody.like(video_id)
    assert caught.value.status == 401


def test_nobody_answers(slept: list[float]) -> None:
    policy = RetryPolicy(repeats=2, sleep=slept.append)
    with Backlot("http://127.0.0.1:9", retries=policy) as client, pytest.raises(httpx.ConnectError):
        client.video(uuid4())
    assert len(slept) == 2


@pytest.mark.parametrize(
    ("known", "other", "both"),
    [
        (None, "YmFja2xvdDo3", "YmFja2xvdDo3"),
        # backlot:7:3 and backlot:9 make backlot:9:3.
        ("YmFja2xvdDo3OjM", "YmFja2xvdDo5", "YmFja2xvdDo5OjM"),
        ("YmFja2xvdDo5", "YmFja2xvdDo3OjM", "YmFja2xvdDo5OjM"),
        # other:1 is of another store, and so is what can't be read.
        ("YmFja2xvdDo5", "b3RoZXI6MQ", "b3RoZXI6MQ"),
        ("YmFja2xvdDo5", "?", "?"),
    ],
)
def test_positions_are_joined(known: str | None, other: str, both: str) -> None:
    assert latest(known, other) == both
