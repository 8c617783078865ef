"""The tasks of this program: what each is called, which queue it waits in, what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import dramatiq
from dramatiq import Actor, Broker

from infra.tasks import FailedTask, current_origin
from infra.tasks.queues import TRANSLATION
from workers.translation.task import CommentTranslation

TRANSLATE_COMMENT = "translate_comment"


@dataclass(frozen=True)
class Means:
    """What the tasks of one process share."""

    translation: CommentTranslation


@dataclass(frozen=True)
class Tasks:
    """The declared tasks, to be sent by id only: each looks up what it works on itself."""

    translate_comment: Actor[..., Any]


def declare(broker: Broker, means: Callable[[], Means]) -> Tasks:
    """Declare every task at the broker; `means` is asked when one runs."""

    @dramatiq.actor(actor_name=TRANSLATE_COMMENT, queue_name=TRANSLATION, broker=broker)
    async def translate_comment(comment_id: str) -> None:
        await means().translation.run(UUID(comment_id), current_origin())

    return Tasks(translate_comment)


async def give_up(means: Means, failed: FailedTask) -> None:
    """Record what it means that a task was given up."""
    if failed.actor == TRANSLATE_COMMENT:
        await means.translation.give_up(UUID(failed.args[0]), failed)
