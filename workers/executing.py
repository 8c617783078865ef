"""Commands of tasks: recorded with where the task comes from."""

from __future__ import annotations

from typing import TypeVar

import psycopg
from eventsourcing.persistence import PersistenceError

from commands.batch import Executed
from commands.bus import CommandBus
from commands.command import Command
from infra.batching import QueueFull
from infra.tasks import Postponed, TaskOrigin

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
    if not isinstance(outcome, Executed):
        raise TypeError("Only a request with a key has a kept answer.")
    return outcome.answer
