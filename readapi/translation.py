"""Translations that readers of comments ask for.

A read waits for nobody: a translation that is missing is put in a queue here, and one coroutine
sends a task for each comment and language, once, as long as the day's budgets last. Without Redis
none is sent, and a later reader asks again.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from asyncio import Queue, QueueFull
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, NamedTuple, cast
from uuid import UUID

import structlog
from dramatiq import Actor
from fastapi import Query, Request
from redis.asyncio import Redis

from engine.personal_data import Deleted, PersonalKeys
from infra.cache import OptionalRedis
from infra.http.auth import Identity
from infra.http.problems import Problem
from infra.http.requests import header
from infra.http.shapes import Comment
from infra.llm.errors import NO_LANGUAGE_MODEL, PASSING, UNPAID
from infra.metrics import counter
from infra.settings.features import TranslationSettings
from infra.tasks.queues import BrokerAway, enqueue
from projections.comments import CommentRow
from projections.translation import TranslationRow

log = structlog.get_logger(__name__)

Lang = Annotated[
    str | None,
    Query(
        description="The language of the translations, ISO 639-1; before `Accept-Language`.",
        examples=["en"],
    ),
]

# What is said of a comment without words, or in no language: it is the same in all of them.
IN_NO_LANGUAGE = ("no_words", "no_language")
MAY_PASS = (*PASSING, *UNPAID, NO_LANGUAGE_MODEL)
MOST_PREFERENCES = 50
# Reads that wait to have their translations asked for.
MOST_WAITING = 1000

PREFIX = "backlot:translation:{requests}"
# Longer than the day, for processes whose clocks differ.
DAY_SECONDS = 2 * 86_400
# Of those that nobody has asked for lately: as many as both budgets have left are granted.
GRANT = """
local left = math.huge
for place = 1, 2 do
    left = math.min(left, ARGV[place] - (redis.call('GET', KEYS[place]) or '0'))
