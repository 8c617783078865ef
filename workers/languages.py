"""The languages of comments: found for many at once as they come, where no provider is needed.

What is in the target language, has no words, or nobody could translate is recorded here. The rest
goes to a task (`workers.translation`), as does whatever can't be dealt with here.

Doing it twice does no harm: it works on comments as they stand in the log, and a result counts only
for the revision that was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import structlog
from dramatiq import Actor
from eventsourcing.persistence import PersistenceError

from commands.comments import (
    CommentText,
    Detected,
    FindCommentTexts,
    Outcome,
    RecordTranslation,
    Skipped,
)
from domain.comment import TranslationStatus
from domain.model import SystemActor
from engine.command_bus import CommandBus
from engine.connections import is_outage
from engine.messages import IncomingMessage
from infra.batcher import QueueFull
from infra.errors import describe
from infra.language.detector import Detection, Detector, TextDetector
from infra.language.words import words
from infra.llm.errors import NO_LANGUAGE_MODEL
from infra.metrics import counter
from infra.settings import Role, Settings
from infra.settings.features import TranslationSettings
from projections.integration_events import COMMENT_CREATED, COMMENT_EDITED
from workers.tasks import TaskConsumer

log = structlog.get_logger(__name__)

ACTOR = SystemActor.TRANSLATION
FINAL = ("translated", "not_needed")
NO_WORDS = "no_words"
# So many share two batches of the command bus: one that reads, one that records.
AT_ONCE = 128


class Judgement(NamedTuple):
    """What is to be recorded of a text; without an outcome, it is in the target language.

    Unless it is `settled`, the rest is left to a task.
    """

    detected: Detected | None
    outcome: Outcome | None
    settled: bool


LEFT_TO_TASK = Judgement(None, None, settled=False)
WITHOUT_WORDS = Judgement(None, Skipped(False, NO_WORDS), settled=True)

TRANSLATIONS = counter(
    "backlot_translations",
    "Comments that were dealt with, by the status that they have now, or gone, done_before, "
    "not_a_target (any more).",
    ("outcome",),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A language that comments are translated to (`code`: ISO 639-1), if there is a translator.

    That is asked about what is in its target less surely than `confidence` (0..1).
    """

    code: str
    confidence: float
    translates: bool

    def judge(self, found: Detected | None) -> Judgement:
        """Return what the language of a text means, which is None where none was found."""
        if found is not None and found.language == self.code:
            # Taken for the target wrongly, it would never be translated.
            unsure = found.confidence is not None and found.confidence < self.confidence
            if not (unsure and self.translates):
                return Judgement(found, None, settled=True)
            found = None
        if self.translates:
            return Judgement(found, None, settled=False)
        return Judgement(found, Skipped(True, NO_LANGUAGE_MODEL), settled=True)


def as_detected(found: Detection | None, detector: Detector) -> Detected | None:
    """Return what a detector found, in the form in which it is recorded."""
    return None if found is None else Detected(found.language, found.confidence, detector.name)


def pause_left(text: CommentText, pause: timedelta, now: datetime) -> timedelta:
    """Return how much is left of the pause after an edit, since its author may go on editing."""
    return text.written_at + pause - now if text.revision > 1 else timedelta(0)


