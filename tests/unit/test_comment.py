"""What a comment admits and refuses, and what it drops."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from domain.comment import MAX_LENGTH, MOST_TARGETS, Comment
from domain.errors import Invalid, NotAllowed, NotFound
from domain.moderation import Standing
from tests.real_inputs import RealInput, each
from tests.unit.given_when_then import AT, by, fact, given

ANN, BOB, TRANSLATOR = by("ann"), by("bob"), by("translation")
VIDEO = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
KEYS: dict[str, Any] = {"video_id": VIDEO, "author": "ann"}
SPANISH = {"language": "es", "confidence": 0.97, "detector": "test", "target_language": "en"}
ENGLISH = {**SPANISH, "language": "en"}
RESULT = {
    "original_language": "es",
    "target_language": "en",
    "translated_text": "How pretty!",
    "model": "model-1",
    "prompt_version": "1",
}

POSTED = fact(Comment.Posted, ANN, **KEYS, content="¡Qué bonito!")
EDITED = fact(Comment.Edited, ANN, **KEYS, content="¡Precioso!")
DELETED = fact(Comment.Deleted, ANN, **KEYS)
DETECTED = fact(Comment.LanguageDetected, TRANSLATOR, **KEYS, revision=1, **SPANISH)
TRANSLATED = fact(Comment.Translated, TRANSLATOR, **KEYS, revision=1, **RESULT)
FAILED = fact(Comment.TranslationFailed, TRANSLATOR, **KEYS, revision=1, reason="refused")
NOBODY = {"needed": True, "reason": "nobody"}
SKIPPED = fact(Comment.TranslationSkipped, TRANSLATOR, **KEYS, revision=1, **NOBODY)


def post(content: str) -> Any:
    return lambda comment: comment.post(VIDEO, content, ANN)


def edit(content: str, origin: Any = ANN) -> Any:
    return lambda comment: comment.edit(content, origin)


def delete(comment: Comment) -> None:
    comment.delete(ANN)


def detect(revision: int, **changes: Any) -> Any:
    found = {**SPANISH, **changes}
    return lambda comment: comment.detect_language(revision, origin=TRANSLATOR, **found)


def translate(revision: int, **changes: Any) -> Any:
    result = {**RESULT, **changes}
    return lambda comment: comment.translate(revision, origin=TRANSLATOR, **result)


def fail(revision: int) -> Any:
    return lambda comment: comment.fail_translation(revision, "refused", TRANSLATOR)


def skip(revision: int) -> Any:
    return lambda comment: comment.skip_translation(revision, origin=TRANSLATOR, **NOBODY)


class TestText:
    @each("texts")
    def test_a_text_has_to_show_something(self, real: RealInput) -> None:
        posted = given(Comment).when(post(real.text))
        edited = given(Comment, POSTED).when(edit(real.text))
        if real.right == "nothing":
            posted.refused(Invalid, "text that can be seen", field="content")
            edited.refused(Invalid, "text that can be seen", field="content")
        else:
            posted.then(fact(Comment.Posted, ANN, **KEYS, content=real.text))
            edited.then(fact(Comment.Edited, ANN, **KEYS, content=real.text))

    def test_the_actor_becomes_the_author(self) -> None:
        comment = given(Comment).when(post("¡Qué bonito!")).then(POSTED)
        assert (comment.author, comment.video_id, comment.posted_at) == ("ann", VIDEO, AT)
        assert (comment.content, comment.revision) == ("¡Qué bonito!", 1)

    @pytest.mark.parametrize("history", [(POSTED,), (POSTED, DELETED)])
    def test_posting_what_was_posted_records_nothing(self, history: Any) -> None:
        given(Comment, *history).when(post("Something else")).then()

    def test_edit(self) -> None:
        comment = given(Comment, POSTED, DETECTED).when(edit("¡Precioso!")).then(EDITED)
        assert (comment.content, comment.revision) == ("¡Precioso!", 2)
        assert comment.language is None

    def test_an_edit_forgets_what_was_said_about_the_older_text(self) -> None:
        comment = given(Comment, POSTED, DETECTED, TRANSLATED).when(edit("¡Precioso!")).then(EDITED)
        assert (comment.language, comment.confidence, comment.translated_text) == (None, None, None)
        assert comment.translation_status == "pending"

    def test_the_same_text_again_records_nothing(self) -> None:
        given(Comment, POSTED, EDITED).when(edit("¡Precioso!")).then()

    def test_delete(self) -> None:
        comment = given(Comment, POSTED).when(delete).then(DELETED)
        assert comment.standing is Standing.DELETED

    @pytest.mark.parametrize("history", [(), (POSTED, DELETED)])
    @pytest.mark.parametrize("command", [edit("Hello"), delete])
    def test_what_is_not_there_can_not_change(self, history: Any, command: Any) -> None:
        given(Comment, *history).when(command).refused(NotFound, "no such comment")

    @pytest.mark.parametrize("command", [edit("Hello", BOB), lambda comment: comment.delete(BOB)])
    def test_only_its_author_changes_it(self, command: Any) -> None:
        given(Comment, POSTED).when(command).refused(NotAllowed, "Only its author")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "needs some text"),
            (" \n\u2003", "needs some text"),
            ("x" * (MAX_LENGTH + 1), "at most 10000 characters; this one has 10001"),
            ("a\x00b", "NUL"),
        ],
    )
    def test_refuses_bad_text(self, content: str, message: str) -> None:
        given(Comment).when(post(content)).refused(Invalid, message, field="content")
        given(Comment, POSTED).when(edit(content)).refused(Invalid, message, field="content")

    @pytest.mark.parametrize(
        "content", ["x", "é" * MAX_LENGTH, "👩‍👩‍👧", "<b>&amp;</b>", "\u202eabc"]
    )
    def test_admits_any_other(self, content: str) -> None:
        given(Comment).when(post(content)).then(fact(Comment.Posted, ANN, **KEYS, content=content))


class TestLanguage:
    def test_detected(self) -> None:
        assert given(Comment, POSTED).when(detect(1)).then(DETECTED).language == "es"

    def test_the_same_language_again_records_nothing(self) -> None:
        given(Comment, POSTED, DETECTED).when(detect(1, confidence=0.5)).then()

    def test_the_same_language_is_recorded_once_it_is_the_target(self) -> None:
        settled = {**SPANISH, "target_language": "es"}
        event = fact(Comment.LanguageDetected, TRANSLATOR, **KEYS, revision=1, **settled)
        again = detect(1, target_language="es")
        given(Comment, POSTED, DETECTED, FAILED).when(again).then(event)
        given(Comment, POSTED, DETECTED, event).when(again).then()
        given(Comment, POSTED, DETECTED, TRANSLATED).when(again).then()

    def test_another_language_is_recorded(self) -> None:
        changed = {**SPANISH, "language": "pt"}
        given(Comment, POSTED, DETECTED).when(detect(1, language="pt")).then(
            fact(Comment.LanguageDetected, TRANSLATOR, **KEYS, revision=1, **changed)
        )

    def test_translated(self) -> None:
        comment = given(Comment, POSTED, DETECTED).when(translate(1)).then(TRANSLATED)
        assert (comment.translation_status, comment.translated_text) == (
            "translated",
            "How pretty!",
        )
        assert (comment.language, comment.confidence) == ("es", 0.97)

    def test_the_translator_says_which_language_it_was_where_nobody_else_did(self) -> None:
        comment = given(Comment, POSTED).when(translate(1)).then(TRANSLATED)
        assert (comment.language, comment.confidence) == ("es", None)

    def test_another_wording_of_the_same_task_records_nothing(self) -> None:
        again = translate(1, translated_text="How lovely!")
        given(Comment, POSTED, TRANSLATED).when(again).then()

    @pytest.mark.parametrize(
        "change", [{"model": "model-2"}, {"prompt_version": "2"}, {"target_language": "de"}]
    )
    def test_another_model_prompt_or_target_is_recorded(self, change: dict[str, str]) -> None:
        expected = fact(Comment.Translated, TRANSLATOR, **KEYS, revision=1, **{**RESULT, **change})
        given(Comment, POSTED, TRANSLATED).when(translate(1, **change)).then(expected)

    def test_failed(self) -> None:
        given(Comment, POSTED).when(fail(1)).then(FAILED)

    def test_failing_again_records_nothing(self) -> None:
        given(Comment, POSTED, FAILED).when(fail(1)).then()

    def test_what_failed_may_succeed_later(self) -> None:
        given(Comment, POSTED, FAILED).when(translate(1)).then(TRANSLATED)

    def test_skipped(self) -> None:
        given(Comment, POSTED).when(skip(1)).then(SKIPPED)

    @pytest.mark.parametrize("known", [SKIPPED, FAILED, TRANSLATED])
    def test_what_more_is_known_of_is_not_skipped(self, known: Any) -> None:
        given(Comment, POSTED, known).when(skip(1)).then()

    def test_what_was_skipped_may_be_translated_or_fail_later(self) -> None:
        given(Comment, POSTED, SKIPPED).when(translate(1)).then(TRANSLATED)
        given(Comment, POSTED, SKIPPED).when(fail(1)).then(FAILED)

    def test_a_translation_outlasts_a_late_failure(self) -> None:
        given(Comment, POSTED, TRANSLATED).when(fail(1)).then()

    @pytest.mark.parametrize(
        ("history", "status"),
        [
            ((), "pending"),
            ((DETECTED,), "pending"),
            (
                (fact(Comment.LanguageDetected, TRANSLATOR, **KEYS, revision=1, **ENGLISH),),
                "not_needed",
            ),
            ((SKIPPED,), "skipped"),
            (
                (
                    fact(
                        Comment.TranslationSkipped,
                        TRANSLATOR,
                        **KEYS,
                        revision=1,
                        needed=False,
                        reason="no words",
                    ),
                ),
                "not_needed",
            ),
            ((FAILED,), "failed"),
            ((SKIPPED, TRANSLATED), "translated"),
            ((TRANSLATED, EDITED), "pending"),
        ],
    )
    def test_its_status(self, history: Any, status: str) -> None:
        comment = given(Comment, POSTED, *history).when(lambda _: None).then()
        assert comment.translation_status == status

    @pytest.mark.parametrize("verb", [detect, translate, fail, skip])
    @pytest.mark.parametrize(
        ("history", "revision"),
        [((), 1), ((POSTED,), 2), ((POSTED, EDITED), 1), ((POSTED, DELETED), 1)],
    )
    def test_what_is_said_about_another_revision_is_dropped(
        self, verb: Any, history: Any, revision: int
    ) -> None:
        given(Comment, *history).when(verb(revision)).then()

    @pytest.mark.parametrize(
        ("verb", "event", "fields"),
        [
            (detect, Comment.LanguageDetected, SPANISH),
            (translate, Comment.Translated, RESULT),
            (fail, Comment.TranslationFailed, {"reason": "refused"}),
            (skip, Comment.TranslationSkipped, NOBODY),
        ],
    )
    def test_an_edit_begins_anew(self, verb: Any, event: Any, fields: Any) -> None:
        given(Comment, POSTED, DETECTED, TRANSLATED, FAILED, EDITED).when(verb(2)).then(
            fact(event, TRANSLATOR, **KEYS, revision=2, **fields)
        )


GERMAN = {**RESULT, "target_language": "de", "translated_text": "Wie schön!"}
IN_GERMAN = fact(Comment.TargetTranslated, TRANSLATOR, **KEYS, revision=1, **GERMAN)


def not_in(language: str, status: str = "failed", revision: int = 1) -> Any:
    found = {"target_language": language, "status": status, "reason": "throttled"}
    return fact(Comment.TargetNotTranslated, TRANSLATOR, **KEYS, revision=revision, **found)


def into_german(revision: int, **changes: Any) -> Any:
    result = {**GERMAN, **changes}
    return lambda comment: comment.translate_target(revision, origin=TRANSLATOR, **result)


def leave(status: str, language: str = "de", revision: int = 1) -> Any:
    return lambda comment: comment.leave_target(revision, language, status, "throttled", TRANSLATOR)


class TestLanguagesThatReadersAskFor:
    def test_they_stand_beside_the_translation_that_every_comment_gets(self) -> None:
        comment = given(Comment, POSTED, TRANSLATED).when(into_german(1)).then(IN_GERMAN)
        assert (comment.target_status("de"), comment.target_status("fr")) == (
            "translated",
            "pending",
        )
        assert comment.translated_text == "How pretty!"

    def test_once_translated_is_translated(self) -> None:
        again = into_german(1, model="model-2", translated_text="Wie hübsch!")
        given(Comment, POSTED, IN_GERMAN).when(again).then()

    @pytest.mark.parametrize("known", ["skipped", "failed", "not_needed"])
    def test_what_comes_later_has_to_know_more(self, known: str) -> None:
        statuses = ["skipped", "failed", "not_needed"]
        for status in statuses:
            ahead = statuses.index(status) > statuses.index(known)
            then = [not_in("de", status)] if ahead else []
            given(Comment, POSTED, not_in("de", known)).when(leave(status)).then(*then)
        given(Comment, POSTED, not_in("de", known)).when(into_german(1)).then(IN_GERMAN)
        given(Comment, POSTED, IN_GERMAN).when(leave(known)).then()

    def test_there_is_an_end_to_them(self) -> None:
        full = [not_in(f"{chr(97 + n)}x") for n in range(MOST_TARGETS)]
        given(Comment, POSTED, *full).when(into_german(1)).then()
        given(Comment, POSTED, *full).when(leave("failed")).then()
        known = leave("not_needed", "ax")
        given(Comment, POSTED, *full).when(known).then(not_in("ax", "not_needed"))
        given(Comment, POSTED, *full[1:]).when(into_german(1)).then(IN_GERMAN)

    def test_an_edit_drops_all_of_them(self) -> None:
        comment = given(Comment, POSTED, IN_GERMAN, not_in("fr")).when(edit("¡Precioso!"))
        assert comment.then(EDITED).targets == {}
        anew = fact(Comment.TargetTranslated, TRANSLATOR, **KEYS, revision=2, **GERMAN)
        given(Comment, POSTED, IN_GERMAN, EDITED).when(into_german(2)).then(anew)

    @pytest.mark.parametrize("history", [(POSTED, EDITED), (POSTED, DELETED)])
    def test_what_is_said_of_another_text_is_dropped(self, history: Any) -> None:
        given(Comment, *history).when(into_german(1)).then()
        given(Comment, *history).when(leave("failed")).then()


class TestReplies:
    PARENT = UUID("3e0a5f86-2c57-4f1d-9d0b-6b1f0e9a77c1")

    def test_every_event_of_a_reply_names_what_it_answers(self) -> None:
        keys = {**KEYS, "parent_id": self.PARENT}
        posted = fact(Comment.Posted, ANN, **keys, content="Two")
        reply = lambda comment: comment.post(VIDEO, "Two", ANN, parent_id=self.PARENT)  # noqa: E731 - as the others
        given(Comment).when(reply).then(posted)
        given(Comment, posted).when(delete).then(fact(Comment.Deleted, ANN, **keys))

    def test_a_reply_to_a_reply_belongs_to_the_same_comment(self) -> None:
        comment = Comment.blank(UUID(int=1))
        comment.post(VIDEO, "One", ANN)
        assert comment.require_thread(VIDEO) == comment.id
        reply = Comment.blank(UUID(int=2))
        reply.post(VIDEO, "Two", ANN, parent_id=comment.id)
        assert reply.require_thread(VIDEO) == comment.id
        with pytest.raises(NotFound):
            reply.require_thread(UUID(int=3))
        reply.delete(ANN)
        with pytest.raises(NotFound):
            reply.require_thread(VIDEO)
