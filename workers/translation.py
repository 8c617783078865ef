"""The languages and translations of comments: a consumer for what is found at once, and a task.

`TranslationConsumer` finds the languages of many comments as they come. What is in the target
language, has no words, or nobody could translate is recorded there. The rest goes to a task,
`CommentTranslation`, as does whatever the consumer can't deal with.

Running either twice does no harm: it works on comments as they stand in the log, and a result
counts only for the revision that was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

import psycopg
import structlog
from dramatiq import Actor
from eventsourcing.persistence import PersistenceError
from redis.asyncio import Redis

from commands.translation import (
    CommentText,
    Detected,
    Failed,
    FindCommentText,
    FindCommentTexts,
    FindStanding,
    Outcome,
    RecordTarget,
    RecordTranslation,
    Skipped,
    TranslatedText,
)
from domain.comment import TranslationStatus
from domain.model import SystemActor
from engine.command_bus import Command, CommandBus
from engine.connections import is_outage
from engine.messages import IncomingMessage, MessageBatch
from engine.subscription import Subscription
from infra.batcher import QueueFull
from infra.errors import describe
from infra.language.detector import Detection, Detector, TextDetector, make_detector
from infra.language.words import words
from infra.llm.client import SPENDER, BudgetedModel, make_language_model, spending
from infra.llm.errors import (
    NO_LANGUAGE_MODEL,
    BudgetSpent,
    LanguageModelError,
    NotCalled,
    UserBudgetSpent,
)
from infra.llm.limits import Budget
from infra.metrics import counter
from infra.settings import Role, Settings
from infra.settings.adapters import LanguageModelSettings
from infra.settings.features import TranslationSettings
from infra.tasks.queues import FailedTask, Postponed, TaskOrigin
from projections.integration_events import COMMENT_CREATED, COMMENT_EDITED
from workers.fidelity import Glossary
from workers.tasks import TaskConsumer, Tasks, execute
from workers.translator import Translation, TranslationCache, Translator

if TYPE_CHECKING:
    from workers.parts import Parts

log = structlog.get_logger(__name__)

R = TypeVar("R")

ACTOR = SystemActor.TRANSLATION
FINAL = ("translated", "not_needed")
# So many share two batches of the command bus: one that reads, one that records.
AT_ONCE = 128
PROVIDER_SECONDS = 10.0
SHARED_SECONDS = 1.0
ON_RECORD = "on record"
# Why comments fail or are skipped, besides the outcomes of calls of a language model.
NO_WORDS = "no_words"
NO_LANGUAGE = "no_language"
BROKEN = "error"

Finding = tuple[Detected | None, Outcome | None]


def _kinds(of: type[LanguageModelError]) -> Iterator[type[LanguageModelError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from _kinds(kind)


# A dead letter tells the class of its error.
REASONS = {kind.__name__: kind.outcome for kind in _kinds(LanguageModelError)}


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


class TargetLanguage(NamedTuple):
    """A language that comments are translated to, and what does that."""

    target: Target
    translator: Translator | None
    cache: TranslationCache

    async def translation(self, content: str, source: str | None) -> Translation:
        """Return the text in the target language; `source` is a guess of its own."""
        if (translator := self.translator) is None:
            raise RuntimeError("There is no language model.")
        return await self.cache.once(content, lambda: translator.translate(content, source))


def known_language(text: CommentText) -> Detected | None:
    """Return the language that is recorded of a comment; nobody has to find it once more."""
    if text.language is None:
        return None
    return Detected(text.language, text.confidence, ON_RECORD)


@dataclass(frozen=True)
class CommentTranslation:
    """Translates comments to `target` (ISO 639-1), and to each of `targets` on demand.

    Without a translator it only detects. A text that its author has edited waits for `edit_pause`
    to pass without another edit. Every comment's calls are its author's; what a reader asks for
    is nobody's, since asking is limited.
    """

    bus: CommandBus
    detector: Detector
    targets: Mapping[str, TargetLanguage]
    target: str
    edit_pause: timedelta = timedelta(0)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def run(self, comment_id: UUID, origin: TaskOrigin, target: str | None = None) -> None:
        """Translate the comment as it stands, unless that is done.

        With a target (ISO 639-1), into the language that a reader asked for; else as every comment.

        Raise Postponed when what it needs is away through no fault of the comment, and
        LanguageModelError when another attempt may succeed; whatever else a language model does
        is recorded as a failure.
        """
        text = await self._execute(FindCommentText(comment_id, target), origin)
        if text is not None and text.status in FINAL:
            TRANSLATIONS.labels("done_before").inc()
            return
        # A removed video takes its comments with it: nobody pays for what nobody reads.
        if text is None or not await self._execute(FindStanding(text.video_id), origin):
            TRANSLATIONS.labels("gone").inc()
            return
        if (into := self.targets.get(target or self.target)) is None:
            TRANSLATIONS.labels("not_a_target").inc()
            return
        self._require_settled(text)
        record: Command[TranslationStatus | None]
        if target is None:
            with spending(text.author):
                finding = await self._find_out(text.content, into)
            record = RecordTranslation(comment_id, text.revision, into.target.code, *finding)
        else:
            _, outcome = await self._find_out(text.content, into, known_language(text))
            record = RecordTarget(comment_id, text.revision, target, outcome)
        status = await self._execute(record, origin)
        TRANSLATIONS.labels(status or "gone").inc()

    def _require_settled(self, text: CommentText) -> None:
        """Raise Postponed for a text that its author may still be working on."""
        left = pause_left(text, self.edit_pause, self.clock())
        if left > timedelta(0):
            raise Postponed("edited just now", left.total_seconds())

    async def give_up(
        self, comment_id: UUID, failed: FailedTask, target: str | None = None
    ) -> None:
        """Record that the comment's task was given up."""
        origin = TaskOrigin(failed.correlation_id, failed.causation_id)
        text = await self._execute(FindCommentText(comment_id), origin)
        if text is None:
            return
        outcome = Failed(REASONS.get(failed.error.partition(":")[0], BROKEN))
        if target is None:
            record = RecordTranslation(comment_id, text.revision, self.target, outcome=outcome)
            await self._execute(record, origin)
        else:
            await self._execute(RecordTarget(comment_id, text.revision, target, outcome), origin)
        TRANSLATIONS.labels("failed").inc()

    async def _find_out(
        self, content: str, into: TargetLanguage, known: Detected | None = None
    ) -> Finding:
        """Return what is to be recorded; without an outcome, the text is in that language."""
        if not words(content):
            return WITHOUT_WORDS.detected, WITHOUT_WORDS.outcome
        try:
            found = known or as_detected(await self.detector.detect(content), self.detector)
            detected, outcome, settled = into.target.judge(found)
            if settled:
                return detected, outcome
            made = await into.translation(content, None if detected is None else detected.language)
            return self._judged(detected, made, into)
        except BudgetSpent as error:
            return self._unpaid(error)
        except NotCalled as error:
            raise Postponed(error.outcome, error.retry_after or PROVIDER_SECONDS) from error
        except LanguageModelError as error:
            if error.retryable:
                raise
            log.warning("comment_not_translated", reason=error.outcome, error=str(error))
            return None, Failed(error.outcome)

    def _unpaid(self, error: BudgetSpent) -> Finding:
        """Return that nobody pays for it today, unless it was another author of an equal text."""
        if isinstance(error, UserBudgetSpent) and error.user_id != SPENDER.get():
            raise Postponed(error.outcome, SHARED_SECONDS) from error
        return None, Skipped(True, error.outcome)

    def _judged(
        self, detected: Detected | None, made: Translation, into: TargetLanguage
    ) -> Finding:
        """Return what a translation means for the comment; its model has seen the language too."""
        if made.source_language == into.target.code:
            return Detected(into.target.code, None, made.model), None
        language = detected.language if detected else made.source_language
        if language is None:
            return None, Skipped(False, NO_LANGUAGE)
        return detected, TranslatedText(language, made.text, made.model, made.prompt_version)

    async def _execute(self, command: Command[R], origin: TaskOrigin) -> R:
        return await execute(self.bus, command, ACTOR, origin)


