"""The task of a comment: find its language, have it translated, record what came of it.

Running it twice does no harm: it works on the comment as it stands in the log, and its result
counts only for the revision that it has read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

import psycopg
import structlog
from dramatiq import Actor
from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from commands.comments import (
    CommentText,
    Detected,
    Failed,
    FindCommentText,
    FindStanding,
    Outcome,
    RecordTarget,
    RecordTranslation,
    Skipped,
    TranslatedText,
)
from domain.comment import TranslationStatus
from engine.command_bus import Command, CommandBus
from engine.connections import ThreadedConnection, leading
from engine.messages import MessageBatch
from engine.schedule import Job, Outage, Run
from engine.subscription import Subscription
from infra.language.detector import Detector, make_detector
from infra.language.words import words
from infra.llm.client import SPENDER, BudgetedModel, make_language_model, spending
from infra.llm.errors import (
    NO_LANGUAGE_MODEL,
    PASSING,
    BudgetSpent,
    LanguageModelError,
    NotCalled,
    UserBudgetSpent,
)
from infra.llm.limits import Budget
from infra.metrics import counter
from infra.settings.adapters import LanguageModelSettings
from infra.settings.features import TranslationSettings
from infra.tasks.broker import task_queues
from infra.tasks.queues import (
    TRANSLATION,
    BrokerAway,
    FailedTask,
    Postponed,
    TaskOrigin,
    TaskQueues,
    enqueue,
)
from projections.comments import Comments
from workers.fidelity import Glossary
from workers.languages import (
    ACTOR,
    FINAL,
    TRANSLATIONS,
    WITHOUT_WORDS,
    Target,
    as_detected,
    make_consumer,
    may_translate,
    pause_left,
)
from workers.tasks import Tasks, execute
from workers.translator import Translation, TranslationCache, Translator

if TYPE_CHECKING:
    from workers.parts import Parts

log = structlog.get_logger(__name__)

R = TypeVar("R")

PROVIDER_SECONDS = 10.0
SHARED_SECONDS = 1.0
ON_RECORD = "on record"
# Why comments fail, besides the outcomes of calls of a language model.
NO_LANGUAGE = "no_language"
BROKEN = "error"

Finding = tuple[Detected | None, Outcome | None]


def _kinds(of: type[LanguageModelError]) -> Iterator[type[LanguageModelError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from _kinds(kind)


# A dead letter tells the class of its error.
REASONS = {kind.__name__: kind.outcome for kind in _kinds(LanguageModelError)}


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


AT_ONCE = 500
# What failed is tried again for so long; later an operator has to say so.
TRY_AGAIN = timedelta(days=1)

TRANSLATIONS_SWEPT = counter(
    "backlot_translations_swept",
    "Tasks sent again for comments that waited for too long.",
)


@dataclass(frozen=True)
class Sweep:
    """Looks for comments that wait for longer than `overdue`, while no task waits.

    As long as tasks wait, theirs may be among them.
    """

    comments: Comments
    translate_comment: Actor[..., Any]
    queues: TaskQueues
    overdue: timedelta
    # Whether a language model is there for what was skipped without one.
    can_translate: bool

    def run(self, conn: Connection[TupleRow]) -> int:
        """Send the tasks that are missing; return how many. Raise BrokerAway, psycopg.Error."""
        if any(d.waiting or d.delayed for d in self.queues.depths() if d.queue == TRANSLATION):
            return 0
        reasons = (*PASSING, NO_LANGUAGE_MODEL) if self.can_translate else PASSING
        found = self.comments.untranslated(conn, self.overdue, reasons, TRY_AGAIN, AT_ONCE)
        sweep = f"sweep-{uuid4()}"
        origin = {"correlation_id": sweep, "causation_id": sweep}
        for comment_id in found:
            enqueue(self.translate_comment, str(comment_id), **origin)
            TRANSLATIONS_SWEPT.inc()
        return len(found)


def sweep_job(sweep: Sweep, database_url: str, every: float) -> Job:
    """Return the job that sweeps; one process at a time does."""

    async def run(conn: ThreadedConnection) -> None:
        sent = await conn.do(sweep.run)
        if sent:
            log.warning("translations_swept", comments=sent)

    @asynccontextmanager
    async def session() -> AsyncIterator[Run]:
        async with leading(database_url, "translation sweep") as conn:
            yield lambda: run(conn)

    outage = Outage("sweep_postponed", (psycopg.Error, BrokerAway))
    return Job("translation sweep", every, session, outage, at_once=False)


def subscriptions(
    parts: Parts, bus: CommandBus, tasks: Tasks
) -> Iterator[Subscription[MessageBatch]]:
    """Have comments translated that were posted or edited."""
    translates = may_translate(parts.settings)
    settings, task = parts.settings.translation, tasks.translate_comment
    yield parts.consume(make_consumer(settings, task, bus, translates=translates))


def sweeps(parts: Parts, tasks: Tasks) -> Iterator[Job]:
    """Have comments translated that wait for too long."""
    settings = parts.settings
    sweep = Sweep(
        parts.models[Comments],
        tasks.translate_comment,
        task_queues(settings.tasks),
        overdue=timedelta(seconds=settings.translation.overdue_seconds),
        can_translate=settings.llm.configured,
    )
    yield sweep_job(sweep, parts.database_url, settings.translation.sweep_seconds)
