"""A consumer that sends a task for each message: what it is about, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import psycopg
from dramatiq import Actor
from eventsourcing.persistence import PersistenceError

from engine.command import Command
from engine.command_bus import CommandBus
from engine.messages import Received
from infra.batcher import QueueFull
from infra.tasks.messages import Postponed, TaskOrigin, enqueue


class TaskConsumer:
    """Sends the tasks; one that is sent twice finds its work done."""

    name: ClassVar[str]
    topics: ClassVar[frozenset[str]]
    # The member of a message's value that the task is given.
    subject: ClassVar[str]

    def __init__(self, task: Actor[..., Any]) -> None:
        self._task = task

    async def handle(self, batch: Sequence[Received]) -> None:
        """Raises BrokerAway; then all of the batch is sent again."""
        await asyncio.to_thread(self._send, batch)

    def _send(self, batch: Sequence[Received]) -> None:
        # A task works on what is there when it runs, so that one is enough for several messages.
        for subject, message in {each.value[self.subject]: each for each in batch}.items():
            enqueue(
                self._task,
                subject,
                correlation_id=message.correlation_id,
                causation_id=str(message.id),
            )


R = TypeVar("R")

STORE_SECONDS = 5.0


async def execute(bus: CommandBus, command: Command[R], actor: str, origin: TaskOrigin) -> R:
    """What the command answers. Raises Postponed when the event store is away or overrun."""
    correlation = origin.correlation_id or actor
    causation = origin.causation_id or correlation
    try:
        outcome = await bus.execute(
            command, actor=actor, correlation_id=correlation, causation_id=causation
        )
    except (PersistenceError, psycopg.Error, QueueFull) as error:
        raise Postponed("the event store is away", STORE_SECONDS) from error
    return outcome.answer
