"""What was found out about a comment's language, recorded: replays need no provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from domain.comment import Comment, TranslationStatus
from domain.model import Origin
from engine.command_bus import Aggregates, Command


class Detected(NamedTuple):
    """The language (ISO 639-1) that a detector found; `confidence` 0..1, None where unknown."""

    language: str
    confidence: float | None
    detector: str


class TranslatedText(NamedTuple):
    """The text in the target language, and what made it."""

    original_language: str
    text: str
    model: str
    prompt_version: str


class Failed(NamedTuple):
    """No translation came, for a reason in a word."""

    reason: str


class Skipped(NamedTuple):
    """Nobody translates it: there is nothing to translate, or (`needed`) nobody who could."""

    needed: bool
    reason: str


Outcome = TranslatedText | Failed | Skipped


@dataclass(frozen=True)
class RecordTranslation(Command[TranslationStatus | None]):
    """Record what was found out about one revision; says where its translation stands then.

    None, and nothing recorded, when the comment is gone; nothing is recorded for a revision that
    is not the present one.
    """

    comment_id: UUID
    revision: int
    target_language: str
    detected: Detected | None = None
    outcome: Outcome | None = None

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> TranslationStatus | None:
        comment = aggregates.get(Comment, self.comment_id)
        if comment.version == 0 or comment.deleted:
            return None
        revision, target = self.revision, self.target_language
        if self.detected is not None:
            comment.detect_language(revision, *self.detected, target, origin)
        match self.outcome:
            case Failed(reason):
                comment.fail_translation(revision, reason, origin)
            case Skipped(needed, reason):
                comment.skip_translation(revision, needed, reason, origin)
            case TranslatedText(language, text, model, prompt_version):
                comment.translate(revision, language, target, text, model, prompt_version, origin)
        return comment.translation_status
