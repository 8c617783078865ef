"""What was found out about a comment's language, recorded: replays need no provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from domain.comment import Comment, TranslationStatus
from domain.model import Origin
from engine.command_bus import Aggregates, Command


@dataclass(frozen=True, slots=True)
class Detected:
    """The language (ISO 639-1) that a detector found; `confidence` 0..1, None where unknown."""

    language: str
    confidence: float | None
    detector: str


@dataclass(frozen=True, slots=True)
class TranslatedText:
    """The text in the target language, and what made it."""

    original_language: str
    text: str
    model: str
    prompt_version: str


@dataclass(frozen=True, slots=True)
class Failed:
    """No translation came, for a reason in a word."""

    reason: str


@dataclass(frozen=True, slots=True)
class Skipped:
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
        if self.detected is not None:
            comment.detect_language(
                self.revision,
                self.detected.language,
                self.detected.confidence,
                self.detected.detector,
                self.target_language,
                origin,
            )
        if self.outcome is not None:
            self._record(comment, self.outcome, origin)
        return comment.translation_status

    def _record(self, comment: Comment, outcome: Outcome, origin: Origin) -> None:
        if isinstance(outcome, Failed):
            comment.fail_translation(self.revision, outcome.reason, origin)
        elif isinstance(outcome, Skipped):
            comment.skip_translation(self.revision, outcome.needed, outcome.reason, origin)
        else:
            comment.translate(
                self.revision,
                outcome.original_language,
                self.target_language,
                outcome.text,
                outcome.model,
                outcome.prompt_version,
                origin,
            )