end
local answer = {0}
for place = 3, #KEYS do
    if redis.call('EXISTS', KEYS[place]) == 0 then
        if #answer <= left then
            redis.call('SET', KEYS[place], '', 'EX', ARGV[3])
            answer[#answer + 1] = place - 3
        else
            answer[1] = answer[1] + 1
        end
    end
end
if #answer > 1 then
    for place = 1, 2 do
        redis.call('INCRBY', KEYS[place], #answer - 1)
        redis.call('EXPIRE', KEYS[place], ARGV[4])
    end
end
return answer
"""

PERSONAL = (
    PersonalKeys(
        name="redis.translation_requests",
        holds="how many translations somebody asked for on a day",
        kept="two days",
        pattern=f"{PREFIX}:*:{{digest}}",
        forget=Deleted(),
    ),
)

TRANSLATION_REQUESTS = counter(
    "backlot_translation_requests",
    "Translations that readers lacked: sent as a task, over_budget, too_many at once, broker_away.",
    ("outcome",),
)
TRANSLATION_REQUEST_FAILURES = counter(
    "backlot_translation_request_failures",
    "Times that Redis did not answer for what readers asked to be translated.",
)


def preferred(accept_language: str, languages: Collection[str]) -> str | None:
    """Return the language that the header likes best, None where it names none of them.

    A range matches by its first part: `de-AT` asks for `de`. https://www.rfc-editor.org/rfc/rfc9110
    section 12.5.4; what is not of its form is passed over.
    """
    best, found = 0.0, None
    for item in accept_language.split(",")[:MOST_PREFERENCES]:
        tag, _, parameter = item.partition(";")
        language = tag.strip().lower().partition("-")[0]
        weight = _weight(parameter)
        if weight > best and language in languages:
            best, found = weight, language
    return found


def _weight(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if not name:
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if name.strip().lower() == "q" and 0 <= weight <= 1 else 0.0


class MissingTranslation(NamedTuple):
    """A comment without a translation into a language; its text was written at that time."""

    comment_id: UUID
    written_at: datetime
    language: str

    @property
    def key(self) -> str:
        """Where it is marked as asked for; an edited text is another one."""
        written = round(self.written_at.timestamp() * 1_000_000)
        return f"{PREFIX}:{self.comment_id}:{self.language}:{written}"


class ReadRequest(NamedTuple):
    """Who reads, where that is known, and with which request."""

    caller: Identity | None
    request_id: str


class Choice(NamedTuple):
    """The language that a reader has chosen, None without a choice that can be met.

    `on_demand` is the same, but None where every comment is translated to that language anyway.
    """

    language: str | None
    on_demand: str | None

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says of it."""
        varies = {"Vary": "Accept-Language"}
        return varies if self.language is None else {**varies, "Content-Language": self.language}


class TranslationState(NamedTuple):
    """What a reader is told of a translation; whether somebody has to be asked for it."""

    status: Any
    text: str | None = None
    missing: bool = False


class TranslationRequests:
    """The languages that readers may choose, and what they lack; to be used from one event loop."""

    def __init__(
        self,
        redis: Redis,
        settings: TranslationSettings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._redis = OptionalRedis(redis, "translation_requests", TRANSLATION_REQUEST_FAILURES)
        self._grant = redis.register_script(GRANT)
        self._settings = settings
        self._usual = settings.target_language
        self._languages = settings.on_demand or (self._usual,)
        self._clock = clock
        self._waiting: Queue[tuple[ReadRequest, list[MissingTranslation]]] = Queue(MOST_WAITING)
        # Where nobody sends tasks, nothing waits.
        self._served = False

    def choice(self, request: Request, lang: str | None) -> Choice:
        """Return the reader's choice; raise Problem 422 for a `lang` that nobody translates to."""
        usual, languages = self._usual, self._languages
        if lang is None:
            lang = preferred(header(request.scope, b"accept-language") or "", languages)
        elif lang not in languages:
            message = f"must be a language that comments are translated to: {', '.join(languages)}"
            errors = [{"field": "lang", "message": message}]
            raise Problem(422, "invalid", f"`lang`: {message}.", errors=errors)
        return Choice(lang, None if lang == usual else lang)

    def shown(
        self,
        rows: Sequence[CommentRow],
        found: Mapping[UUID, TranslationRow],
        language: str | None,
        read: ReadRequest,
    ) -> list[Comment]:
        """Return the comments in a language, and have translated what they lack; None: as usual.

        `found` are the translations into that language that are known.
        """
        if language is None:
            return [Comment(**row._asdict(), user_id=row.author) for row in rows]
        states = [self._state(row, found.get(row.comment_id), language) for row in rows]
        self._want(
            read,
            [
                MissingTranslation(row.comment_id, row.written_at, language)
                for row, state in zip(rows, states, strict=True)
                if state.missing
            ],
        )
        return [_in_state(row, state) for row, state in zip(rows, states, strict=True)]

    def _state(
        self, row: CommentRow, result: TranslationRow | None, language: str
    ) -> TranslationState:
        if result is not None:
            may_pass = result.status != "translated" and result.reason in MAY_PASS
            return TranslationState(result.status, result.translated_text, may_pass)
        if row.translation_status == "pending":
            # Its language is being found out; that comes first.
            return TranslationState("pending")
        sure = row.confidence is None or row.confidence >= self._settings.target_confidence
        settled = row.translation_status == "not_needed" and row.reason in IN_NO_LANGUAGE
        if settled or (row.language == language and sure):
            return TranslationState("not_needed")
        return TranslationState("pending", missing=True)

    def _want(self, read: ReadRequest, missing: list[MissingTranslation]) -> None:
        if not missing or not self._served:
            return
        try:
            self._waiting.put_nowait((read, missing))
        except QueueFull:
            TRANSLATION_REQUESTS.labels("too_many").inc(len(missing))

    async def run(self, task: Actor[..., Any]) -> None:
        """Send a task for each translation that readers lack, until cancelled."""
        self._served = True
        while True:
            read, missing = await self._waiting.get()
            granted = await self._granted(read.caller, missing)
            if granted:
                await self._send(task, granted, read.request_id)
            self._waiting.task_done()

    async def _granted(
        self, caller: Identity | None, missing: Sequence[MissingTranslation]
    ) -> list[MissingTranslation]:
        """Return what nobody has asked for lately, as far as the budgets go, and count it."""
        budget, limits = self._budget(caller)
        keys = [*budget, *(each.key for each in missing)]
        args = [*limits, math.ceil(self._settings.overdue_seconds), DAY_SECONDS]
        answer = await self._redis.ask(lambda _: self._grant(keys=keys, args=args))
        refused, *granted = cast("list[int]", answer or [0])
        TRANSLATION_REQUESTS.labels("over_budget").inc(refused)
        return [missing[place] for place in granted]

    def _budget(self, caller: Identity | None) -> tuple[list[str], list[int]]:
        """Return where the day's requests of all and of the caller are counted, and the limits.

        Readers without a token are one caller: whoever reads without can be anybody anew.
        """
        settings, today = self._settings, self._clock().astimezone(UTC).date()
        known = caller is not None and not caller.anonymous
        most = settings.user_requests_per_day if known else settings.anonymous_requests_per_day
        name = _digest(caller.person) if caller is not None and known else "anonymous"
        return [_day_key(today), f"{_day_key(today)}:{name}"], [settings.requests_per_day, most]

    async def _send(
        self, task: Actor[..., Any], granted: Sequence[MissingTranslation], request_id: str
    ) -> None:
        try:
            await asyncio.to_thread(_enqueue, task, granted, request_id)
        except BrokerAway as error:
            # Some may have been sent; those do no harm twice.
            log.warning("translation_requests_not_sent", error=str(error))
            TRANSLATION_REQUESTS.labels("broker_away").inc(len(granted))
            await self._redis.ask(lambda redis: redis.delete(*(each.key for each in granted)))
        else:
            TRANSLATION_REQUESTS.labels("sent").inc(len(granted))


def _in_state(row: CommentRow, state: TranslationState) -> Comment:
    changes = {"translation_status": state.status, "translated_text": state.text}
    return Comment(**{**row._asdict(), **changes}, user_id=row.author)


def _enqueue(task: Actor[..., Any], granted: Iterable[MissingTranslation], request_id: str) -> None:
    origin = {"correlation_id": request_id, "causation_id": request_id}
    for each in granted:
        enqueue(task, str(each.comment_id), each.language, **origin)


def _day_key(day: date) -> str:
    return f"{PREFIX}:{day.isoformat()}"


def _digest(user_id: str) -> str:
    return hashlib.sha256(user_id.encode()).hexdigest()[:32]
