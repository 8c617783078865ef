"""What of tasks needs no broker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from queue import Empty
from threading import Thread

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Shutdown
from fakeredis import FakeRedis

from infra.settings import load_settings
from infra.settings.adapters import TaskSettings
from infra.tasks.broker import TaskRedisBroker, WorkQueue, make_broker, shared_queues
from infra.tasks.middleware import Retries, was_interrupted
from infra.tasks.queues import (
    ERROR_CHARACTERS,
    TRANSLATION,
    Depth,
    ExtraMissing,
    NoSharedBroker,
    UnknownQueue,
    failed_task,
    in_one_line,
    read,
    revived,
)
from tests.support import DEADLINE_SECONDS, eventually

FAILED: Message[None] = Message(
    "translation",
    "translate_comment",
    ("c1", 2),
    {},
    {
        "retries": 6,
        "error": "ValueError: no",
        "failed_at": 1_700_000_000_000,
        "correlation_id": "req-1",
        "causation_id": "event-1",
        "redis_message_id": "r1",
        "eta": 5,
    },
    "m1",
    7,
)


def test_a_dead_letter_tells_what_failed_how_often_and_why() -> None:
    assert failed_task(FAILED).as_dict() == {
        "id": "m1",
        "queue": "translation",
        "actor": "translate_comment",
        "args": ["c1", 2],
        "attempts": 6,
        "error": "ValueError: no",
        "failedAt": "2023-11-14T22:13:20Z",
        "correlationId": "req-1",
        "causationId": "event-1",
    }


def test_a_letter_that_is_sent_again_begins_anew_and_keeps_its_origin() -> None:
    origin = {"correlation_id": "req-1", "causation_id": "event-1"}
    again = revived(FAILED)
    assert again.options == origin
    assert again.copy(options=FAILED.options) == FAILED


def test_an_unreadable_letter_is_told_and_not_sent() -> None:
    task, message = read("translation", "key", b"{")
    assert message is None
    assert (task.id, task.actor, task.attempts) == ("key", "", 0)


def test_an_error_is_kept_in_one_short_line() -> None:
    assert in_one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert in_one_line(ValueError()) == "ValueError"
    assert len(in_one_line(ValueError("x" * 10_000))) == ERROR_CHARACTERS


def test_a_slow_clean_up_after_the_interruption_is_an_interruption_too() -> None:
    late = RuntimeError("timed out")
    late.__cause__ = Shutdown()
    assert [was_interrupted(each) for each in (Shutdown(), late, ValueError(), None)] == [
        True, True, False, False,
    ]  # fmt: skip


def test_counts_that_a_broker_does_not_tell_are_left_out() -> None:
    assert Depth("speech", 1, 2, 3).by_state() == {"waiting": 1, "delayed": 2, "dead": 3}
    assert Depth("speech", 1, 2, 3, taken=0).by_state()["taken"] == 0


def test_an_actor_can_not_use_a_queue_that_nobody_watches() -> None:
    broker = make_broker(TaskSettings())

    async def lost() -> None: ...

    with pytest.raises(UnknownQueue, match="'lost' is none of the queues translation, "):
        dramatiq.actor(broker=broker, queue_name="lost")(lost)


def test_redis_carries_the_tasks_unless_another_broker_is_named() -> None:
    for given in ({}, {"REDIS_URL": "redis://localhost"}, {"TASK_BROKER_URL": "rediss://other"}):
        assert isinstance(make_broker(load_settings(given).tasks), TaskRedisBroker)
    with pytest.raises(NoSharedBroker, match="inside the running server"):
        shared_queues(TaskSettings())


def resting(rest: Callable[[], object]) -> Thread:
    """A thread that rests for longer than any test takes."""
    thread = Thread(target=rest, daemon=True)
    thread.start()
    return thread


def test_a_consumer_rests_until_something_is_sent_or_its_worker_stops() -> None:
    broker = TaskRedisBroker(FakeRedis(), heartbeat_seconds=60, alone=True)
    broker.declare_queue(TRANSLATION)

    def rest() -> None:
        broker.rest(TRANSLATION, 10 * DEADLINE_SECONDS)

    first, elsewhere = resting(rest), resting(lambda: broker.rest("speech", 10 * DEADLINE_SECONDS))
    broker.enqueue(FAILED.copy(queue_name=TRANSLATION))
    first.join(DEADLINE_SECONDS)
    assert not first.is_alive()
    assert elsewhere.is_alive()
    second = resting(rest)
    broker.hurry(True)
    for thread in (second, elsewhere, resting(rest)):
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize(("alone", "pause_ms"), [(True, 1000), (False, 100)])
def test_a_queue_is_polled_where_another_process_may_send(alone: bool, pause_ms: int) -> None:
    broker = TaskRedisBroker(FakeRedis(), heartbeat_seconds=60, alone=alone)
    assert vars(broker.consume(TRANSLATION, timeout=1000))["timeout"] == pause_ms


def test_who_waits_for_work_is_told_when_there_will_be_none() -> None:
    queue = WorkQueue()
    told: list[object] = []

    def wait() -> None:
        try:
            told.append(queue.get(timeout=10 * DEADLINE_SECONDS))
        except Empty:
            told.append("empty")

    waiting = [resting(wait) for _ in range(2)]
    queue.put("work")
    eventually(lambda: told == ["work"])
    queue.close()
    for thread in waiting:
        thread.join(DEADLINE_SECONDS)
    assert told == ["work", "empty"]


def test_rabbitmq_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pika", None)
    monkeypatch.delitem(sys.modules, "infra.tasks.rabbitmq", raising=False)
    with pytest.raises(ExtraMissing, match=r"backlot\[rabbitmq\]"):
        make_broker(load_settings({"TASK_BROKER_URL": "amqp://localhost"}).tasks)


def test_the_pause_doubles_with_jitter_up_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = {"TASK_MIN_BACKOFF_SECONDS": "1", "TASK_MAX_BACKOFF_SECONDS": "10"}
    settings = load_settings({**backoff, "TASK_MAX_RETRIES": "9"}).tasks
    broker, pauses = make_broker(settings), []

    async def work() -> None: ...

    dramatiq.actor(broker=broker, queue_name="translation")(work)
    monkeypatch.setattr(broker, "enqueue", lambda _, delay: pauses.append(delay))
    message = MessageProxy(Message("translation", "work", (), {}, {}))
    for _ in range(10):
        Retries(settings).after_process_message(broker, message, exception=ValueError("no"))
    for pause, least in zip(pauses, (1000, 2000, 4000), strict=False):
        assert least <= pause <= 2 * least
    assert all(5000 <= pause <= 10_000 for pause in pauses[4:])
    assert (len(pauses), message.failed) == (9, True)
