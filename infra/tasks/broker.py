"""Which broker the settings ask for, and what stands around every task, in which order.

Without any server it is Dramatiq's Redis broker over the Redis inside this process: the same
scripts, delays and dead letters as in production. Dramatiq's StubBroker is faster, but another
program: it has its own queues, and its dead letters are a list that nobody can redrive.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dramatiq import Broker
from dramatiq.middleware import Middleware, TimeLimit
from pydantic import SecretStr
from redis import Redis

from infra.redis import connect_blocking_redis, embedded_server
from infra.settings.adapters import TaskSettings
from infra.tasks.correlation import Correlation
from infra.tasks.errors import NoSharedBroker
from infra.tasks.event_loop import EventLoop
from infra.tasks.failed import OnDead
from infra.tasks.letters import TaskQueues
from infra.tasks.measuring import Measured, QueueGauges
from infra.tasks.queues import KnownQueues
from infra.tasks.redis_broker import TaskRedisBroker
from infra.tasks.redis_letters import RedisTaskQueues
from infra.tasks.resources import Resources
from infra.tasks.retries import Retries
from infra.tasks.stopping import GraceThenInterrupt

LIMIT_CHECK_MS = 200


def make_broker(
    settings: TaskSettings,
    *,
    on_dead: OnDead | None = None,
    resources: Resources[Any] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Broker:
    """A broker for one worker, or for sending; close it. It connects when it is used.

    `loop`: run async actors there, not on a loop of the worker's own. Raises ExtraMissing.
    """
    broker = _bare_broker(settings)
    for each in _middleware(settings, on_dead, resources, loop):
        broker.add_middleware(each)
    return broker


def shared_queues(settings: TaskSettings) -> TaskQueues:
    """The queues as any process can see them. Raises NoSharedBroker when there is no server."""
    if settings.broker_url is None:
        raise NoSharedBroker(
            "the tasks live inside the running server, and end with it: look at its /metrics, or "
            "set TASK_BROKER_URL or REDIS_URL"
        )
    return task_queues(settings)


def _bare_broker(settings: TaskSettings) -> Broker:
    url = settings.broker_url
    if url is not None and _is_rabbitmq(url):
        from infra.tasks.rabbitmq import TaskRabbitmqBroker

        return TaskRabbitmqBroker(url.get_secret_value())
    return TaskRedisBroker(_client(url), heartbeat_seconds=settings.heartbeat_seconds)


def task_queues(settings: TaskSettings) -> TaskQueues:
    """The queues of the configured broker; those inside this process without one."""
    url = settings.broker_url
    if url is not None and _is_rabbitmq(url):
        from infra.tasks.rabbitmq import RabbitmqTaskQueues

        return RabbitmqTaskQueues(url.get_secret_value())
    return RedisTaskQueues(_client(url))


def _is_rabbitmq(url: SecretStr) -> bool:
    return url.get_secret_value().startswith("amqp")


def _client(url: SecretStr | None) -> Redis:
    if url is not None:
        return connect_blocking_redis(url.get_secret_value())
    from fakeredis import FakeRedis

    return FakeRedis(server=embedded_server())


def _middleware(
    settings: TaskSettings,
    on_dead: OnDead | None,
    resources: Resources[Any] | None,
    loop: asyncio.AbstractEventLoop | None,
) -> list[Middleware]:
    """Before a task they are called in this order, after it in reverse.

    The interrupting ones are innermost: their exception must never hit Retries at work.
    No AgeLimit (no task is too old), no Callbacks or Pipelines (nothing uses them), and not
    Dramatiq's Prometheus, which starts a server of its own.
    """
    return [
        KnownQueues(),
        EventLoop(loop),
        *([resources] if resources is not None else []),
        QueueGauges(task_queues(settings)),
        Correlation(),
        Measured(),
        Retries(settings, on_dead),
        TimeLimit(time_limit=settings.time_limit_seconds * 1000, interval=LIMIT_CHECK_MS),
        GraceThenInterrupt(settings.stop_seconds),
    ]
