"""The broker of tasks that the settings name: Dramatiq's for Redis, made to lose nothing.

The stock consumer takes a timeout for a bug of its own, and what it had fetched when the
connection broke stays with this process, unseen, until the process ends.

Without any server it is the same broker over the Redis inside this process: the same scripts,
delays and dead letters as in production. Dramatiq's StubBroker is faster, but another program: it
has its own queues, and its dead letters are a list that nobody can redrive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, PriorityQueue
from threading import Event, Lock
from typing import Any, cast

import structlog
from dramatiq import Broker, Message, Worker
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.common import compute_backoff, dq_name, xq_name
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, DecodeError
from dramatiq.middleware import Middleware, TimeLimit
from redis import Redis, RedisError

from infra.redis import connect_blocking_redis, embedded_server
from infra.redis_socket import connect_blocking_socket, socket_of
from infra.settings.adapters import TaskSettings
from infra.tasks.middleware import (
    Correlation,
    EventLoop,
    GraceThenInterrupt,
    KnownQueues,
    Measured,
    QueueGauges,
    Retries,
)
from infra.tasks.queues import (
    QUEUES,
    Depth,
    FailedTask,
    NoSharedBroker,
    OnDead,
    TaskQueues,
    Wanted,
    away,
    read,
    revived,
)

log = structlog.get_logger(__name__)

NAMESPACE = "backlot"
# How long a new task may wait when nothing else does and another process has sent it: its queue is
# polled, not pushed.
POLL_MS = 100
LIMIT_CHECK_MS = 200
# How often an empty queue is fetched from all the same, which tells that this worker is alive and
# looks for dead ones. In between it is asked for its length: that costs a tenth of the script.
FETCH_SECONDS = 0.5
# How long a consumer rests while its worker stops.
LAST_REST_SECONDS = 0.02
# Of a million commands so many look for dead workers: with the stock 1,000 an idle program, which
# fetches twice a second, takes eight minutes to find one.
MAINTENANCE_CHANCE = 300_000
# The dead letter keeps what was learned since the message was enqueued: the error, the attempts.
REPLACE = """
if redis.call("hexists", KEYS[1], ARGV[1]) == 1 then
    redis.call("hset", KEYS[1], ARGV[1], ARGV[2])
end
"""

# Enqueue and forget the dead letter in one step, unless it is gone already.
REDRIVE = """
local xq, xmsgs, q, msgs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if redis.call("zrem", xq, ARGV[1]) == 0 then
    return 0
