"""What users report of their recommendations, and what operators see of it; over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.http.shapes import latest_position
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, upload
from tests.support import eventually, unused_port

SOON = {"ANALYTICS_FLUSH_SECONDS": "0.2", "RECOMMENDATIONS_INVALIDATE_SECONDS": "0.2"}
FIGURES = "/analytics/recommendations"


@pytest.fixture(scope="module")
def server(short_dir: Any) -> Iterator[Program]:
    program = Program(short_dir / "feedback", unused_port(), {**SOON, "ANONYMOUS_VIEWERS": "true"})
    try:
        program.start()
        owner = program.client("owner")
        for _ in range(4):
            upload(owner)
        yield program
        assert program.stop() == 0
    finally:
        program.clean_up()


@pytest.fixture
def user(server: Program) -> httpx.Client:
    """Somebody new, to whom all videos are recommended."""
    client = server.client(f"user-{uuid4().hex[:8]}")
    await_videos(client, 4)
    return client


def await_videos(client: httpx.Client, number: int) -> None:
    eventually(lambda: len(given(client)["items"]) == number)


def given(client: httpx.Client, **params: Any) -> dict[str, Any]:
    return read(client.get("/recommendations", params=params))


def ids(body: dict[str, Any]) -> list[str]:
    return [item["video"]["videoId"] for item in body["items"]]


def report(client: httpx.Client, list_id: str, what: str, **body: Any) -> httpx.Response:
    return client.post(f"/recommendations/{list_id}/{what}", json=body)


def counted(server: Program) -> tuple[int, int]:
    total = read(server.client("root", admin=True).get(FIGURES))["total"]
    return total["shown"], total["chosen"]


def settled(server: Program, before: tuple[int, int], shown: int, chosen: int) -> None:
    """Fail unless so many more are counted in the end, and no others."""
    # What is reported last comes in last.
    last = server.client(f"last-{uuid4().hex[:8]}")
    body = given(last)
    assert report(last, body["listId"], "shown", videoIds=ids(body)[:1]).status_code == 202
    wanted = before[0] + shown + 1, before[1] + chosen
    eventually(lambda: sum(counted(server)) >= sum(wanted))
    assert counted(server) == wanted


def test_what_is_shown_and_chosen_is_counted_once(server: Program, user: httpx.Client) -> None:
    before = counted(server)
    body = given(user)
    first, second, *_ = ids(body)
    assert all(item["source"] for item in body["items"])
    for _ in range(2):
        answer = report(user, body["listId"], "shown", videoIds=[first, second, first])
        assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
        assert report(user, body["listId"], "chosen", videoId=first).status_code == 202
    # Asked again within the hour, they are the same ones.
    again = given(user, limit=3)
    assert report(user, again["listId"], "shown", videoIds=ids(again)[:2]).status_code == 202
    settled(server, before, shown=2, chosen=1)


def test_a_list_that_nobody_saw_counts_nothing(server: Program, user: httpx.Client) -> None:
    before = counted(server)
    read(user.get("/videos/recommendations"))
    given(user)
    settled(server, before, shown=0, chosen=0)


def test_who_chooses_by_watching_says_from_which_list(server: Program, user: httpx.Client) -> None:
    before = counted(server)
    body = read(user.get("/videos/recommendations"))
    video = ids(body)[1]
    watched = read(user.post(f"/videos/{video}/watch", json={"listId": body["listId"]}))
    assert watched["url"]
    settled(server, before, shown=1, chosen=1)


def test_watching_without_a_list_is_as_it_was(server: Program, user: httpx.Client) -> None:
    before = counted(server)
    video = ids(given(user))[0]
    assert read(user.post(f"/videos/{video}/watch"))["url"]
    assert read(user.post(f"/videos/{video}/watch", json={}))["url"]
    settled(server, before, shown=0, chosen=0)


def test_a_list_of_somebody_else_is_unknown(server: Program, user: httpx.Client) -> None:
    before = counted(server)
    body = given(user)
    video, stranger = ids(body)[0], server.client("stranger")
    for list_id in (body["listId"], "no-list", body["listId"][:-4], "%C3%A9"):
        who = stranger if list_id == body["listId"] else user
        problem(report(who, list_id, "shown", videoIds=[video]), 404, "not-found")
        problem(report(who, list_id, "chosen", videoId=video), 404, "not-found")
    named = {"listId": body["listId"]}
    problem(stranger.post(f"/videos/{video}/watch", json=named), 422, "invalid")
    problem(server.client().post(f"/videos/{video}/watch", json=named), 422, "invalid")
    problem(report(server.client(), body["listId"], "chosen", videoId=video), 401)
    settled(server, before, shown=0, chosen=0)


def test_what_is_not_in_the_list_is_named(server: Program, user: httpx.Client) -> None:
    before = counted(server)
    list_id, other = given(user)["listId"], str(uuid4())
    told = problem(report(user, list_id, "shown", videoIds=[other]), 422, "invalid")
    assert other in told["detail"]
    problem(report(user, list_id, "chosen", videoId=other), 422, "invalid")
    problem(report(user, list_id, "shown", videoIds=[]), 422, "invalid")
    settled(server, before, shown=0, chosen=0)


def test_an_admin_who_looks_is_no_impression(server: Program, user: httpx.Client) -> None:
    mine = given(user)
    admin = server.client("root", admin=True)
    name = user.headers["Authorization"]
    assert name
    theirs = given(admin, userId="owner")
    assert "listId" in mine
    assert "listId" not in theirs


def test_figures_are_for_operators(server: Program, user: httpx.Client) -> None:
    problem(server.client().get(FIGURES, headers={"Backlot-Min-Position": "?"}), 401)
    problem(user.get(FIGURES), 403, "forbidden")
    admin = server.client("root", admin=True)
    problem(admin.get(FIGURES, params={"timeRange": "1y"}), 422, "invalid")
    for window in ("24h", "7d", "30d", "all"):
        assert read(admin.get(FIGURES, params={"timeRange": window}))["timeRange"] == window


def test_they_tell_rates_by_source_and_variant(server: Program, user: httpx.Client) -> None:
    before = counted(server)
    body = given(user)
    report(user, body["listId"], "shown", videoIds=ids(body))
    report(user, body["listId"], "chosen", videoId=ids(body)[0])
    settled(server, before, shown=4, chosen=1)
    admin = server.client("root", admin=True)
    told = read(admin.get(FIGURES))
    total = told["total"]
    assert 0 < total["low"] < total["rate"] < total["high"] < 1
    for name in ("bySource", "byVariant", "items"):
        assert sum(each["shown"] for each in told[name]) == total["shown"]
        assert sum(each["chosen"] for each in told[name]) == total["chosen"]
    assert [each["variant"] for each in told["items"]] == ["default"] * len(told["items"])
    assert told["experiments"] == []
    metrics = server.client().get("/metrics").text
    assert 'backlot_recommendations_shown_total{source="' in metrics


def test_they_include_what_a_position_names_of_commands_and_of_reports(
    server: Program, user: httpx.Client
) -> None:
    before, body = counted(server), given(user)
    first, *_ = ids(body)
    told = [
        report(user, body["listId"], "shown", videoIds=[first]),
        report(user, body["listId"], "chosen", videoId=first),
        # Figures have nothing to take in of the log.
        user.put(f"/videos/{first}/like"),
    ]
    wanted = ",".join(answer.headers["Backlot-Position"] for answer in told)
    headers = {"Backlot-Min-Position": wanted, "Backlot-Timeout-Ms": "30000"}
    answer = server.client("root", admin=True).get(FIGURES, headers=headers)
    total = read(answer)["total"]
    assert (total["shown"], total["chosen"]) == (before[0] + 1, before[1] + 1)
    reached = latest_position(answer.headers["Backlot-Position"])
    assert reached.covers(latest_position(wanted))


def test_who_is_not_interested_is_asked_no_more(server: Program, user: httpx.Client) -> None:
    first, second, *rest = ids(given(user))
    path = f"/videos/{first}/not-interested"
    for _ in range(2):
        assert read(user.put(path)) == {"videoId": first, "notInterested": True}
    assert ids(given(user)) == [second, *rest]
    answer = user.post("/recommendations/not-interested", json={"videoId": second})
    assert (answer.status_code, answer.json()["notInterested"]) == (202, True)
    assert ids(given(user)) == rest
    assert ids(read(user.get("/videos/recommendations"))) == rest
    for _ in range(2):
        assert read(user.delete(path)) == {"videoId": first, "notInterested": False}
    # That it is back is told by a read model, which may be behind the command.
    eventually(lambda: sorted(ids(given(user))) == sorted([first, *rest]))
    other = server.client(f"other-{uuid4().hex[:8]}")
    assert len(given(other)["items"]) == 4
    problem(server.client().put(path), 401)
    problem(user.put(f"/videos/{uuid4()}/not-interested"), 404, "not-found")
    admin = server.client("root", admin=True)

    def topics() -> list[str]:
        found = read(admin.get("/audit/events", params={"type": "dismissals", "limit": 100}))
        return sorted(event["topic"] for event in found["items"])

    wanted = [*["dismissals.dismissed.v1"] * 2, "dismissals.taken_back.v1"]
    eventually(lambda: topics() == wanted)


def test_users_choices_compare_two_settings(make_program: Callable[..., Program]) -> None:
    program = make_program(RECOMMENDATIONS_VARIANT_B="neighbour=0.5", **SOON).start()
    owner = program.client("owner")
    for _ in range(4):
        upload(owner)
    # Ann goes for what is new by A, bob by B, cat for one of each.
    for name, teams in {"ann": "a", "bob": "b", "cat": "ab"}.items():
        client = program.client(name)
        await_videos(client, 4)
        body = given(client)
        by_team = {item["variant"]: item["video"]["videoId"] for item in body["items"]}
        for team in teams:
            answer = report(client, body["listId"], "chosen", videoId=by_team[team])
            assert answer.status_code == 202
    admin = program.client("root", admin=True)

    def experiments() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = read(admin.get(FIGURES))["experiments"]
        return found

    eventually(lambda: sum(each["ties"] for each in experiments()) == 1)
    (found,) = experiments()
    assert (found["wins"], found["losses"], found["pValue"], found["current"]) == (1, 1, 1.0, True)
    variants = read(admin.get(FIGURES))["byVariant"]
    chosen = {each["variant"]: each["chosen"] for each in variants}
    assert chosen == {"default": 0, "a": 2, "b": 2}
    assert program.stop() == 0


def test_a_restart_forgets_no_list_and_counts_nothing_again(
    make_program: Callable[..., Program],
) -> None:
    program = make_program(**SOON).start()
    upload(program.client("owner"))
    ann = program.client("ann")
    eventually(lambda: len(given(ann)["items"]) == 1)
    body = given(ann)
    report(ann, body["listId"], "chosen", videoId=ids(body)[0])
    program.kill()
    program.start()
    ann = program.client("ann")
    assert report(ann, body["listId"], "chosen", videoId=ids(body)[0]).status_code == 202
    eventually(lambda: counted(program) == (1, 1))
    assert program.stop() == 0