@asynccontextmanager
async def open_translation(
    settings: TranslationSettings,
    llm_settings: LanguageModelSettings,
    bus: CommandBus,
    redis: Redis,
) -> AsyncIterator[CommentTranslation]:
    """Yield everything that one process needs to translate. Raise OperatorError."""
    model = make_language_model(llm_settings, redis)
    per_user, for_all = settings.user_calls_per_day, settings.calls_per_day
    budget = Budget(redis, "translation", per_user=per_user, for_all=for_all)
    llm = model and BudgetedModel(model, budget)

    target = settings.target_language

    glossary, detector = Glossary(settings.glossary), make_detector(settings, llm)
    # The others cost more than what they would find.
    looks = detector if settings.detector == "text" else None

    def into(code: str) -> TargetLanguage:
        name, ttl = settings.model, settings.cache_ttl_seconds
        cache = TranslationCache(redis, ttl, model=name, target=code, glossary=glossary)
        to = Target(code, settings.target_confidence, translates=llm is not None)
        if llm is None:
            return TargetLanguage(to, None, cache)
        translator = Translator(llm, name, code, glossary=glossary, detector=looks)
        return TargetLanguage(to, translator, cache)

    if llm is None:
        log.info("translation_skipped", reason="neither OPENAI_API_KEY nor OPENAI_BASE_URL is set")
    try:
        yield CommentTranslation(
            bus=bus,
            detector=detector,
            targets={each: into(each) for each in (target, *settings.on_demand)},
            target=target,
            edit_pause=timedelta(seconds=settings.edit_seconds),
        )
    finally:
        if llm is not None:
            await llm.aclose()


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


def subscriptions(
    parts: Parts, bus: CommandBus, tasks: Tasks
) -> Iterator[Subscription[MessageBatch]]:
    """Have comments translated that were posted or edited."""
    translates = may_translate(parts.settings)
    settings, task = parts.settings.translation, tasks.translate_comment
    yield parts.consume(make_consumer(settings, task, bus, translates=translates))