end
redis.call("hdel", xmsgs, ARGV[1])
redis.call("hset", msgs, ARGV[1], ARGV[2])
redis.call("rpush", q, ARGV[1])
return 1
"""
PAGE = 500


@contextmanager
def _as_lost_connection() -> Iterator[None]:
    """Raise ConnectionClosed for every failure of Redis: away, slow, full or loading."""
    try:
        yield
    except RedisError as error:
        raise ConnectionClosed(error) from None


class TaskRedisBroker(RedisBroker):
    """Raises ConnectionClosed for every failure of Redis, and takes back what was fetched."""

    def __init__(self, client: Redis, *, heartbeat_seconds: float, alone: bool = False) -> None:
        """`alone`: no other process sends here, nor waits for a sign that this one lives."""
        super().__init__(
            client=client,
            middleware=[],
            namespace=NAMESPACE,
            heartbeat_timeout=round(heartbeat_seconds * 1000),
            maintenance_chance=MAINTENANCE_CHANCE,
        )
        self._replace = client.register_script(REPLACE)
        self._in_hand: dict[str, set[str]] = {}
        self._mutex = Lock()
        self._fetched: dict[str, float] = {}
        self._fetch_seconds = heartbeat_seconds / 4 if alone else FETCH_SECONDS
        self._polls = not alone
        self._sent = {name: Event() for queue in QUEUES for name in (queue, dq_name(queue))}
        self._stopping = False

    @property
    def consumer_class(self) -> type[TaskRedisConsumer]:
        return TaskRedisConsumer

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        with _as_lost_connection():
            sent = super().enqueue(message, delay=delay)
        self._sent[sent.queue_name].set()
        return sent

    def rest(self, queue_name: str, seconds: float) -> None:
        """Wait until this process sends something into the queue, at most that long."""
        if self._stopping:
            time.sleep(min(seconds, LAST_REST_SECONDS))
        elif self._sent[queue_name].wait(seconds):
            self._sent[queue_name].clear()

    def hurry(self, hurried: bool) -> None:
        """Have consumers rest as long as they like, or hardly at all, now and from now on."""
        self._stopping = hurried
        for sent in self._sent.values() if hurried else ():
            sent.set()

    def do_fetch(self, queue_name: str, prefetch: int) -> list[bytes]:
        """Take up to so many messages of a queue."""
        now = time.monotonic()
        fetched = self._fetched.get(queue_name, float("-inf"))
        if now - fetched < self._fetch_seconds and not self.client.llen(_key(queue_name)):
            return []
        self._fetched[queue_name] = now
        fetch = cast("Callable[[str, int], list[bytes | None]]", self._dispatch("fetch"))
        # A message that Redis has lost comes as None, once.
        return [data for data in fetch(queue_name, prefetch) if data is not None]

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Return a consumer, after putting back what an earlier one had not passed on."""
        if queue_name == dq_name(queue_name):
            # Dramatiq forgets the delayed messages that it held when the connection broke.
            self._in_hand[queue_name] = set()
        elif self._polls:
            timeout = min(timeout, POLL_MS)
        with _as_lost_connection():
            if stray := self._stray(queue_name):
                self.do_requeue(queue_name, *stray)
        return super().consume(queue_name, prefetch, timeout)

    def took(self, queue_name: str, message: MessageProxy) -> None:
        """Note that a message was passed on to a thread of this process."""
        with self._mutex:
            self._in_hand.setdefault(queue_name, set()).add(message.options["redis_message_id"])

    def gave(self, queue_name: str, *messages: MessageProxy) -> None:
        """Note that messages went back to Redis: done, dead or returned."""
        ids = [message.options["redis_message_id"] for message in messages]
        with self._mutex:
            self._in_hand.setdefault(queue_name, set()).difference_update(ids)

    def replace(self, queue_name: str, message: MessageProxy) -> None:
        """Keep the message as it is now, if it still is this process's."""
        key = f"{self.namespace}:{queue_name}.msgs"
        self._replace(keys=[key], args=[message.options["redis_message_id"], message.encode()])

    def bury(self, queue_name: str, data: bytes) -> None:
        """Make a dead letter of what was fetched and can't be read."""
        for each in self._stray(queue_name):
            if self.client.hget(f"{self.namespace}:{queue_name}.msgs", each) == data:
                self.do_nack(queue_name, each)

    def close(self) -> None:
        self.client.close()

    def _stray(self, queue_name: str) -> set[str]:
        key = f"{self.namespace}:__acks__.{self.broker_id}.{queue_name}"
        members = cast("set[bytes]", self.client.smembers(key))
        fetched = {member.decode() for member in members}
        with self._mutex:
            return fetched - self._in_hand.get(queue_name, set())