class TranslationConsumer(TaskConsumer):
    """Finds the languages of comments; sends `translate_comment` for what takes a provider."""

    name = "translation"
    topics = frozenset((COMMENT_CREATED, COMMENT_EDITED))
    subject = "commentId"

    def __init__(
        self,
        task: Actor[..., Any],
        bus: CommandBus,
        target: Target,
        detector: TextDetector | None,
        *,
        edit_pause: timedelta = timedelta(0),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Without a detector, whatever has words is left to the tasks."""
        super().__init__(task)
        self._bus = bus
        self._target = target
        self._detector = detector
        self._edit_pause = edit_pause
        self._clock = clock

    async def handle(self, batch: Sequence[IncomingMessage]) -> None:
        """Record what is found, then send the tasks.

        Raise BrokerAway, or what says that the event store is away: then all of the batch comes
        again, and what was recorded is found done.
        """
        latest = list({UUID(each.value[self.subject]): each for each in batch}.items())
        for first in range(0, len(latest), AT_ONCE):
            await super().handle(await self._deal_with(dict(latest[first : first + AT_ONCE])))

    async def _deal_with(self, messages: Mapping[UUID, IncomingMessage]) -> list[IncomingMessage]:
        """Record what needs no provider; return the messages of the other comments."""
        try:
            texts = await self._texts(messages)
        except Exception as error:  # noqa: BLE001 - an outage is raised again, others are logged
            _raise_outage(error)
            # Such as a stream that only a newer release can read: each task fails for itself.
            return list(messages.values())
        judged = await asyncio.to_thread(self._judge_all, texts)
        recorded = await asyncio.gather(
            *(self._record(messages[id_], texts[id_], each) for id_, each in judged.items()),
            return_exceptions=True,
        )
        left = []
        for (id_, judgement), outcome in zip(judged.items(), recorded, strict=True):
            if isinstance(outcome, BaseException):
                _raise_outage(outcome)
            elif judgement.settled:
                TRANSLATIONS.labels(outcome or "gone").inc()
                continue
            left.append(messages[id_])
        return left

    async def _texts(self, messages: Mapping[UUID, IncomingMessage]) -> dict[UUID, CommentText]:
        """Return the comments that are not done."""
        query = FindCommentTexts(
            [(id_, UUID(each.value["videoId"])) for id_, each in messages.items()]
        )
        executed = await self._bus.execute(query, actor=ACTOR, correlation_id=ACTOR)
        texts: dict[UUID, CommentText] = {}
        for id_, text in zip(messages, executed.answer, strict=True):
            if text is None or text.status in FINAL:
                TRANSLATIONS.labels("gone" if text is None else "done_before").inc()
            else:
                texts[id_] = text
        return texts

    def _judge_all(self, texts: Mapping[UUID, CommentText]) -> dict[UUID, Judgement]:
        return {id_: self._judge(id_, text) for id_, text in texts.items()}

    def _judge(self, comment_id: UUID, text: CommentText) -> Judgement:
        if pause_left(text, self._edit_pause, self._clock()) > timedelta(0):
            return LEFT_TO_TASK
        try:
            spoken = words(text.content)
            if not spoken:
                return WITHOUT_WORDS
            if self._detector is None:
                return LEFT_TO_TASK
            found = self._detector.detect_words(spoken)
        except Exception:
            log.exception("language_not_detected", comment_id=str(comment_id))
            return LEFT_TO_TASK
        return self._target.judge(as_detected(found, self._detector))

    async def _record(
        self, message: IncomingMessage, text: CommentText, judgement: Judgement
    ) -> TranslationStatus | None:
        """Record what was found, be it only the language; return the comment's status."""
        detected, outcome, settled = judgement
        if not settled and (detected is None or detected.language == text.language):
            return text.status
        command = RecordTranslation(
            UUID(message.value[self.subject]), text.revision, self._target.code, detected, outcome
        )
        executed = await self._bus.execute(
            command,
            actor=ACTOR,
            correlation_id=message.correlation_id or ACTOR,
            causation_id=str(message.id),
        )
        return executed.answer


def _raise_outage(error: BaseException) -> None:
    """Raise what the consumer has to wait for; log anything else, which is a comment's own."""
    away = isinstance(error, PersistenceError | psycopg.Error | QueueFull) or is_outage(error)
    if away or not isinstance(error, Exception):
        raise error
    log.warning("comments_left_to_tasks", error=describe(error))


def may_translate(settings: Settings) -> bool:
    """Return whether comments may be translated: here, or by other processes that run the tasks."""
    return settings.llm.configured or Role.TASKS not in settings.server.roles


def make_consumer(
    settings: TranslationSettings, task: Actor[..., Any], bus: CommandBus, *, translates: bool
) -> TranslationConsumer:
    """Return the consumer; with `translates` there may be a language model for its tasks.

    Detectors that are a service or take seconds belong to the tasks.
    """
    local = settings.detector == "text"
    return TranslationConsumer(
        task,
        bus,
        Target(settings.target_language, settings.target_confidence, translates),
        TextDetector(settings.min_confidence) if local else None,
        edit_pause=timedelta(seconds=settings.edit_seconds),
    )
