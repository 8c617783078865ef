"""Finalizers of several processes against each other, against aborts, and without their locks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, takewhile
from pathlib import Path

import httpx
import psycopg
import pytest

from infra.postgres.server import EmbeddedPostgres
from tests.e2e.brink import Brink, ends, insist, is_later, lying_in_folder, on_the_brink
from tests.e2e.halted_program import STEPS
from tests.e2e.replicas import Site, paused_at, running_site
from tests.e2e.videos import MP4, problem, read
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.support import DEADLINE_SECONDS

RIVALS = 50
LOCK_SECONDS, WAIT_SECONDS = 1.0, 0.5
STANDING_STILL = STEPS[STEPS.index("after the lock") : STEPS.index("after the event")]
_numbers = count(1)


@pytest.fixture(scope="module")
def nodes(short_dir: Path) -> Iterator[list[RedisServer]]:
    with redis_servers(3, short_dir) as servers:
        yield servers


@pytest.fixture(scope="module")
def site(short_dir: Path, postgres: EmbeddedPostgres, nodes: list[RedisServer]) -> Iterator[Site]:
    """Three replicas on three lock nodes, with locks that soon expire."""
    variables = {
        "REDIS_URL": nodes[0].url,
        "REDLOCK_URLS": ",".join(node.url for node in nodes),
        "PART_SIZE_BYTES": "16384",
        "MAX_UPLOAD_BYTES": "16384000",
        "FINALIZE_LOCK_SECONDS": str(LOCK_SECONDS),
        "FINALIZE_WAIT_SECONDS": str(WAIT_SECONDS),
    }
    url = make_database(postgres)
    with running_site(short_dir / "site", 3, url, "tests.e2e.halted_program", variables) as site:
        yield site


def make_database(postgres: EmbeddedPostgres) -> str:
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE finalizing")
    return postgres.url_of("finalizing")


@pytest.fixture
def brink(site: Site) -> Brink:
    return on_the_brink(site.first)


@pytest.fixture
def slow(site: Site) -> Iterator[Callable[[float], None]]:
    """Makes the store take so many seconds for a completion."""
    yield lambda seconds: site.everywhere("slow", str(seconds))
    site.everywhere("slow", "")


def check_completed_once(site: Site, brink: Brink, answers: list[httpx.Response]) -> None:
    told = [answer.json() for answer in answers if not is_later(answer)]
    assert told, "nobody was told"
    assert told == [brink.complete_at_last()] * len(told)
    assert ends(site.first, brink.upload_id) == {"Completed": 1}
    assert lying_in_folder(site.first, brink.upload_id) == (1, 0)
    assert brink.played() == MP4


def completions(site: Site, brink: Brink, count: int, **headers: str) -> list[httpx.Response]:
    """The answers to so many completions at once.

    On a busy machine some are told to come again, as documented; and they do.
    """
    answers: list[httpx.Response] = []
    while (missing := count - len(answers)) > 0:
        told = site.at_once([("POST", f"{brink.path}/complete")] * missing, **headers)
        answers += [answer for answer in told if not is_later(answer)]
    return answers


@pytest.mark.parametrize("seconds", [0.0, pytest.param(0.2, marks=pytest.mark.chaos)])
def test_50_finalizers_over_3_processes_get_one_answer(
    site: Site, brink: Brink, slow: Callable[[float], None], seconds: float
) -> None:
    slow(seconds)
    answers = completions(site, brink, RIVALS)
    assert [answer.status_code for answer in answers] == [200] * RIVALS
    assert site.asked(brink.upload_id) == ["list", "complete"]
    check_completed_once(site, brink, answers)


def test_who_can_not_wait_longer_is_told_to_come_again(
    site: Site, brink: Brink, slow: Callable[[float], None]
) -> None:
    # Longer than a lock lasts, so it also shows that the lock is extended.
    slow(2.5 * LOCK_SECONDS)
    answers = site.at_once([("POST", f"{brink.path}/complete")] * RIVALS)
    refused = [answer for answer in answers if is_later(answer)]
    assert len(refused) == RIVALS - 1
    assert {answer.json()["type"] for answer in refused} == {"upload-finalizing"}
    assert site.asked(brink.upload_id) == ["list", "complete"]
    check_completed_once(site, brink, answers)


def test_an_idempotency_key_gives_everybody_the_stored_answer(site: Site, brink: Brink) -> None:
    key = f"finish-{next(_numbers)}"
    answers = completions(site, brink, 12, **{"Idempotency-Key": key})
    assert {(answer.status_code, answer.content) for answer in answers} == {
        (200, answers[0].content)
    }
    replayed = [answer.headers.get("Idempotency-Replayed") for answer in answers]
    assert replayed.count("true") == len(answers) - 1
    again = brink.complete(**{"Idempotency-Key": key})
    assert (again.content, again.headers["Idempotency-Replayed"]) == (answers[0].content, "true")
    check_completed_once(site, brink, answers)


def test_a_key_of_another_request_completes_nothing(site: Site, brink: Brink) -> None:
    other = on_the_brink(site.first)
    key = {"Idempotency-Key": f"finish-{next(_numbers)}"}
    read(other.complete(**key))
    problem(brink.complete(**key), 409, "idempotency-key-reused")
    assert ends(site.first, brink.upload_id) == {}
    assert lying_in_folder(site.first, brink.upload_id) == (0, 1)
    check_completed_once(site, brink, [brink.complete()])


@pytest.mark.parametrize("step", STANDING_STILL)
def test_a_finalizer_that_slept_past_its_lock_completes_nothing_again(
    site: Site, brink: Brink, step: str
) -> None:
    late = paused_at(step, site.replicas[1], brink.path)
    first = brink.complete_at_last()
    site.replicas[1].resume()
    assert read(late.answer()) == first
    check_completed_once(site, brink, [late.answer()])


def test_a_finalizer_whose_lock_has_expired_begins_nothing(site: Site, brink: Brink) -> None:
    late = paused_at("after the lock", site.replicas[1], brink.path)
    time.sleep(1.5 * LOCK_SECONDS)
    site.replicas[1].resume()
    problem(late.answer(), 409, "upload-finalizing")
    assert site.asked(brink.upload_id) == ["list"]
    check_completed_once(site, brink, [brink.complete()])


def test_who_gets_the_lock_after_the_end_asks_the_store_nothing(site: Site, brink: Brink) -> None:
    late = paused_at("before the lock", site.replicas[1], brink.path)
    first = brink.complete_at_last()
    site.replicas[1].resume()
    assert read(late.answer()) == first
    assert site.asked(brink.upload_id) == ["list", "complete"]


@pytest.mark.parametrize("step", STANDING_STILL)
def test_a_finalizer_that_slept_through_an_abort_leaves_nothing(
    site: Site, brink: Brink, step: str
) -> None:
    late = paused_at(step, site.replicas[1], brink.path)
    aborted = insist(lambda: brink.owner.delete(brink.path))
    assert read(aborted) == {"status": "aborted"}
    site.replicas[1].resume()
    assert problem(late.answer(), 409, "conflict")["uploadStatus"] == "aborted"
    assert ends(site.first, brink.upload_id) == {"Aborted": 1}
    assert lying_in_folder(site.first, brink.upload_id) == (0, 0)


@pytest.mark.parametrize("rounds", [6, pytest.param(40, marks=pytest.mark.chaos)])
def test_of_an_abort_and_a_completion_at_once_one_wins(site: Site, rounds: int) -> None:
    wins: set[bool] = set()
    for number in takewhile(lambda number: number < rounds or len(wins) < 2, range(1_000)):
        brink = on_the_brink(site.first)
        both = [("POST", f"{brink.path}/complete"), ("DELETE", brink.path)]
        asks = both[:: 1 if number % 2 else -1] * 2
        # On a busy machine, one may have been told to ask again.
        answers = [
            insist(partial(brink.owner.request, *ask)) if is_later(answer) else answer
            for ask, answer in zip(asks, site.at_once(asks), strict=True)
        ]
        ended = ends(site.first, brink.upload_id)
        assert sum(ended.values()) == 1
        completed = "Completed" in ended
        for (method, _), answer in zip(asks, answers, strict=True):
            if (method == "POST") == completed:
                assert answer.is_success, answer.text
            else:
                problem(answer, 409, "conflict")
        assert lying_in_folder(site.first, brink.upload_id) == (int(completed), 0)
        wins.add(completed)
    assert wins == {True, False}, "it depends on the machine who comes first, but not each time"


@pytest.mark.chaos
def test_lock_nodes_are_stopped_and_started_again_under_load(
    site: Site, nodes: list[RedisServer]
) -> None:
    first = on_the_brink(site.first)
    finished = read(first.complete())
    brinks = [first]
    refusals: list[httpx.Response] = []
    done, over = threading.Semaphore(0), threading.Event()

    def work() -> None:
        while not over.is_set():
            brinks.append(brink := on_the_brink(site.first))
            while is_later(answer := brink.complete()):
                refusals.append(answer)
                time.sleep(0.02)
            read(answer)
            done.release()

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for _ in range(10):
        assert done.acquire(timeout=DEADLINE_SECONDS)
    for node in nodes[1:]:
        node.stop()
    time.sleep(1.0)
    # What needs no lock goes on.
    assert read(first.complete()) == finished
    for node in nodes[1:]:
        node.start()
    for _ in range(10):
        assert done.acquire(timeout=DEADLINE_SECONDS)
    over.set()
    for worker in workers:
        worker.join(DEADLINE_SECONDS)
    assert {answer.json()["type"] for answer in refusals} == {"locks-unavailable"}
    assert all(ends(site.first, brink.upload_id) == {"Completed": 1} for brink in brinks)
    assert "request_broke" not in site.first.complained


def test_two_of_three_lock_nodes_are_enough_and_one_is_not(
    site: Site, nodes: list[RedisServer], brink: Brink
) -> None:
    nodes[1].stop()
    try:
        read(on_the_brink(site.first).complete())
        nodes[2].stop()
        problem(brink.complete(), 503, "locks-unavailable")
        problem(brink.owner.delete(brink.path), 503, "locks-unavailable")
        assert read(brink.owner.get(brink.path))["status"] == "started"
        assert "complete" not in site.asked(brink.upload_id)
        assert ends(site.first, brink.upload_id) == {}
    finally:
        nodes[1].start()
        nodes[2].start()
    check_completed_once(site, brink, [brink.complete()])
