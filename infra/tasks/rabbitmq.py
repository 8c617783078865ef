"""RabbitMQ as the broker of tasks: `amqp://` in TASK_BROKER_URL, and the extra `rabbitmq`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.common import dq_name, xq_name

from infra.tasks.queues import QUEUES, Depth, ExtraMissing, FailedTask, Wanted, away, read, revived

try:
    import pika
    from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
    from pika.adapters.blocking_connection import BlockingChannel
    from pika.exceptions import AMQPChannelError, AMQPConnectionError, ChannelClosedByBroker
except ImportError as error:
    raise ExtraMissing(
        "TASK_BROKER_URL: RabbitMQ needs `pip install 'backlot[rabbitmq]'`"
    ) from error

CONNECT_SECONDS = 2.0
BLOCKED_SECONDS = 5.0
NOT_FOUND = 404
# The stock broker raises what failed; pika would tell it a second time, with a traceback.
logging.getLogger("pika").setLevel(logging.CRITICAL)


def _parameters(url: str) -> pika.URLParameters:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = CONNECT_SECONDS
    parameters.blocked_connection_timeout = BLOCKED_SECONDS
    return parameters


class TaskRabbitmqBroker(RabbitmqBroker):
    """Takes a task only when RabbitMQ confirms it."""

    def __init__(self, url: str) -> None:
        super().__init__(url=url, confirm_delivery=True, middleware=[])
        self.parameters = _parameters(url)

    @property
    def consumer_class(self) -> type[TaskRabbitmqConsumer]:
        return TaskRabbitmqConsumer

    def publish(self, queue_name: str, body: bytes) -> None:
        """Put bytes into an existing queue, on this thread's connection, and wait for the word."""
        self.channel.basic_publish(
            "", queue_name, body, pika.BasicProperties(delivery_mode=2), mandatory=True
        )


class TaskRabbitmqConsumer(_RabbitmqConsumer):
    """Dead letters keep what was learned since they were enqueued: the error, the attempts."""

    broker: TaskRabbitmqBroker

    def nack(self, message: MessageProxy) -> None:
        """RabbitMQ itself would move the message as it was."""
        try:
            self.broker.publish(xq_name(message.queue_name), message.encode())
        except (AMQPConnectionError, AMQPChannelError):
            del self.broker.connection
            super().nack(message)
        else:
            self.ack(message)


class RabbitmqTaskQueues:
    """TaskQueues, each call on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._parameters = _parameters(url)

    def depths(self) -> list[Depth]:
        return [self._depth(queue) for queue in QUEUES]

    def dead(self, queue: str, limit: int) -> list[FailedTask]:
        found: list[FailedTask] = []
        # Unacknowledged, all of them are back in their places when the connection ends.
        with away(AMQPConnectionError, AMQPChannelError), self._connect() as connection:
            channel = connection.channel()
            while len(found) < limit and (got := _next(channel, queue)) is not None:
                found.append(got[1])
        return found

    def redrive(self, queue: str, wanted: Wanted) -> list[str]:
        def send(channel: BlockingChannel, task: FailedTask, message: Message[Any] | None) -> bool:
            if message is None or not wanted(task):
                return False
            lasting = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish("", queue, revived(message).encode(), lasting, mandatory=True)
            return True

        return [task.id for task in self._take(queue, send)]

    def discard(self, queue: str, wanted: Wanted) -> list[FailedTask]:
        return self._take(queue, lambda channel, task, message: wanted(task))

    def _take(
        self, queue: str, take: Callable[[BlockingChannel, FailedTask, Message[Any] | None], bool]
    ) -> list[FailedTask]:
        """Return the dead letters that `take` took; the rest is back once the connection ends."""
        taken: list[FailedTask] = []
        with away(AMQPConnectionError, AMQPChannelError), self._connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for _ in range(_count(channel, xq_name(queue))):
                got = _next(channel, queue)
                if got is None:
                    break
                tag, task, message = got
                if take(channel, task, message):
                    channel.basic_ack(tag)
                    taken.append(task)
        return taken

    def _depth(self, queue: str) -> Depth:
        names = queue, dq_name(queue), xq_name(queue)
        with away(AMQPConnectionError, AMQPChannelError), self._connect() as connection:
            # A channel ends with the first question about a queue that is not there yet.
            return Depth(queue, *[_count(connection.channel(), name) for name in names])

    def _connect(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(self._parameters)


def _count(channel: BlockingChannel, name: str) -> int:
    """Return how many tasks of the queue no consumer holds; 0 for a queue never used."""
    try:
        return int(channel.queue_declare(name, passive=True).method.message_count)
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        return 0


def _next(
    channel: BlockingChannel, queue: str
) -> tuple[int, FailedTask, Message[Any] | None] | None:
    try:
        method, _, body = channel.basic_get(xq_name(queue))
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        return None
    if method is None:
        return None
    return method.delivery_tag, *read(queue, str(method.delivery_tag), body)
