"""Comments, their edits, and what was found out about their language."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from domain.errors import NotAllowed, NotFound
from domain.model import BEGINNING, Aggregate, Origin, Personal
from domain.text import check_text

MAX_LENGTH = 10_000


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
            comment.posted_at = self.timestamp

    class Edited(Event):
        TOPIC = "comment.edited.v1"
        content: Annotated[str, Personal("author")]

        def apply(self, comment: Comment) -> None:
            comment.content = self.content
            comment.revision += 1
            comment.language = None
            comment.translation = None
            comment.translation_failed = False

    class Deleted(Event):
        TOPIC = "comment.deleted.v1"

        def apply(self, comment: Comment) -> None:
            comment.deleted = True

    class LanguageDetected(Event):
        """`language` is an ISO 639-1 code, `confidence` lies in 0..1."""

        TOPIC = "comment.language_detected.v1"
        revision: int
        language: str
        confidence: float
        detector: str

        def apply(self, comment: Comment) -> None:
            comment.language = self.language

    class Translated(Event):
        TOPIC = "comment.translated.v1"
        revision: int
        original_language: str
        target_language: str
        translated_text: Annotated[str, Personal("author")]
        model: str
        prompt_version: str

        def apply(self, comment: Comment) -> None:
            comment.translation = (self.target_language, self.model, self.prompt_version)

    class TranslationFailed(Event):
        TOPIC = "comment.translation_failed.v1"
        revision: int
        reason: str

        def apply(self, comment: Comment) -> None:
            comment.translation_failed = True

    def __init__(self) -> None:
        self.video_id: UUID | None = None
        self.author = ""
        self.content = ""
        self.revision = 0
        self.posted_at = BEGINNING
        self.language: str | None = None
        self.translation: tuple[str, str, str] | None = None
        self.translation_failed = False
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
        self, revision: int, language: str, confidence: float, detector: str, origin: Origin
    ) -> None:
        """Record the language of a revision; a stale revision records nothing."""
        if self._is_present(revision) and language != self.language:
            self._record(
                self.LanguageDetected,
                origin,
                revision=revision,
                language=language,
                confidence=confidence,
                detector=detector,
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
        """Record that a revision could not be translated; once, and not for a stale revision."""
        if self._is_present(revision) and not self.translation_failed:
            self._record(self.TranslationFailed, origin, revision=revision, reason=reason)

    def _record(self, event: type[Event], origin: Origin, **fields: Any) -> None:
        self.record(event, origin, video_id=self.video_id, author=self.author, **fields)

    def _is_present(self, revision: int) -> bool:
        return not self.deleted and revision == self.revision

    def _require_author(self, origin: Origin) -> None:
        if self.version == 0 or self.deleted:
            raise NotFound("There is no such comment.")
        if origin.actor != self.author:
            raise NotAllowed("Only its author can change a comment.")
