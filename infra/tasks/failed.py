"""A task that is given up: what its dead letter says, and what the program is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dramatiq import Message
from dramatiq.broker import MessageProxy

from infra.tasks.correlation import origin_of
from infra.utc import rfc3339

ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class FailedTask:
    """One task after its last attempt; `attempts` counts the first one too."""

    id: str
    queue: str
    actor: str
    args: tuple[Any, ...]
    attempts: int
    error: str
    failed_at: datetime | None
    correlation_id: str | None
    causation_id: str | None

    def as_dict(self) -> dict[str, Any]:
        """As the command line prints it."""
        return {
            "id": self.id,
            "queue": self.queue,
            "actor": self.actor,
            "args": list(self.args),
            "attempts": self.attempts,
            "error": self.error,
            "failedAt": rfc3339(self.failed_at) if self.failed_at else None,
            "correlationId": self.correlation_id,
            "causationId": self.causation_id,
        }


OnDead = Callable[[FailedTask], Awaitable[None]]
"""Runs where async actors run. While it fails the task is not dead: it is tried again later."""


def failed_task(message: Message[Any] | MessageProxy) -> FailedTask:
    """What the options of a message that failed tell; a message that nobody knew has no error."""
    options = message.options
    failed_at = options.get("failed_at")
    origin = origin_of(options)
    return FailedTask(
        message.message_id,
        message.queue_name,
        message.actor_name,
        message.args,
        int(options.get("retries", 0)),
        options.get("error", "no actor has this name"),
        None if failed_at is None else datetime.fromtimestamp(failed_at / 1000, UTC),
        origin.correlation_id,
        origin.causation_id,
    )


def in_one_line(error: BaseException) -> str:
    """What is kept of an error: its type and the beginning of its text, never a traceback."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:ERROR_CHARACTERS].removesuffix(": ")
