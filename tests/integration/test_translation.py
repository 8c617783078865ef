"""A comment's task on a real log, with a real provider's protocol: each way that it can end."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from commands.comments import EditComment, NewText
from commands.translation import Failed, RecordTranslation
from domain.moderation import ActingAs, Hold, HoldCause
from domain.upload import NOBODY
from infra.language.detector import TextDetector
from infra.llm.errors import LanguageModelError
from infra.tasks.queues import FailedTask, Postponed
from tests.integration.buses import execute, open_bus
from tests.integration.event_log import logged
from tests.integration.projection_support import Writer, origin
from tests.integration.translation_desk import (
    ORIGIN,
    SPANISH,
    Desk,
    of_its_own,
)
from tests.openai_server import (
    Answer,
    OpenAIServer,
    malformed,
    refusal,
    status,
    translated,
    truncated,
)
from workers.tasks import TaskMeans, give_up
from workers.translation import CommentTranslation


@pytest.fixture
def desk(database_url: str, writer: Writer, server: OpenAIServer) -> Desk:
    return Desk(database_url, writer, server)


class TestEnds:
    def test_translated(self, desk: Desk) -> None:
        comment = desk.comment(content := of_its_own(SPANISH))
        desk.provider.script(translated(f"How pretty! {content.partition('!')[2]}", "es"))
        desk.run(comment)
        assert desk.kinds(comment) == ["posted", "language_detected", "translated"]
        last = desk.last(comment)
        assert last["translated_text"].startswith("How pretty!")
        assert (last["original_language"], last["target_language"]) == ("es", "en")
        assert (last["model"], last["actor"]) == ("gpt-4o-mini", "translation")
        assert (last["correlation_id"], last["causation_id"]) == ORIGIN
        assert last["prompt_version"]

    def test_in_the_target_language(self, desk: Desk) -> None:
        comment = desk.comment("This is a wonderful film, thank you so much for it!")
        desk.run(comment)
        assert desk.kinds(comment) == ["posted", "language_detected"]
        assert desk.last(comment)["detector"] == TextDetector(0).name
        assert desk.text(comment).status == "not_needed"  # type: ignore[union-attr]
        assert desk.provider.calls == []

    def test_another_target(self, desk: Desk) -> None:
        desk.settings["TRANSLATION_TARGET_LANGUAGE"] = "es"
        comment = desk.comment(SPANISH)
        desk.run(comment)
        assert desk.last(comment)["target_language"] == "es"
        assert desk.provider.calls == []

    def test_what_may_be_in_the_target_language_is_asked_about(self, desk: Desk) -> None:
        desk.settings["LANGUAGE_TARGET_CONFIDENCE"] = "1"
        desk.provider.otherwise = lambda call: translated(call.text, "en")
        comment = desk.comment(of_its_own("This is a wonderful film, thank you so much for it!"))
        desk.run(comment)
        assert desk.kinds(comment) == ["posted", "language_detected"]
        assert desk.last(comment)["detector"] == "gpt-4o-mini"
        assert desk.text(comment).status == "not_needed"  # type: ignore[union-attr]
        [call] = desk.provider.calls
        assert "source_language_hint" not in call.data

    def test_without_a_model_to_ask_the_best_guess_stands(self, desk: Desk) -> None:
        desk.settings = {"LANGUAGE_TARGET_CONFIDENCE": "1"}
        comment = desk.comment("This is a wonderful film, thank you so much for it!")
        desk.run(comment)
        assert desk.text(comment).status == "not_needed"  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "content", ["🎬🎬", "https://example.org", "1:23 4:56", "lol", "😂 2025"]
    )
    def test_without_words(self, desk: Desk, content: str) -> None:
        comment = desk.comment(content)
        desk.run(comment)
        last = desk.last(comment)
        assert (last["needed"], last["reason"]) == (False, "no_words")
        assert desk.provider.calls == []

    def test_without_a_language_model(self, desk: Desk) -> None:
        desk.settings = {}
        comment = desk.comment()
        desk.run(comment)
        assert desk.kinds(comment) == ["posted", "language_detected", "translation_skipped"]
        assert (desk.last(comment)["needed"], desk.last(comment)["reason"]) == (
            True,
            "no_language_model",
        )

    def test_the_model_knows_better_than_the_detector(self, desk: Desk) -> None:
        desk.provider.otherwise = lambda call: translated(call.text, "en")
        comment = desk.comment(of_its_own("Bonito vídeo, gracias"))
        desk.run(comment)
        assert desk.last(comment)["language"] == "en"
        assert desk.text(comment).status == "not_needed"  # type: ignore[union-attr]


class TestProvider:
    @pytest.mark.parametrize(
        ("answers", "reason"),
        [
            ((refusal(),), "refused"),
            ((truncated(),), "truncated"),
            ((status(401),), "unauthorized"),
            ((status(404),), "rejected"),
            ((translated("Nothing is kept.", "es"),) * 2, "not_kept"),
        ],
    )
    def test_what_would_fail_again_is_a_failure(
        self, desk: Desk, answers: tuple[Answer, ...], reason: str
    ) -> None:
        comment = desk.comment(of_its_own(SPANISH))
        desk.provider.script(*answers)
        desk.run(comment)
        assert desk.last(comment)["reason"] == reason
        assert len(desk.provider.calls) == len(answers)

    @pytest.mark.parametrize("answer", [status(429), status(500), status(503), malformed()])
    def test_what_may_pass_is_left_to_another_attempt(self, desk: Desk, answer: Answer) -> None:
        comment = desk.comment(of_its_own(SPANISH))
        desk.provider.script(answer)
        with pytest.raises(LanguageModelError):
            desk.run(comment)
        assert desk.kinds(comment) == ["posted"]
        desk.run(comment)
        assert desk.text(comment).status == "translated"  # type: ignore[union-attr]

    def test_a_provider_that_is_left_alone_costs_no_attempt(self, desk: Desk) -> None:
        desk.settings["LLM_BREAKER_FAILURES"] = "1"
        comment, other = desk.comment(of_its_own(SPANISH)), desk.comment(of_its_own(SPANISH))
        desk.provider.script(status(500))

        async def scenario(translation: CommentTranslation) -> None:
            with pytest.raises(LanguageModelError):
                await translation.run(comment, ORIGIN)
            with pytest.raises(Postponed) as postponed:
                await translation.run(other, ORIGIN)
            assert 0 < (postponed.value.delay or 0) <= 30_000

        desk.with_translation(scenario)
        assert desk.kinds(other) == ["posted"]

    def test_given_up(self, desk: Desk) -> None:
        comment = desk.comment()
        failed = FailedTask(
            "1", "translation", "translate_comment", (str(comment),), 9,
            "Throttled: too many", None, "conversation", "cause",
        )  # fmt: skip
        desk.with_translation(lambda translation: translation.give_up(comment, failed))
        assert desk.last(comment)["reason"] == "throttled"
        assert desk.last(comment)["correlation_id"] == "conversation"


class TestHidden:
    """What not everybody sees is sent to nobody."""

    @pytest.mark.parametrize("held", [True, False])
    def test_it_is_sent_once_everybody_sees_it(self, desk: Desk, held: bool) -> None:
        hold = Hold(HoldCause.APPROVAL, "alice") if held else None
        comment = desk.writer.comment(desk.video, "bob", of_its_own(SPANISH), hold)
        if not held:
            comment.remove(ActingAs.OWNER, None, origin("alice"))
            desk.writer.save(comment)
        before = desk.kinds(comment.id)
        desk.run(comment.id)
        assert desk.provider.calls == []
        assert desk.kinds(comment.id) == before
        if held:
            comment.approve(ActingAs.OWNER, None, origin("alice"))
        else:
            comment.restore(ActingAs.OWNER, None, origin("alice"))
        desk.writer.save(comment)
        desk.run(comment.id)
        assert len(desk.provider.calls) == 1
        assert desk.kinds(comment.id)[-1] == "translated"

    def test_a_translation_is_kept_over_a_removal(self, desk: Desk) -> None:
        comment = desk.writer.comment(desk.video, "bob", of_its_own(SPANISH))
        desk.run(comment.id)
        for event in logged(desk.database_url).values():
            if event.originator_id == comment.id and event.originator_version > comment.version:
                told: Any = desk.writer.mapper.to_domain_event(event)
                told.mutate(comment)
        comment.remove(ActingAs.OWNER, None, origin("alice"))
        comment.restore(ActingAs.OWNER, None, origin("alice"))
        desk.writer.save(comment)
        desk.run(comment.id)
        assert len(desk.provider.calls) == 1


class TestRepeats:
    def test_done_before(self, desk: Desk) -> None:
        comment = desk.comment(of_its_own(SPANISH))
        desk.run(comment)
        events = desk.kinds(comment)
        desk.run(comment)
        assert desk.kinds(comment) == events
        assert len(desk.provider.calls) == 1

    def test_many_at_once_cost_one_call(self, desk: Desk) -> None:
        content = of_its_own(SPANISH)
        comments = [desk.comment(content) for _ in range(50)]
        desk.provider.delay = 0.1
        desk.run(*comments, *comments)
        assert len(desk.provider.calls) == 1
        for comment in comments:
            assert desk.kinds(comment) == ["posted", "language_detected", "translated"]

    def test_gone(self, desk: Desk) -> None:
        comment = desk.writer.comment(desk.video, "bob", SPANISH)
        comment.delete(origin("bob"))
        desk.writer.save(comment)
        desk.run(comment.id)
        desk.run(uuid4())
        assert desk.kinds(comment.id) == ["posted", "deleted"]

    def test_gone_with_its_video(self, desk: Desk) -> None:
        video = desk.writer.video()
        comment = desk.writer.comment(video.id, "bob", SPANISH).id
        video.remove(origin())
        desk.writer.save(video)
        desk.run(comment)
        assert desk.kinds(comment) == ["posted"]
        assert desk.provider.calls == []

    def test_what_is_found_out_about_an_older_text_is_dropped(self, desk: Desk) -> None:
        comment = desk.comment(of_its_own(SPANISH))

        async def scenario(translation: CommentTranslation) -> None:
            desk.provider.delay = 0.5
            task = asyncio.create_task(translation.run(comment, ORIGIN))
            await asyncio.sleep(0.1)
            async with open_bus(desk.writer.recorder) as bus:
                text = of_its_own("Otra cosa, señores")
                edit = EditComment(comment, NewText(desk.video, "alice", "bob", text, NOBODY))
                await execute(bus, edit, "bob")
                await task
                late = RecordTranslation(comment, 1, "en", outcome=Failed("late"))
                await execute(bus, late)

        desk.with_translation(scenario)
        assert desk.kinds(comment) == ["posted", "edited"]
        desk.run(comment)
        assert desk.kinds(comment)[2:] == ["language_detected", "translated"]
        assert desk.last(comment)["revision"] == 2


class TestOnDemand:
    """What a reader asks for, beside the translation into English that every comment gets."""

    @pytest.fixture
    def german(self, desk: Desk) -> Desk:
        desk.settings["TRANSLATION_TARGETS"] = "de,fr"
        return desk

    def ask(self, desk: Desk, comment: UUID, *languages: str) -> None:
        async def scenario(translation: CommentTranslation) -> None:
            runs = (translation.run(comment, ORIGIN, language) for language in languages)
            await asyncio.gather(*runs)

        desk.with_translation(scenario)

    def test_into_two_languages(self, german: Desk) -> None:
        comment = german.comment(content := of_its_own(SPANISH))
        german.run(comment)
        german.provider.otherwise = lambda call: translated(f"[{call.target}] {content}", "es")
        self.ask(german, comment, "de", "fr")
        assert sorted(german.kinds(comment)[3:]) == ["translated_to"] * 2
        assert german.last(comment)["translated_text"].startswith(
            f"[{german.last(comment)['target_language']}] "
        )
        assert german.provider.calls[0].target == "en"
        assert {call.target for call in german.provider.calls[1:]} == {"de", "fr"}
        assert german.provider.calls[1].data["source_language_hint"] == "es"
        calls = len(german.provider.calls)
        self.ask(german, comment, "de", "fr")
        assert len(german.provider.calls) == calls, "that is done"

    def test_a_language_that_is_no_target_any_more(self, german: Desk) -> None:
        comment = german.comment(of_its_own(SPANISH))
        self.ask(german, comment, "it")
        assert german.kinds(comment) == ["posted"]
        assert german.provider.calls == []

    def test_in_that_language_already(self, german: Desk) -> None:
        comment = german.comment(of_its_own("Das ist wirklich ein wunderschöner Film, danke!"))
        self.ask(german, comment, "de")
        last = german.last(comment)
        assert (last["status"], last["reason"]) == ("not_needed", "in_target_language")
        assert german.provider.calls == []

    def test_without_a_language_model(self, german: Desk) -> None:
        comment = german.comment(of_its_own(SPANISH))
        del german.settings["OPENAI_BASE_URL"]
        self.ask(german, comment, "de")
        last = german.last(comment)
        assert (last["status"], last["reason"]) == ("skipped", "no_language_model")

    def test_refused(self, german: Desk) -> None:
        comment = german.comment(of_its_own(SPANISH))
        german.provider.script(refusal())
        self.ask(german, comment, "de")
        last = german.last(comment)
        assert (last["status"], last["reason"]) == ("failed", "refused")

    def test_given_up(self, german: Desk) -> None:
        comment = german.comment()
        failed = FailedTask(
            "1", "translation_requests", "translate_on_demand", (str(comment), "de"), 9,
            "Throttled: too many", None, "conversation", "cause",
        )  # fmt: skip
        german.with_translation(
            lambda translation: give_up(TaskMeans(translation, None, None), failed)
        )
        last = german.last(comment)
        assert (last["target_language"], last["status"], last["reason"]) == (
            "de",
            "failed",
            "throttled",
        )
