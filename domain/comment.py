"""Comments, their edits, and what was found out about their language."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from domain.errors import NotAllowed, NotFound
from domain.model import BEGINNING, Aggregate, Origin, Personal
from domain.text import check_text

MAX_LENGTH = 10_000

MOST_TARGETS = 16
"""Into so many languages one revision is translated, beside the one of every comment."""

UNSETTLED = ("pending", "skipped", "failed")
TranslationStatus = Literal["pending", "not_needed", "translated", "failed", "skipped"]
# What is known of a translation into a language gives way only to what stands further behind.
RANKS: tuple[TranslationStatus, ...] = ("pending", "skipped", "failed", "not_needed", "translated")


def _to_english(payload: dict[str, Any]) -> None:
    payload["target_language"] = "en"


class Comment(Aggregate):
    """One viewer's comment on a video.

    `revision` counts posted and edited texts from 1; what a translator says about an older
    revision than the present one is dropped.
    """

    TOPIC = "comment"

    class Event(Aggregate.Event):
        video_id: UUID
        author: Annotated[str, Personal("author")]

    class Posted(Event):
        TOPIC = "comment.posted.v1"
        content: Annotated[str, Personal("author")]

        def apply(self, comment: Comment) -> None:
            comment.video_id = self.video_id
            comment.author = self.author
            comment.content = self.content
            comment.revision = 1
            comment.posted_at = comment.written_at = self.timestamp

    class Edited(Event):
        TOPIC = "comment.edited.v1"
        content: Annotated[str, Personal("author")]

        def apply(self, comment: Comment) -> None:
            comment.content = self.content
            comment.revision += 1
            comment.written_at = self.timestamp
            comment.language = comment.confidence = None
            comment.translation = comment.translated_text = None
            comment.translation_status = "pending"
            comment.targets = {}

    class Deleted(Event):
        TOPIC = "comment.deleted.v1"

        def apply(self, comment: Comment) -> None:
            comment.deleted = True

    class LanguageDetected(Event):
        """Languages are ISO 639-1 codes, `confidence` lies in 0..1, None where nobody knows it.

        What is written in the target language already needs no translation.
        """

        TOPIC = "comment.language_detected.v2"
        UPCASTS = MappingProxyType({"comment.language_detected.v1": _to_english})
        revision: int
        language: str
        confidence: float | None
        detector: str
        target_language: str

        def apply(self, comment: Comment) -> None:
            comment.language, comment.confidence = self.language, self.confidence
            if self.language == self.target_language:
                comment.translation_status = "not_needed"

    class Translated(Event):
        TOPIC = "comment.translated.v1"
        revision: int
        original_language: str
        target_language: str
        translated_text: Annotated[str, Personal("author")]
        model: str
        prompt_version: str

        def apply(self, comment: Comment) -> None:
            comment.language = comment.language or self.original_language
            comment.translated_text = self.translated_text
            comment.translation = (self.target_language, self.model, self.prompt_version)
            comment.translation_status = "translated"

    class TranslationFailed(Event):
        TOPIC = "comment.translation_failed.v1"
        revision: int
        reason: str

        def apply(self, comment: Comment) -> None:
            comment.translation_status = "failed"

    class TranslationSkipped(Event):
        """Nobody translates it: there is nothing to translate, or (`needed`) nobody who could."""

        TOPIC = "comment.translation_skipped.v1"
        revision: int
        needed: bool
        reason: str

        def apply(self, comment: Comment) -> None:
            comment.translation_status = "skipped" if self.needed else "not_needed"

    class TargetTranslated(Event):
        """A reader has asked for this language, beside the one that every comment gets."""

        TOPIC = "comment.translated_to.v1"
        revision: int
        original_language: str
        target_language: str
        translated_text: Annotated[str, Personal("author")]
        model: str
        prompt_version: str

        def apply(self, comment: Comment) -> None:
            comment.targets = {**comment.targets, self.target_language: "translated"}

    class TargetNotTranslated(Event):
        """A reader has asked for this language, and there is no translation into it."""

        TOPIC = "comment.not_translated_to.v1"
        revision: int
        target_language: str
        status: str
        reason: str

        def apply(self, comment: Comment) -> None:
            status = cast("TranslationStatus", self.status)
            comment.targets = {**comment.targets, self.target_language: status}

    def __init__(self) -> None:
        self.video_id: UUID | None = None
        self.author = ""
        self.content = ""
        self.revision = 0
        self.posted_at = self.written_at = BEGINNING
        self.language: str | None = None
        self.confidence: float | None = None
        self.translated_text: str | None = None
        self.translation: tuple[str, str, str] | None = None
        self.translation_status: TranslationStatus = "pending"
        self.targets: dict[str, TranslationStatus] = {}
        self.deleted = False

    def post(self, video_id: UUID, content: str, origin: Origin) -> None:
        """Post the comment; the actor becomes its author. Once posted, this records nothing."""
        if self.version > 0:
            return
        check_text(content, "content", max_length=MAX_LENGTH)
        self.record(self.Posted, origin, video_id=video_id, author=origin.actor, content=content)

    def edit(self, content: str, origin: Origin) -> None:
        """Replace the text; the same text again records nothing."""
        self._require_author(origin)
        check_text(content, "content", max_length=MAX_LENGTH)
        if content != self.content:
            self._record(self.Edited, origin, content=content)

    def delete(self, origin: Origin) -> None:
        """Take the comment out of every read."""
        self._require_author(origin)
        self._record(self.Deleted, origin)

    def detect_language(
        self,
        revision: int,
        language: str,
        confidence: float | None,
        detector: str,
        target_language: str,
        origin: Origin,
    ) -> None:
        """Record the language of a revision; a stale revision records nothing.

        Known or not, it is recorded when it settles the matter: the target may have changed since.
        """
        settles = language == target_language and self.translation_status in UNSETTLED
        if self._is_present(revision) and (language != self.language or settles):
            self._record(
                self.LanguageDetected,
                origin,
                revision=revision,
                language=language,
                confidence=confidence,
                detector=detector,
                target_language=target_language,
            )

    def translate(
        self,
        revision: int,
        original_language: str,
        target_language: str,
        translated_text: str,
        model: str,
        prompt_version: str,
        origin: Origin,
    ) -> None:
        """Record a translation of a revision; a stale revision records nothing.

        Neither does another one by the same model and prompt: a repeated task's wording may differ.
        """
        made = (target_language, model, prompt_version)
        if self._is_present(revision) and made != self.translation:
            self._record(
                self.Translated,
                origin,
                revision=revision,
                original_language=original_language,
                target_language=target_language,
                translated_text=translated_text,
                model=model,
                prompt_version=prompt_version,
            )

    def fail_translation(self, revision: int, reason: str, origin: Origin) -> None:
        """Record that a revision could not be translated, unless that or better is known."""
        if self._is_present(revision) and self.translation_status in ("pending", "skipped"):
            self._record(self.TranslationFailed, origin, revision=revision, reason=reason)

    def skip_translation(self, revision: int, needed: bool, reason: str, origin: Origin) -> None:
        """Record that nobody will translate a revision, unless more is known of it."""
        if self._is_present(revision) and self.translation_status == "pending":
            self._record(
                self.TranslationSkipped, origin, revision=revision, needed=needed, reason=reason
            )

    def translate_target(
        self,
        revision: int,
        original_language: str,
        target_language: str,
        translated_text: str,
        model: str,
        prompt_version: str,
        origin: Origin,
    ) -> None:
        """Record a translation that readers asked for, once for a revision and a language."""
        if self._is_news(revision, target_language, "translated"):
            self._record(
                self.TargetTranslated,
                origin,
                revision=revision,
                original_language=original_language,
                target_language=target_language,
                translated_text=translated_text,
                model=model,
                prompt_version=prompt_version,
            )

    def leave_target(
        self,
        revision: int,
        target_language: str,
        status: TranslationStatus,
        reason: str,
        origin: Origin,
    ) -> None:
        """Record that there is no translation for readers who ask, unless better is known."""
        if self._is_news(revision, target_language, status):
            self._record(
                self.TargetNotTranslated,
                origin,
                revision=revision,
                target_language=target_language,
                status=status,
                reason=reason,
            )

    def target_status(self, target_language: str) -> TranslationStatus:
        """Return where the translation that readers asked for stands."""
        return self.targets.get(target_language, "pending")

    def require_posted(self) -> UUID:
        """Return the video that the comment is on; raise NotFound unless the comment stands."""
        if self.video_id is None or self.deleted:
            raise NotFound("There is no such comment.")
        return self.video_id

    def _record(self, event: type[Event], origin: Origin, **fields: Any) -> None:
        self.record(event, origin, video_id=self.video_id, author=self.author, **fields)

    def _is_present(self, revision: int) -> bool:
        return not self.deleted and revision == self.revision

    def _is_news(self, revision: int, target: str, status: TranslationStatus) -> bool:
        known = target in self.targets or len(self.targets) < MOST_TARGETS
        ahead = RANKS.index(status) > RANKS.index(self.target_status(target))
        return known and ahead and self._is_present(revision)

    def _require_author(self, origin: Origin) -> None:
        self.require_posted()
        if origin.actor != self.author:
            raise NotAllowed("Only its author can change a comment.")
