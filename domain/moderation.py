"""Moderation: who may act on what others wrote, what is held, what is reported, who is blocked."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from hashlib import sha1
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from domain.errors import Conflict, Invalid, NotFound
from domain.model import BEGINNING, Aggregate, Origin, Personal
from domain.text import check_text

MAX_REASON = 500
MAX_DETAIL = 1_000
MOST_MENTIONS = 20
MENTION = re.compile(r"(?<![\w@./-])@(\w(?:[\w.-]{0,126}\w)?)")


class Standing(StrEnum):
    """Who may see a comment; only what is posted is read by everybody, counted and translated."""

    POSTED = "posted"
    HELD = "held"
    REMOVED = "removed"
    DELETED = "deleted"


class ActingAs(StrEnum):
    """In which capacity somebody decides about what another one wrote."""

    OWNER = "owner"
    MODERATOR = "moderator"


class HoldCause(StrEnum):
    """Why a comment waits for approval."""

    APPROVAL = "approval"
    WATCHED_WORD = "watched_word"
    MENTION = "mention"


class Hold(NamedTuple):
    """That a comment waits for approval; the video's owner is among those who can give it."""

    cause: HoldCause
    video_owner: str


def check_stated_reason(text: str | None) -> None:
    """Raise Invalid for a reason that shows nothing or has more than 500 characters."""
    if text is not None:
        check_text(text, "reason", max_length=MAX_REASON)


def mentions(content: str) -> list[str]:
    """Return the user ids that a text names as `@id`, each once, at most 20 and one more."""
    found = dict.fromkeys(match[1] for match in MENTION.finditer(content))
    return list(found)[: MOST_MENTIONS + 1]


def _stream(kind: str, *parts: str | bytes) -> UUID:
    """Return the id of a stream; no name has a NUL, so that two never have the same."""
    told = b"\0".join(part.encode() if isinstance(part, str) else part for part in (kind, *parts))
    return UUID(bytes=sha1(told, usedforsecurity=False).digest()[:16], version=5)


def block_id(blocker: str, blocked: str) -> UUID:
    """Return the stream of one user's block of another one."""
    return _stream("block", blocker, blocked)


class UserBlock(Aggregate):
    """Whether one user keeps another one from commenting on their videos."""

    TOPIC = "blocks"

    class Event(Aggregate.Event):
        blocker: Annotated[str, Personal("blocker")]
        blocked: Annotated[str, Personal("blocked")]

    class Blocked(Event):
        TOPIC = "blocks.blocked.v1"

        def apply(self, block: UserBlock) -> None:
            block.stands = True

    class Unblocked(Event):
        TOPIC = "blocks.unblocked.v1"

        def apply(self, block: UserBlock) -> None:
            block.stands = False

    def __init__(self) -> None:
        self.stands = False

    @classmethod
    def stream_of(cls, fields: Mapping[str, Any]) -> UUID:
        return block_id(fields["blocker"], fields["blocked"])

    def block(self, blocked: str, origin: Origin) -> None:
        """Block the user; blocking again records nothing. Raise Invalid for oneself."""
        if blocked == origin.actor:
            raise Invalid("Nobody can block themselves.", field="userId")
        if not self.stands:
            self.record(self.Blocked, origin, blocker=origin.actor, blocked=blocked)

    def unblock(self, blocked: str, origin: Origin) -> None:
        """Take the block back; without one this records nothing."""
        if self.stands:
            self.record(self.Unblocked, origin, blocker=origin.actor, blocked=blocked)


class ThingKind(StrEnum):
    """What can be reported."""

    COMMENT = "comment"
    VIDEO = "video"


class ReportReason(StrEnum):
    """What is wrong with a thing, as its reporter says."""

    SPAM = "spam"
    HARASSMENT = "harassment"
    HATE = "hate"
    VIOLENCE = "violence"
    SEXUAL = "sexual"
    DANGEROUS = "dangerous"
    MISINFORMATION = "misinformation"
    RIGHTS = "rights"
    OTHER = "other"


class Thing(NamedTuple):
    """A comment, or a video, and the video that it is on, or is."""

    kind: ThingKind
    thing_id: UUID
    video_id: UUID


def report_id(thing_id: UUID, reporter: str) -> UUID:
    """Return the stream of one viewer's report of one thing."""
    return _stream("report", thing_id.bytes, reporter)


def case_id(thing_id: UUID) -> UUID:
    """Return the stream of what moderators decide about a thing."""
    return _stream("case", thing_id.bytes)


