"""What every call keeps to: reads of one's own writes, one effect per key, a request id."""

from __future__ import annotations

import httpx

from tests.e2e.program import Program
from tests.e2e.videos import (
    everything,
    problem,
    read,
    see,
)


def test_a_query_sees_what_its_client_was_told(server: Program, video: str) -> None:
    reader = server.client()
    for number in range(30):
        fan = server.client(f"reader-{number}")
        see(reader, fan.put(f"/videos/{video}/like"))
        assert read(reader.get(f"/videos/{video}/like"))["likesCount"] == number + 1


def test_a_position_not_reached_in_time_is_told(alice: httpx.Client, video: str) -> None:
    future = "YmFja2xvdDo5OTk5OTk5OTk"
    headers = {"Backlot-Min-Position": future, "Backlot-Timeout-Ms": "200"}
    answer = alice.get(f"/videos/{video}", headers=headers)
    told = problem(answer, 503, "read-model-behind")
    assert int(answer.headers["Retry-After"]) > 0
    assert told["wanted"] == future


def test_the_same_key_gives_the_stored_answer(alice: httpx.Client, video: str) -> None:
    path, key = f"/videos/{video}/comments", {"Idempotency-Key": f"once-{video}"}
    first = alice.post(path, json={"content": "once"}, headers=key)
    again = alice.post(path, json={"content": "once"}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert first.headers["Backlot-Position"] == again.headers["Backlot-Position"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = alice.post(path, json={"content": "another"}, headers=key)
    problem(other, 409, "idempotency-key-reused")
    see(alice, first)
    assert [item["content"] for item in everything(alice, path)] == ["once"]


def test_a_key_belongs_to_its_user(alice: httpx.Client, bob: httpx.Client, video: str) -> None:
    path, key = f"/videos/{video}/like", {"Idempotency-Key": f"shared-{video}"}
    for client in (alice, bob):
        assert read(client.post(path, headers=key))["hasLiked"]
    assert read(alice.post(path, headers=key))["hasLiked"]


def test_a_request_id_is_taken_or_made(nobody: httpx.Client) -> None:
    taken = nobody.get("/videos", headers={"X-Request-Id": "my-own-id"})
    assert taken.headers["X-Request-Id"] == "my-own-id"
    made = [nobody.get("/videos").headers["X-Request-Id"] for _ in range(2)]
    assert len(set(made)) == 2
