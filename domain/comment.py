"""Comments, their edits, who may see them, and what was found out about their language."""

from __future__ import annotations

from dataclasses import field
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from domain.errors import Conflict, NotAllowed, NotFound
from domain.model import BEGINNING, Aggregate, Origin, Personal
from domain.moderation import ActingAs, Hold, HoldCause, Standing, check_stated_reason
from domain.text import check_text

MAX_LENGTH = 10_000

MOST_TARGETS = 16
"""Into so many languages one revision is translated, beside the one of every comment."""

UNKNOWN = "There is no such comment."
UNSETTLED = ("pending", "skipped", "failed")
TranslationStatus = Literal["pending", "not_needed", "translated", "failed", "skipped"]
# What is known of a translation into a language gives way only to what stands further behind.
RANKS: tuple[TranslationStatus, ...] = ("pending", "skipped", "failed", "not_needed", "translated")


def _to_english(payload: dict[str, Any]) -> None:
    payload["target_language"] = "en"


class Comment(Aggregate):
    """One viewer's comment on a video.

    `revision` counts posted and edited texts from 1; what a translator says about an older
    revision than the present one is dropped. Each kind of event either changes who sees the
    comment or does not, so that it counts, and is published, by its kind alone.
    """

    TOPIC = "comment"

    class Event(Aggregate.Event):
        video_id: UUID
        author: Annotated[str, Personal("author")]
        # The comment that a reply answers, which is no reply itself.
        parent_id: UUID | None = field(default=None, kw_only=True)

    class Posted(Event):
        TOPIC = "comment.posted.v1"
        content: Annotated[str, Personal("author")]

        def apply(self, comment: Comment) -> None:
            comment._begin(self)

    class Edited(Event):
        TOPIC = "comment.edited.v1"
        content: Annotated[str, Personal("author")]

        def apply(self, comment: Comment) -> None:
            comment._revise(self)

    class Deleted(Event):
        """Its author, or who forgets the author, took away what everybody could see."""

        TOPIC = "comment.deleted.v1"

        def apply(self, comment: Comment) -> None:
            comment.standing = Standing.DELETED

    class Submitted(Event):
        """Written, and seen by nobody else until it is approved."""

        TOPIC = "comment.submitted.v1"
        content: Annotated[str, Personal("author")]
        cause: str
        video_owner: Annotated[str, Personal("video_owner")]

        def apply(self, comment: Comment) -> None:
            comment._begin(self)
            comment._hold(self.cause)

    class Resubmitted(Event):
        """What waits for approval has another text."""

        TOPIC = "comment.resubmitted.v1"
        content: Annotated[str, Personal("author")]
        revision: int
        cause: str

        def apply(self, comment: Comment) -> None:
            comment._revise(self)
            comment._hold(self.cause)

    class Withheld(Event):
        """Everybody could see it, and nobody its new text until that is approved."""

        TOPIC = "comment.withheld.v1"
        content: Annotated[str, Personal("author")]
        revision: int
        cause: str
        video_owner: Annotated[str, Personal("video_owner")]

        def apply(self, comment: Comment) -> None:
            comment._revise(self)
            comment._hold(self.cause)

    class Approved(Event):
        """What was held is there for everybody."""

        TOPIC = "comment.approved.v1"
        content: Annotated[str, Personal("author")]
        acted_as: str

        def apply(self, comment: Comment) -> None:
            comment.standing = Standing.POSTED

    class Removed(Event):
        """What everybody could see is there for its author only."""

        TOPIC = "comment.removed.v1"
        acted_as: str
        stated_reason: Annotated[str | None, Personal("actor")]

        def apply(self, comment: Comment) -> None:
            comment._remove(self.acted_as, self.stated_reason)

    class Rejected(Event):
        """What was held is removed, or what the video's owner had removed is by a moderator."""

        TOPIC = "comment.rejected.v1"
        acted_as: str
        stated_reason: Annotated[str | None, Personal("actor")]

        def apply(self, comment: Comment) -> None:
            comment._remove(self.acted_as, self.stated_reason)

    class Restored(Event):
        """What was removed is there for everybody."""

        TOPIC = "comment.restored.v1"
        content: Annotated[str, Personal("author")]
        acted_as: str
        stated_reason: Annotated[str | None, Personal("actor")]

        def apply(self, comment: Comment) -> None:
            comment.standing = Standing.POSTED
            comment.removed_as = comment.stated_reason = None

    class Withdrawn(Event):
        """Its author, or who forgets the author, took away what nobody else could see."""

        TOPIC = "comment.withdrawn.v1"

        def apply(self, comment: Comment) -> None:
            comment.standing = Standing.DELETED

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
        self.parent_id: UUID | None = None
        self.author = self.content = ""
        self.revision = 0
        self.posted_at = self.written_at = BEGINNING
        self.language: str | None = None
        self.confidence: float | None = None
        self.translated_text: str | None = None
        self.translation: tuple[str, str, str] | None = None
        self.translation_status: TranslationStatus = "pending"
        self.targets: dict[str, TranslationStatus] = {}
        self.standing: Standing | None = None
        self.held_for: HoldCause | None = None
        self.removed_as: ActingAs | None = None
        self.stated_reason: str | None = None

    def post(
        self,
        video_id: UUID,
        content: str,
        origin: Origin,
        hold: Hold | None = None,
        parent_id: UUID | None = None,
    ) -> None:
        """Post or hold the comment of the actor; once that was done, this records nothing."""
        if self.version > 0:
            return
        check_text(content, "content", max_length=MAX_LENGTH)
        written = {"video_id": video_id, "author": origin.actor, "content": content}
        if hold is None:
            self.record(self.Posted, origin, **written, parent_id=parent_id)
        else:
            self.record(self.Submitted, origin, **written, parent_id=parent_id, **hold._asdict())

    def edit(self, content: str, origin: Origin, hold: Hold | None = None) -> None:
        """Replace the text, and hold it if need be; the same text again records nothing.

        What is held stays so.
        """
        self.require_author(origin)
        if self.standing is Standing.REMOVED:
            raise self._conflict("The comment was removed, so it can't be edited.")
        check_text(content, "content", max_length=MAX_LENGTH)
        if content == self.content:
            return
        written = {"content": content, "revision": self.revision + 1}
        if self.standing is Standing.HELD:
            cause = hold.cause if hold else self.held_for
            self._record(self.Resubmitted, origin, **written, cause=cause)
        elif hold is not None:
            self._record(self.Withheld, origin, **written, **hold._asdict())
        else:
            self._record(self.Edited, origin, content=content)

    def delete(self, origin: Origin) -> None:
        """Take the comment out of every read, for good."""
        self.require_author(origin)
        self.erase(origin)

    def erase(self, origin: Origin) -> None:
        """Delete the comment of an author who is forgotten; one that is deleted records nothing."""
        if self.standing not in (None, Standing.DELETED):
            kind = self.Deleted if self.standing is Standing.POSTED else self.Withdrawn
            self._record(kind, origin)

    def remove(self, acted_as: ActingAs, stated_reason: str | None, origin: Origin) -> None:
        """Show the comment to nobody but its author; what is removed already records nothing.

        A moderator may remove what the video's owner has removed, who can't restore it then.
        """
        self.require_known()
        check_stated_reason(stated_reason)
        above = acted_as is ActingAs.MODERATOR and self.removed_as is ActingAs.OWNER
        if self.standing is not Standing.REMOVED or above:
            kind = self.Removed if self.standing is Standing.POSTED else self.Rejected
            self._record(kind, origin, acted_as=acted_as, stated_reason=stated_reason)

    def restore(self, acted_as: ActingAs, stated_reason: str | None, origin: Origin) -> None:
        """Show a removed comment to everybody again; what is posted records nothing.

        Raise NotAllowed to its author, and to the video's owner where a moderator removed it;
        Conflict for what waits for approval.
        """
        self._require_other(origin, "restore")
        check_stated_reason(stated_reason)
        if self.standing is Standing.HELD:
            raise self._conflict("The comment waits for approval: approve it.")
        if acted_as is ActingAs.OWNER and self.removed_as is ActingAs.MODERATOR:
            raise NotAllowed("A moderator removed this comment; only a moderator can restore it.")
        if self.standing is Standing.REMOVED:
            told = {"acted_as": acted_as, "stated_reason": stated_reason}
            self._record(self.Restored, origin, content=self.content, **told)

    def approve(self, acted_as: ActingAs, revision: int | None, origin: Origin) -> None:
        """Show a held comment to everybody; what is posted records nothing.

        `revision` is the one that was looked at, if that is known. Raise NotAllowed to its author;
        Conflict where the comment was removed, or has another text than was looked at.
        """
        self._require_other(origin, "approve")
        if self.standing is Standing.REMOVED:
            raise self._conflict("The comment was removed: restore it.")
        if self.standing is Standing.HELD:
            if revision not in (None, self.revision):
                message = "The comment has another text than the one that was looked at."
                raise self._conflict(message, revision=self.revision)
            self._record(self.Approved, origin, content=self.content, acted_as=acted_as)

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
            known = {"revision": revision, "target_language": target_language}
            found = {"language": language, "confidence": confidence, "detector": detector}
            self._record(self.LanguageDetected, origin, **known, **found)

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
            known = {"revision": revision, "original_language": original_language}
            text = {"target_language": target_language, "translated_text": translated_text}
            made_by = {"model": model, "prompt_version": prompt_version}
            self._record(self.Translated, origin, **known, **text, **made_by)

    def fail_translation(self, revision: int, reason: str, origin: Origin) -> None:
        """Record that a revision could not be translated, unless that or better is known."""
        if self._is_present(revision) and self.translation_status in ("pending", "skipped"):
            self._record(self.TranslationFailed, origin, revision=revision, reason=reason)

    def skip_translation(self, revision: int, needed: bool, reason: str, origin: Origin) -> None:
        """Record that nobody will translate a revision, unless more is known of it."""
        if self._is_present(revision) and self.translation_status == "pending":
            why = {"needed": needed, "reason": reason}
            self._record(self.TranslationSkipped, origin, revision=revision, **why)

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
            known = {"revision": revision, "original_language": original_language}
            text = {"target_language": target_language, "translated_text": translated_text}
            made_by = {"model": model, "prompt_version": prompt_version}
            self._record(self.TargetTranslated, origin, **known, **text, **made_by)

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
            told = {"target_language": target_language, "status": status, "reason": reason}
            self._record(self.TargetNotTranslated, origin, revision=revision, **told)

    def target_status(self, target_language: str) -> TranslationStatus:
        """Return where the translation that readers asked for stands."""
        return self.targets.get(target_language, "pending")

    def require_posted(self) -> UUID:
        """Return the video that the comment is on; raise NotFound unless everybody sees it."""
        if self.standing is not Standing.POSTED:
            raise NotFound(UNKNOWN)
        return self.require_known()

    def require_thread(self, video_id: UUID) -> UUID:
        """Return the comment to which a reply to this one belongs: the one that is no reply itself.

        Raise NotFound unless everybody sees this one, on that video.
        """
        if self.require_posted() != video_id:
            raise NotFound(UNKNOWN)
        return self.parent_id or self.id

    def require_known(self) -> UUID:
        """Return the video that the comment is on, whoever sees it; raise NotFound once deleted."""
        if self.video_id is None or self.standing is Standing.DELETED:
            raise NotFound(UNKNOWN)
        return self.video_id

    def not_yours(self, message: str) -> NotAllowed | NotFound:
        """Return what somebody is told who has no right to it: nothing of what they don't see."""
        return NotAllowed(message) if self.standing is Standing.POSTED else NotFound(UNKNOWN)

    def _record(self, event: type[Event], origin: Origin, **fields: Any) -> None:
        keys = {"video_id": self.video_id, "author": self.author, "parent_id": self.parent_id}
        self.record(event, origin, **keys, **fields)

    def _is_present(self, revision: int) -> bool:
        return self.standing is Standing.POSTED and revision == self.revision

    def _is_news(self, revision: int, target: str, status: TranslationStatus) -> bool:
        known = target in self.targets or len(self.targets) < MOST_TARGETS
        ahead = RANKS.index(status) > RANKS.index(self.target_status(target))
        return known and ahead and self._is_present(revision)

    def require_author(self, origin: Origin) -> None:
        self.require_known()
        if origin.actor != self.author:
            raise self.not_yours("Only its author can change a comment.")

    def _require_other(self, origin: Origin, wish: str) -> None:
        self.require_known()
        if origin.actor == self.author:
            raise NotAllowed(f"Nobody can {wish} a comment of their own.")

    def _conflict(self, message: str, **state: Any) -> Conflict:
        return Conflict(message, commentStatus=self.standing, **state)

    def _begin(self, written: Posted | Submitted) -> None:
        self.video_id, self.parent_id = written.video_id, written.parent_id
        self.author, self.content = written.author, written.content
        self.revision, self.posted_at = 1, written.timestamp
        self.written_at = written.timestamp
        self.standing = Standing.POSTED

    def _revise(self, written: Edited | Resubmitted | Withheld) -> None:
        self.content, self.written_at = written.content, written.timestamp
        self.revision += 1
        self.language = self.confidence = None
        self.translation = self.translated_text = None
        self.translation_status = "pending"
        self.targets = {}

    def _hold(self, cause: str) -> None:
        self.standing, self.held_for = Standing.HELD, HoldCause(cause)

    def _remove(self, acted_as: str, stated_reason: str | None) -> None:
        self.standing = Standing.REMOVED
        self.removed_as, self.stated_reason = ActingAs(acted_as), stated_reason