class ContentReport(Aggregate):
    """One viewer's report of one thing; its stream is the proof that the viewer counts once."""

    TOPIC = "reports"

    class Filed(Aggregate.Event):
        """`round` numbers what moderators decide about the thing, one decision after another."""

        TOPIC = "reports.filed.v1"
        kind: str
        thing_id: UUID
        video_id: UUID
        case_id: UUID
        round: int
        reporter: Annotated[str, Personal("reporter")]
        category: str
        detail: Annotated[str | None, Personal("reporter")]

        def apply(self, report: ContentReport) -> None:
            """That it was filed is all that there is to know."""

    def __init__(self) -> None:
        """A report has no state of its own."""

    @classmethod
    def stream_of(cls, fields: Mapping[str, Any]) -> UUID:
        return report_id(UUID(fields["thing_id"]), fields["reporter"])

    def file(
        self, case: ModerationCase, thing: Thing, why: ReportReason, detail: str | None, by: Origin
    ) -> None:
        """Report the thing, whose case is opened if need be; reporting again records nothing."""
        if detail is not None:
            check_text(detail, "detail", max_length=MAX_DETAIL)
        if self.version > 0:
            return
        case.open(thing, by)
        about = {"case_id": case.id, "round": case.round, "reporter": by.actor}
        self.record(self.Filed, by, **thing._asdict(), **about, category=why, detail=detail)


class Decision(StrEnum):
    """What a moderator does with a reported thing."""

    REMOVE = "remove"
    DISMISS = "dismiss"


class ModerationCase(Aggregate):
    """What moderators decide about one thing: opened by its first report, closed by a decision.

    A later report opens it again. Further ones only look at it, so that they never wait for each
    other.
    """

    TOPIC = "cases"

    class Event(Aggregate.Event):
        kind: str
        thing_id: UUID
        video_id: UUID
        round: int

    class Opened(Event):
        TOPIC = "cases.opened.v1"

        def apply(self, case: ModerationCase) -> None:
            case.thing = Thing(ThingKind(self.kind), self.thing_id, self.video_id)
            case.round, case.decision = self.round, None

    class Decided(Event):
        TOPIC = "cases.decided.v1"
        decision: str
        stated_reason: Annotated[str | None, Personal("actor")]

        def apply(self, case: ModerationCase) -> None:
            case.decision, case.decided_at = Decision(self.decision), self.timestamp

    def __init__(self) -> None:
        self.thing: Thing | None = None
        self.round = 0
        self.decision: Decision | None = None
        self.decided_at = BEGINNING

    @property
    def is_open(self) -> bool:
        """Whether there are reports that nobody has decided about."""
        return self.thing is not None and self.decision is None

    def require_thing(self) -> Thing:
        """Return what it is about; raise NotFound where nothing was ever reported."""
        if self.thing is None:
            raise NotFound("There is no such report.")
        return self.thing

    def open(self, thing: Thing, origin: Origin) -> None:
        """Begin another round; an open case records nothing."""
        if not self.is_open:
            self.record(self.Opened, origin, **thing._asdict(), round=self.round + 1)

    def decide(self, decision: Decision, stated_reason: str | None, origin: Origin) -> None:
        """Close the case; raise Conflict where that is done, with the decision."""
        thing = self.require_thing()
        check_stated_reason(stated_reason)
        if not self.is_open:
            raise Conflict(
                "This was decided before.",
                decision=self.decision,
                decidedAt=self.decided_at.isoformat().replace("+00:00", "Z"),
            )
        told = {"decision": decision, "stated_reason": stated_reason}
        self.record(self.Decided, origin, **thing._asdict(), round=self.round, **told)


# Marks without which words are written as well: of Latin, Greek, Cyrillic, Hebrew and Arabic.
MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc]"
)
# Drawn as nothing, and put between the letters of a word all the same.
UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0]"
)
# Vowel signs of India's scripts belong to their words; Python does not count them as letters.
WORD = re.compile("(?:[^\\W_]|[\u0900-\u0963\u0966-\u0dff])+")
# Scripts that part no words by spaces: Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\U00020000-\U0003ffff]"
)


def normalised(text: str) -> str:
    """Return the text without what does not tell words apart: case, width, accents, the unseen."""
    bare = MARKS.sub("", unicodedata.normalize("NFKD", UNSEEN.sub("", text)))
    return unicodedata.normalize("NFKC", bare.casefold())


class WatchedWords:
    """Words, and phrases, that hold a comment for approval.

    One is made of whole words where spaces part these, and else found anywhere in a text.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._phrases: defaultdict[str, list[Sequence[str]]] = defaultdict(list)
        self._parts: set[str] = set()
        for each in filter(None, (normalised(word).strip() for word in words)):
            first, *_ = phrase = WORD.findall(each) or [""]
            if first and not UNSPACED.search(each):
                self._phrases[first].append(phrase)
            else:
                self._parts.add(each)

    def occur_in(self, text: str) -> bool:
        """Return whether one of them is in the text."""
        text = normalised(text)
        words = WORD.findall(text)
        return any(part in text for part in self._parts) or any(
            words[at : at + len(phrase)] == phrase
            for at, word in enumerate(words)
            for phrase in self._phrases.get(word, ())
        )


NO_WORDS = WatchedWords()
