"""The tasks of this program: what each is called, which queue it waits in, what it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from uuid import UUID

import dramatiq
import psycopg
import structlog
from dramatiq import Actor, Broker
from eventsourcing.persistence import PersistenceError

from engine.command_bus import Command, CommandBus
from engine.messages import IncomingMessage
from infra.batcher import QueueFull
from infra.tasks.queues import (
    RECOMMENDATIONS,
    SPEECH,
    TRANSLATION,
    TRANSLATION_REQUESTS,
    FailedTask,
    Postponed,
    TaskOrigin,
    current_origin,
    enqueue,
)
from projections.recommendations.recommender import Recommender

if TYPE_CHECKING:
    from workers.speech import SpeechTranscription
    from workers.translation import CommentTranslation

R = TypeVar("R")

log = structlog.get_logger(__name__)

TRANSLATE_COMMENT = "translate_comment"
TRANSLATE_ON_DEMAND = "translate_on_demand"
TRANSCRIBE_VIDEO = "transcribe_video"
PREPARE_RECOMMENDATIONS = "prepare_recommendations"
# Dramatiq takes the lowest number first; 0 is the default.
LATER = 10
# The transcriber gives up after half an hour of its own; before that it may wait for another one.
SPEECH_LIMIT_MS = 4 * 3600 * 1000
STORE_SECONDS = 5.0


@dataclass(frozen=True)
class TaskMeans:
    """What the tasks of one process share."""

    translation: CommentTranslation
    speech: SpeechTranscription | None
    recommendations: Recommender | None


@dataclass(frozen=True)
class Tasks:
    """The declared tasks, to be sent by id only: each looks up what it works on itself."""

    translate_comment: Actor[..., Any]
    translate_on_demand: Actor[..., Any]
    transcribe_video: Actor[..., Any]
    prepare_recommendations: Actor[..., Any]


def declare(broker: Broker, means: Callable[[], TaskMeans]) -> Tasks:
    """Declare every task at the broker; `means` is asked when one runs."""

    @dramatiq.actor(actor_name=TRANSLATE_COMMENT, queue_name=TRANSLATION, broker=broker)
    async def translate_comment(comment_id: str) -> None:
        await means().translation.run(UUID(comment_id), current_origin())

    @dramatiq.actor(
        actor_name=TRANSLATE_ON_DEMAND,
        queue_name=TRANSLATION_REQUESTS,
        broker=broker,
        priority=LATER,
    )
    async def translate_on_demand(comment_id: str, target: str) -> None:
        await means().translation.run(UUID(comment_id), current_origin(), target)

    @dramatiq.actor(
        actor_name=TRANSCRIBE_VIDEO, queue_name=SPEECH, broker=broker, time_limit=SPEECH_LIMIT_MS
    )
    async def transcribe_video(video_id: str) -> None:
        speech = means().speech
        if speech is None:
            log.warning("video_not_transcribed", video_id=video_id, error="Whisper is not here")
        else:
            await speech.run(UUID(video_id), current_origin())

    @dramatiq.actor(
        actor_name=PREPARE_RECOMMENDATIONS,
        queue_name=RECOMMENDATIONS,
        broker=broker,
        priority=LATER,
        max_retries=0,
    )
    async def prepare_recommendations(users: list[str]) -> None:
        recommendations = means().recommendations
        if recommendations is None:
            log.warning("recommendations_not_made", error="RECOMMENDATIONS_PRECOMPUTE_SECONDS is 0")
            return
        for user in users:
            await recommendations.get(user)

    return Tasks(translate_comment, translate_on_demand, transcribe_video, prepare_recommendations)


async def give_up(means: TaskMeans, failed: FailedTask) -> None:
    """Record what it means that a task was given up."""
    if failed.actor in (TRANSLATE_COMMENT, TRANSLATE_ON_DEMAND):
        comment_id, *target = failed.args
        await means.translation.give_up(UUID(comment_id), failed, *target)


class TaskConsumer:
    """Sends a task for each message: what it is about, and nothing else.

    A task that is sent twice finds its work done.
    """

    name: ClassVar[str]
    topics: ClassVar[frozenset[str]]
    # The member of a message's value that the task is given.
    subject: ClassVar[str]

    def __init__(self, task: Actor[..., Any]) -> None:
        self._task = task

    async def handle(self, batch: Sequence[IncomingMessage]) -> None:
        """Send the tasks. Raise BrokerAway; then all of the batch is sent again."""
        await asyncio.to_thread(self._send, batch)

    def _send(self, batch: Sequence[IncomingMessage]) -> None:
        # A task works on what is there when it runs, so that one is enough for several messages.
        for subject, message in {each.value[self.subject]: each for each in batch}.items():
            enqueue(
                self._task,
                subject,
                correlation_id=message.correlation_id,
                causation_id=str(message.id),
            )


async def execute(bus: CommandBus, command: Command[R], actor: str, origin: TaskOrigin) -> R:
    """Return the command's answer. Raise Postponed when the event store is away or overrun."""
    correlation = origin.correlation_id or actor
    causation = origin.causation_id or correlation
    try:
        outcome = await bus.execute(
            command, actor=actor, correlation_id=correlation, causation_id=causation
        )
    except (PersistenceError, psycopg.Error, QueueFull) as error:
        raise Postponed("the event store is away", STORE_SECONDS) from error
    return outcome.answer