class TaskRedisConsumer(_RedisConsumer):
    """Tells the broker which messages are in the hands of a thread.

    Where nothing waits, it rests as long as the stock one, but until something is sent.
    """

    broker: TaskRedisBroker
    queue_name: str

    def __next__(self) -> MessageProxy | None:
        with _as_lost_connection():
            room = self.prefetch - self.outstanding_message_count
            if not self.message_cache and room > 0:
                self.message_cache = self.broker.do_fetch(self.queue_name, room)
            if not self.message_cache:
                self.misses, pause_ms = compute_backoff(self.misses, max_backoff=self.timeout)
                self.broker.rest(self.queue_name, pause_ms / 1000)
                return None
            self.misses = 0
            return self._read(self.message_cache.pop(0))

    def _read(self, data: bytes) -> MessageProxy | None:
        try:
            message = MessageProxy(Message.decode(data))
        except DecodeError as error:
            log.error("task_unreadable", queue=self.queue_name, error=str(error.error))
            self.broker.bury(self.queue_name, error.data)
            return None
        self.queued_message_ids.add(message.message_id)
        self.broker.took(self.queue_name, message)
        return message

    def ack(self, message: MessageProxy) -> None:
        with _as_lost_connection():
            super().ack(message)
        self.broker.gave(self.queue_name, message)

    def nack(self, message: MessageProxy) -> None:
        with _as_lost_connection():
            self.broker.replace(self.queue_name, message)
            super().nack(message)
        self.broker.gave(self.queue_name, message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        messages = list(messages)
        with _as_lost_connection():
            super().requeue(messages)
        self.broker.gave(self.queue_name, *messages)


class WorkQueue(PriorityQueue[Any]):
    """What consumers hand to the threads of a worker."""

    def __init__(self) -> None:
        super().__init__()
        self._closed = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the first item; raise Empty after that time, once closed, or woken for nothing."""
        with self.not_empty:
            if block and not self._closed and not self._qsize():
                self.not_empty.wait(timeout)
            if not self._qsize():
                raise Empty
            return self._get()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self.not_empty:
            self._closed = True
            self.not_empty.notify_all()


class PromptStop(Middleware):
    """Wakes the resting threads of a worker that stops: the stock ones rest on for a second."""

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        worker.work_queue = WorkQueue()
        if isinstance(broker, TaskRedisBroker):
            broker.hurry(False)

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        for thread in worker.workers:
            thread.stop()
        if isinstance(worker.work_queue, WorkQueue):
            worker.work_queue.close()
        if isinstance(broker, TaskRedisBroker):
            broker.hurry(True)


def _key(name: str) -> str:
    return f"{NAMESPACE}:{name}"


class RedisTaskQueues:
    """TaskQueues over a client of its own; close the client."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._redrive = client.register_script(REDRIVE)

    def depths(self) -> list[Depth]:
        with away(RedisError):
            return [self._depth(queue) for queue in QUEUES]

    def dead(self, queue: str, limit: int) -> list[FailedTask]:
        with away(RedisError):
            keys = self._keys(queue, 0, limit - 1)
            return [task for _, task, _ in self._letters(queue, keys)]

    def redrive(self, queue: str, wanted: Wanted) -> list[str]:
        def send(key: str, task: FailedTask, message: Message[Any] | None) -> bool:
            return message is not None and wanted(task) and self._send(queue, key, message)

        return [task.id for task in self._take(queue, send)]

    def discard(self, queue: str, wanted: Wanted) -> list[FailedTask]:
        def drop(key: str, task: FailedTask, message: Message[Any] | None) -> bool:
            return wanted(task) and self._drop(queue, key)

        return self._take(queue, drop)

    def _take(
        self, queue: str, take: Callable[[str, FailedTask, Message[Any] | None], bool]
    ) -> list[FailedTask]:
        """Return the dead letters that `take` took out; tasks that die meanwhile are not asked."""
        taken: list[FailedTask] = []
        with away(RedisError):
            keys = self._keys(queue, 0, -1)
            for start in range(0, len(keys), PAGE):
                page = self._letters(queue, keys[start : start + PAGE])
                taken += [task for key, task, message in page if take(key, task, message)]
        return taken

    def _depth(self, queue: str) -> Depth:
        with self._client.pipeline() as pipe:
            pipe.llen(_key(queue))
            pipe.hlen(f"{_key(queue)}.msgs")
            pipe.hlen(f"{_key(dq_name(queue))}.msgs")
            pipe.zcard(_key(xq_name(queue)))
            waiting, messages, delayed, dead = pipe.execute()
        return Depth(queue, waiting, delayed, dead, taken=messages - waiting)

    def _keys(self, queue: str, first: int, last: int) -> list[str]:
        found = cast("list[bytes]", self._client.zrange(_key(xq_name(queue)), first, last))
        return [key.decode() for key in found]

    def _letters(
        self, queue: str, keys: list[str]
    ) -> list[tuple[str, FailedTask, Message[Any] | None]]:
        if not keys:
            return []
        found = cast("list[bytes | None]", self._client.hmget(f"{_key(xq_name(queue))}.msgs", keys))
        return [
            (key, *read(queue, key, data or b"")) for key, data in zip(keys, found, strict=True)
        ]

    def _send(self, queue: str, key: str, message: Message[Any]) -> bool:
        message = revived(message)
        message.options["redis_message_id"] = key
        keys = [_key(xq_name(queue)), f"{_key(xq_name(queue))}.msgs"]
        keys += [_key(queue), f"{_key(queue)}.msgs"]
        return bool(self._redrive(keys=keys, args=[key, message.encode()]))

    def _drop(self, queue: str, key: str) -> bool:
        with self._client.pipeline() as pipe:
            pipe.zrem(_key(xq_name(queue)), key)
            pipe.hdel(f"{_key(xq_name(queue))}.msgs", key)
            dropped, _ = pipe.execute()
        return bool(dropped)


def make_broker(
    settings: TaskSettings,
    *,
    on_dead: OnDead | None = None,
    resources: Middleware | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    alone: bool = True,
) -> Broker:
    """Return a broker for one worker, or for sending; close it. It connects when it is used.

    `loop`: run async actors there, not on a loop of the worker's own. `alone`: no other process
    uses the Redis inside this one. Raise ExtraMissing.
    """
    # Called in this order before a task, and in reverse after it. The interrupting ones are
    # innermost: their exception must never hit Retries at work. No AgeLimit (no task is too old),
    # no Callbacks or Pipelines (nothing uses them), and not Dramatiq's Prometheus, which starts a
    # server of its own.
    middleware = (
        KnownQueues(),
        EventLoop(loop),
        resources,
        QueueGauges(task_queues(settings)),
        Correlation(),
        Measured(),
        Retries(settings, on_dead),
        TimeLimit(time_limit=settings.time_limit_seconds * 1000, interval=LIMIT_CHECK_MS),
        GraceThenInterrupt(settings.stop_seconds),
        PromptStop(),
    )
    broker = _bare_broker(settings, alone=alone)
    for each in middleware:
        if each is not None:
            broker.add_middleware(each)
    return broker


def shared_queues(settings: TaskSettings) -> TaskQueues:
    """Return the queues that any process can see; raise NoSharedBroker without a server."""
    if settings.broker_url is None:
        raise NoSharedBroker(
            "the tasks live inside the running server, and end with it: look at its /metrics, or "
            "set TASK_BROKER_URL or REDIS_URL"
        )
    return task_queues(settings)


def _bare_broker(settings: TaskSettings, *, alone: bool) -> Broker:
    url = _url(settings)
    if url.startswith("amqp"):
        from infra.tasks.rabbitmq import TaskRabbitmqBroker

        return TaskRabbitmqBroker(url)
    alive = settings.heartbeat_seconds
    return TaskRedisBroker(_client(url), heartbeat_seconds=alive, alone=alone and not url)


def task_sender(settings: TaskSettings) -> Callable[[Message[Any]], None]:
    """Return what sends tasks, also those of actors that this process has not declared.

    It connects when it is used; raise BrokerAway then, and ExtraMissing now.
    """
    broker = _bare_broker(settings, alone=False)

    def send(message: Message[Any]) -> None:
        with away(BrokerConnectionError):
            broker.declare_queue(message.queue_name)
            broker.enqueue(message)

    return send


def task_queues(settings: TaskSettings) -> TaskQueues:
    """Return the queues of the configured broker; those inside this process without one."""
    url = _url(settings)
    if url.startswith("amqp"):
        from infra.tasks.rabbitmq import RabbitmqTaskQueues

        return RabbitmqTaskQueues(url)
    return RedisTaskQueues(_client(url))


def _url(settings: TaskSettings) -> str:
    return "" if settings.broker_url is None else settings.broker_url.get_secret_value()


def _client(url: str) -> Redis:
    if (path := socket_of(url)) is not None:
        return connect_blocking_socket(path)
    if url:
        return connect_blocking_redis(url)
    from fakeredis import FakeRedis

    return FakeRedis(server=embedded_server())
