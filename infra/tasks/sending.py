"""How a task is sent: with where it comes from, and with one error when the broker is away."""

from __future__ import annotations

from typing import Any

from dramatiq import Actor
from dramatiq.errors import BrokerConnectionError

from infra.tasks.errors import BrokerAway


def enqueue(
    actor: Actor[..., Any],
    *args: object,
    correlation_id: str | None,
    causation_id: str | None,
) -> str:
    """Send one task and return its id; it blocks, so call it in a thread.

    The broker has the task when this returns. Raises BrokerAway within a few seconds otherwise.
    """
    try:
        message = actor.send_with_options(
            args=args, correlation_id=correlation_id, causation_id=causation_id
        )
    except BrokerConnectionError as error:
        raise BrokerAway(f"the task broker is away: {' '.join(str(error).split())}") from error
    return message.message_id
