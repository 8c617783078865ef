"""What tasks may rely on, whichever broker carries them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakeredis import FakeRedis

from infra import metrics
from infra.logging import CORRELATION_ID
from infra.redis import embedded_server
from infra.settings.adapters import TaskSettings
from infra.tasks.broker import task_queues
from infra.tasks.middleware import Resources
from infra.tasks.queues import (
    TRANSLATION,
    BrokerAway,
    FailedTask,
    Postponed,
    ResourcesUnavailable,
    TaskOrigin,
    TaskQueues,
    current_origin,
    every,
    like,
    named,
)
from tests.integration.rabbitmq_server import rabbitmq_server
from tests.integration.redis_servers import redis_servers
from tests.integration.task_support import Toy, quick_settings
from tests.support import eventually


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def rabbit_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.fixture(params=["embedded", "redis", "rabbitmq"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    if request.param == "embedded":
        FakeRedis(server=embedded_server()).flushall()
        yield None
    elif request.param == "redis":
        with redis_servers(1, tmp_path) as (server,):
            yield server.url
    else:
        found = request.getfixturevalue("rabbit_url")
        _empty(found)
        yield found


def _empty(url: str) -> None:
    toy = Toy(quick_settings(url))
    toy.broker.declare_queue(TRANSLATION)
    toy.broker.flush(TRANSLATION)
    toy.broker.close()


@pytest.fixture
def settings(url: str | None) -> TaskSettings:
    return quick_settings(url)


@pytest.fixture
def queues(settings: TaskSettings) -> TaskQueues:
    return task_queues(settings)


def count(name: str, outcome: str) -> float:
    return metrics.value("backlot_tasks_total", actor=name, outcome=outcome)


def state(queues: TaskQueues) -> dict[str, int]:
    return next(each.by_state() for each in queues.depths() if each.queue == TRANSLATION)


def test_a_task_knows_its_arguments_and_where_it_comes_from(settings: TaskSettings) -> None:
    seen: list[tuple[object, ...]] = []

    async def tell(*args: object) -> None:
        seen.append((args, current_origin(), CORRELATION_ID.get()))

    toy, before = Toy(settings), count("tell", "done")
    toy.actor(tell)
    toy.send("tell", "c1", 2)
    with toy.working():
        eventually(lambda: count("tell", "done") > before)
    assert seen == [(("c1", 2), TaskOrigin("req-1", "event-1"), "req-1")]
    assert current_origin() == TaskOrigin(None, None)
    assert metrics.value("backlot_tasks_running", actor="tell") == 0
    assert metrics.value("backlot_task_seconds_count", actor="tell") >= 1


def test_a_failure_is_tried_again_after_a_pause_that_grows_to_a_cap(settings: TaskSettings) -> None:
    at: list[float] = []

    async def recover() -> None:
        at.append(time.monotonic())
        if len(at) < 3:
            raise ValueError("not yet")

    toy, done, retried = Toy(settings), count("recover", "done"), count("recover", "retried")
    toy.actor(recover)
    with toy.working():
        toy.send("recover")
        eventually(lambda: count("recover", "done") > done)
    assert count("recover", "retried") - retried == 2
    first, second = at[1] - at[0], at[2] - at[1]
    assert first >= 0.2
    assert second >= 0.25, "the second pause is 0.4 to 0.8, or half to all of the cap of 0.5"
    assert second < 0.5 + 2.0, "and a poll of the delayed"
    assert toy.dead == []


def test_after_the_last_attempt_the_program_is_told_once_and_the_letter_kept(
    settings: TaskSettings, queues: TaskQueues
) -> None:
    tries: list[str] = []

    async def fail(comment: str) -> None:
        tries.append(comment)
        if len(tries) <= 3:
            raise ValueError(f"no\n good: {len(tries)}")

    toy = Toy(settings)
    toy.actor(fail)
    with toy.working():
        sent = toy.send("fail", "c1")
        eventually(lambda: state(queues)["dead"] == 1)
        (letter,) = queues.dead(TRANSLATION, 10)
        assert toy.dead == [letter]
        assert letter.failed_at is not None
        assert letter == FailedTask(
            sent, TRANSLATION, "fail", ("c1",), 3, "ValueError: no good: 3", letter.failed_at,
            "req-1", "event-1",
        )  # fmt: skip
        assert queues.redrive(TRANSLATION, named("another")) == []
        assert queues.redrive(TRANSLATION, named(sent)) == [sent]
        eventually(lambda: len(tries) == 4)
        eventually(lambda: state(queues)["waiting"] == 0)
    assert state(queues) | {"taken": 0} == {"waiting": 0, "taken": 0, "delayed": 0, "dead": 0}
    assert len(toy.dead) == 1


def test_dead_letters_like_one_are_handled_together(
    settings: TaskSettings, queues: TaskQueues
) -> None:
    async def fail(comment: str) -> None:
        raise ValueError("odd" if comment == "odd" else f"no good: {len(comment)}")

    async def other(comment: str) -> None:
        raise ValueError("no good: 1")

    toy = Toy(settings)
    toy.actor(fail)
    toy.actor(other)
    first, second = toy.send("fail", "a"), toy.send("fail", "bb")
    odd, another = toy.send("fail", "odd"), toy.send("other", "a")
    with toy.working():
        eventually(lambda: state(queues)["dead"] == 4)
    letters = {letter.id: letter for letter in queues.dead(TRANSLATION, 10)}
    assert queues.discard(TRANSLATION, named("another")) == []
    assert {task.id for task in queues.discard(TRANSLATION, like(letters[first]))} == {
        first,
        second,
    }
    assert {letter.id for letter in queues.dead(TRANSLATION, 10)} == {odd, another}
    assert queues.redrive(TRANSLATION, like(letters[odd])) == [odd]
    assert [task.id for task in queues.discard(TRANSLATION, every)] == [another]
    assert state(queues)["dead"] == 0


def test_a_task_that_can_not_be_recorded_as_dead_is_tried_again(
    settings: TaskSettings, queues: TaskQueues
) -> None:
    told: list[FailedTask] = []

    async def record(failed: FailedTask) -> None:
        told.append(failed)
        if len(told) == 1:
            raise ConnectionError("the database is away")

    async def hopeless() -> None:
        raise ValueError

    toy = Toy(settings, on_dead=record)
    toy.actor(hopeless, throws=ValueError)
    failures = metrics.value("backlot_task_dead_hook_failures_total", actor="hopeless")
    with toy.working():
        toy.send("hopeless")
        eventually(lambda: state(queues)["dead"] == 1)
    assert [each.attempts for each in told] == [1, 2]
    now = metrics.value("backlot_task_dead_hook_failures_total", actor="hopeless")
    assert now - failures == 1


def test_a_postponed_task_keeps_its_attempts(settings: TaskSettings) -> None:
    calls: list[None] = []

    async def wait_for_llm() -> None:
        calls.append(None)
        if len(calls) <= 4:
            raise Postponed("the breaker is open", 0.05)

    toy, before = Toy(settings), count("wait_for_llm", "done")
    toy.actor(wait_for_llm)
    with toy.working():
        toy.send("wait_for_llm")
        eventually(lambda: count("wait_for_llm", "done") > before)
    assert len(calls) == 5
    assert toy.dead == []


def test_a_task_over_its_time_is_cancelled_and_counts_as_failed(settings: TaskSettings) -> None:
    cleaned: list[None] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(None)

    toy = Toy(settings)
    toy.actor(hang, time_limit=300, max_retries=0)
    with toy.working():
        toy.send("hang")
        eventually(lambda: toy.dead)
    assert cleaned == [None]
    assert [each.error for each in toy.dead] == ["TimeLimitExceeded"]


def test_stopping_lets_running_tasks_end_and_leaves_the_rest(
    settings: TaskSettings, queues: TaskQueues
) -> None:
    started: list[int] = []
    ended: list[int] = []

    async def slow(number: int) -> None:
        started.append(number)
        await asyncio.sleep(1.5)
        ended.append(number)

    toy = Toy(settings)
    toy.actor(slow)
    for number in range(6):
        toy.send("slow", number)
    with toy.working():
        eventually(lambda: len(started) == 2)
    assert sorted(ended) == sorted(started) == [0, 1]
    eventually(lambda: state(queues)["waiting"] == 4)
    assert state(queues).get("taken", 0) == 0


@pytest.mark.parametrize("cleaning", [0.0, 1.5])
def test_what_outlasts_the_grace_is_given_back_with_its_attempts(
    url: str | None, queues: TaskQueues, cleaning: float
) -> None:
    calls: list[None] = []

    async def stubborn() -> None:
        calls.append(None)
        if len(calls) == 1:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(cleaning)

    settings = quick_settings(url, TASK_STOP_SECONDS="0.3", TASK_MAX_RETRIES="0")
    first, second = Toy(settings), Toy(settings)
    returned, done = count("stubborn", "returned"), count("stubborn", "done")
    for toy in (first, second):
        toy.actor(stubborn)
    with first.working():
        first.send("stubborn")
        eventually(lambda: calls)
        asked = time.monotonic()
    assert time.monotonic() - asked < 60
    assert count("stubborn", "returned") - returned == 1
    with second.working():
        eventually(lambda: count("stubborn", "done") > done)
    assert len(calls) == 2
    assert first.dead == second.dead == []


def test_a_message_for_no_actor_becomes_a_dead_letter(
    settings: TaskSettings, queues: TaskQueues
) -> None:
    sender, worker = Toy(settings), Toy(settings)

    async def gone() -> None: ...

    async def here() -> None: ...

    sender.actor(gone)
    worker.actor(here)
    sender.send("gone")
    sender.broker.close()
    with worker.working():
        eventually(lambda: state(queues)["dead"] == 1)
    (letter,) = queues.dead(TRANSLATION, 1)
    assert (letter.actor, letter.error) == ("gone", "no actor has this name")
    assert worker.dead == []


def test_what_can_not_be_read_becomes_a_dead_letter_and_stops_nobody() -> None:
    settings = quick_settings(None)
    client, queues = FakeRedis(server=embedded_server()), task_queues(settings)
    client.flushall()
    client.hset("backlot:translation.msgs", "x", "not a message")
    client.rpush("backlot:translation", "x")

    async def next_one() -> None: ...

    toy, before = Toy(settings), count("next_one", "done")
    toy.actor(next_one)
    toy.send("next_one")
    with toy.working():
        eventually(lambda: state(queues)["dead"] == 1)
        eventually(lambda: count("next_one", "done") > before)
    (letter,) = queues.dead(TRANSLATION, 1)
    assert letter.id == "x"
    assert letter.error.startswith("can't be read")
    assert queues.redrive(TRANSLATION, every) == []
    assert [task.id for task in queues.discard(TRANSLATION, named("x"))] == ["x"]
    assert state(queues)["dead"] == 0


def test_resources_are_opened_before_and_closed_after_the_tasks(settings: TaskSettings) -> None:
    story: list[str] = []

    @asynccontextmanager
    async def open_them() -> AsyncIterator[asyncio.AbstractEventLoop]:
        story.append("open")
        async with asyncio.timeout(60):
            yield asyncio.get_running_loop()
        story.append("close")

    resources = Resources(open_them)

    async def use() -> None:
        assert resources.get() is asyncio.get_running_loop()
        story.append("use")

    toy = Toy(settings, resources=resources)
    toy.actor(use)
    toy.send("use")
    with toy.working():
        eventually(lambda: "use" in story)
    assert story == ["open", "use", "close"]
    with pytest.raises(ResourcesUnavailable):
        resources.get()


def test_without_its_resources_a_worker_does_not_start(settings: TaskSettings) -> None:
    async def refuse() -> None:
        raise ConnectionError("the database is away")

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        await refuse()
        yield

    toy = Toy(settings, resources=Resources(broken))
    with pytest.raises(ResourcesUnavailable, match="the database is away"):
        toy.worker.start()
    toy.broker.close()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_sending_to_a_broker_that_is_away_says_so_soon(scheme: str, free_port: int) -> None:
    async def any_task() -> None: ...

    toy = Toy(quick_settings(f"{scheme}://127.0.0.1:{free_port}"))
    toy.actor(any_task)
    with pytest.raises(BrokerAway):
        toy.send("any_task")
    with pytest.raises(BrokerAway):
        task_queues(quick_settings(f"{scheme}://127.0.0.1:{free_port}")).depths()


@pytest.mark.anyio
async def test_tasks_may_run_on_a_loop_that_is_there_already() -> None:
    FakeRedis(server=embedded_server()).flushall()
    loops: list[asyncio.AbstractEventLoop] = []
    here = asyncio.get_running_loop()
    toy = Toy(quick_settings(None), loop=here)

    async def where() -> None:
        loops.append(asyncio.get_running_loop())

    toy.actor(where)
    await asyncio.to_thread(toy.worker.start)
    await asyncio.to_thread(toy.send, "where")
    await asyncio.to_thread(eventually, lambda: loops)
    await asyncio.to_thread(toy.worker.stop)
    assert loops == [here]
