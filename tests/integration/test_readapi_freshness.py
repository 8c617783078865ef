"""`Backlot-Min-Position`: each query waits for exactly what it reads, and never for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import psycopg
import pytest

from engine.checkpoints import pause, resume
from infra.http.shapes import Position, decode_position, encode_position
from tests.integration.event_log import rows
from tests.integration.readapi_support import Site, serving
from tests.support import eventually


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with serving(database_url, tmp_path) as site:
        yield site


def paused(site: Site, schema: str) -> None:
    with psycopg.connect(site.database_url, autocommit=True) as operator:
        pause(operator, schema)


def resumed(site: Site, schema: str) -> None:
    with psycopg.connect(site.database_url, autocommit=True) as operator:
        resume(operator, schema)


def test_what_was_told_is_seen(site: Site) -> None:
    video = site.writer.video()
    for n in range(10):
        site.writer.like(video.id, f"viewer-{n}")
        assert site.get(f"/videos/{video.id}/like").json()["likesCount"] == n + 1


def test_a_query_waits_for_what_it_reads_and_for_nothing_else(site: Site) -> None:
    video = site.writer.video()
    assert site.get(f"/videos/{video.id}").status_code == 200
    paused(site, "comments")
    site.writer.comment(video.id)
    briefly = {"Backlot-Timeout-Ms": "200"}
    for path in (f"/videos/{video.id}/like", f"/uploads/{video.id}"):
        assert site.get(path, "alice", headers=briefly).status_code == 200
    for path in (f"/videos/{video.id}", f"/videos/{video.id}/comments", "/videos"):
        assert site.get(path, "alice", headers=briefly).status_code == 503
    assert site.get(f"/videos/{video.id}", fresh=False).json()["comments"] == 0


def test_behind_is_told_with_positions(site: Site) -> None:
    video = site.writer.video()
    assert site.get(f"/videos/{video.id}").status_code == 200
    paused(site, "likes")
    here = site.writer.head
    site.writer.like(video.id, "bob")
    # Else the like would be added to what is in memory.
    site.forget()
    started = time.perf_counter()
    answer = site.get(f"/videos/{video.id}/like", headers={"Backlot-Timeout-Ms": "300"})
    assert time.perf_counter() - started >= 0.3
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    body = answer.json()
    assert body["type"] == "read-model-behind"
    assert decode_position(body["wanted"]).events == here + 1
    # Of what the answer lacks, and of nothing else.
    positions = {name: decode_position(at) for name, at in body["positions"].items()}
    assert positions.pop("likes") == Position(here)
    assert all(at.events >= here for at in positions.values())


def test_an_answer_comes_as_soon_as_it_can(site: Site) -> None:
    video = site.writer.video()
    assert site.get(f"/videos/{video.id}").status_code == 200
    paused(site, "likes")
    site.writer.like(video.id, "bob")
    # Else the like would be added to what is in memory.
    site.forget()
    later = Timer(0.4, resumed, (site, "likes"))
    later.start()
    started = time.perf_counter()
    answer = site.get(f"/videos/{video.id}/like", headers={"Backlot-Timeout-Ms": "20000"})
    assert 0.35 < time.perf_counter() - started < 20
    assert answer.json()["likesCount"] == 1
    later.join()


def test_a_token_from_the_future(site: Site) -> None:
    headers = {"Backlot-Min-Position": encode_position(10**17), "Backlot-Timeout-Ms": "100"}
    assert site.get("/videos", headers=headers).status_code == 503
    # What is read in the log itself waits for no read model.
    answer = site.get("/audit/events", "olga", admin=True, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (503, "read-model-behind")
    assert list(answer.json()["positions"]) == ["log"]


def test_several_tokens_ask_for_all_that_they_include(site: Site) -> None:
    """Whoever writes side by side need not know which answer came last in the log."""
    video = site.writer.video()
    liked = site.writer.like(video.id, "ann")
    site.writer.comment(video.id)
    tokens = [encode_position(at) for at in (site.writer.head, liked)]
    for said in (tokens, tokens[::-1], [*tokens, encode_position(1, 7)]):
        for between in (",", ", ", " , "):
            answer = site.get(
                f"/videos/{video.id}", headers={"Backlot-Min-Position": between.join(said)}
            )
            assert (answer.json()["likes"], answer.json()["comments"]) == (1, 1)
    paused(site, "comments")
    site.writer.comment(video.id)
    site.forget()
    late = [*tokens, encode_position(site.writer.head)]
    for said in (late, late[::-1]):
        headers = {"Backlot-Min-Position": ",".join(said), "Backlot-Timeout-Ms": "200"}
        assert site.get(f"/videos/{video.id}", headers=headers).status_code == 503
    for broken in (",", f"{tokens[0]},", f"{tokens[0]},rubbish", ",".join(tokens * 99)):
        answer = site.get("/videos", headers={"Backlot-Min-Position": broken})
        assert answer.status_code == 422, broken


def test_answers_tell_how_far_they_are_and_never_less_than_before(site: Site) -> None:
    video = site.writer.video()
    told = [0]
    for number in range(5):
        at = site.writer.like(video.id, f"viewer-{number}")
        for path in ("/videos", f"/videos/{video.id}", f"/videos/{video.id}/like"):
            answer = site.get(path, fresh=False)
            told.append(decode_position(answer.headers["Backlot-Position"]).events)
            assert told[-1] >= at
    assert told == sorted(told)


def test_a_ranking_tells_how_far_it_is_itself(site: Site) -> None:
    site.writer.video()
    counted = site.writer.head
    made = site.get("/analytics/trending")
    assert decode_position(made.headers["Backlot-Position"]).events == counted
    site.writer.video()
    # It is told again, and does not pretend to know more than when it was made.
    again = site.get("/analytics/trending", fresh=False)
    assert again.json()["cached"] is True
    assert decode_position(again.headers["Backlot-Position"]).events == counted


@pytest.mark.parametrize("timeout", ["0", "1000000000000"])
def test_any_timeout_is_fine_when_nothing_is_missing(site: Site, timeout: str) -> None:
    site.writer.video()
    eventually(lambda: site.get("/videos").status_code == 200)
    assert site.get("/videos", headers={"Backlot-Timeout-Ms": timeout}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Backlot-Min-Position": "rubbish"},
        {"Backlot-Min-Position": ""},
        {"Backlot-Min-Position": "x" * 201},
        {"Backlot-Min-Position": encode_position(1), "Backlot-Timeout-Ms": "soon"},
        {"Backlot-Min-Position": encode_position(1), "Backlot-Timeout-Ms": "-1"},
    ],
)
def test_a_token_that_is_none(site: Site, headers: dict[str, str]) -> None:
    answer = site.get("/videos", headers=headers)
    assert answer.status_code == 422, answer.text


def test_lost_connections_are_replaced_unseen(site: Site) -> None:
    video = site.writer.video()
    assert site.get(f"/videos/{video.id}").status_code == 200
    for _ in range(3):
        rows(
            site.database_url,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'backlot queries' AND datname = current_database()",
        )
        for _ in range(5):
            assert site.get(f"/videos/{video.id}").status_code == 200


def test_a_database_that_is_away(site: Site) -> None:
    site.run(site.queries.pool.close())
    for headers in ({}, {"Backlot-Min-Position": encode_position(1)}):
        answer = site.get("/videos", headers=headers, fresh=False)
        assert (answer.status_code, answer.json()["type"]) == (503, "read-model-unavailable")
        assert answer.headers["retry-after"] == "1"
