"""What translations may cost: calls a day, an author's and all authors', and edits that wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from commands.comments import EditComment, NewText
from domain.upload import NOBODY
from infra import metrics
from infra.tasks.queues import Postponed
from tests.integration.buses import execute, open_bus
from tests.integration.projection_support import Writer
from tests.integration.translation_desk import (
    CALLS,
    ORIGIN,
    SPANISH,
    Desk,
    of_its_own,
)
from tests.openai_server import (
    OpenAIServer,
    answered,
)
from workers.translation import CommentTranslation


@pytest.fixture
def desk(database_url: str, writer: Writer, server: OpenAIServer) -> Desk:
    return Desk(database_url, writer, server)


class TestSpending:
    def test_an_author_has_so_many_calls_a_day(self, desk: Desk) -> None:
        desk.settings["TRANSLATION_USER_CALLS_PER_DAY"] = "2"
        comments = [desk.comment(of_its_own(SPANISH)) for _ in range(4)]
        for comment in comments:
            desk.run(comment)
        assert len(desk.provider.calls) == 2
        assert [desk.kinds(each)[-1] for each in comments] == [
            "translated", "translated", "translation_skipped", "translation_skipped",
        ]  # fmt: skip
        last = desk.last(comments[-1])
        assert (last["needed"], last["reason"]) == (True, "user_budget_spent")
        assert desk.text(comments[-1]).status == "skipped"  # type: ignore[union-attr]
        other = desk.comment(of_its_own(SPANISH), author="carol")
        desk.run(other)
        assert desk.kinds(other)[-1] == "translated"

    def test_all_authors_have_so_many_together_and_that_is_told_once(self, desk: Desk) -> None:
        desk.settings["TRANSLATION_CALLS_PER_DAY"] = "3"
        comments = [desk.comment(of_its_own(SPANISH), f"author {n}") for n in range(6)]
        before = metrics.value(CALLS, purpose="translate", outcome="budget_spent")
        with capture_logs() as logs:
            desk.run(*comments)
        assert len(desk.provider.calls) == 3
        skipped = [each for each in comments if desk.kinds(each)[-1] == "translation_skipped"]
        assert {desk.last(each)["reason"] for each in skipped} == {"budget_spent"}
        after = metrics.value(CALLS, purpose="translate", outcome="budget_spent")
        assert after - before == len(skipped) == 3
        assert [line["event"] for line in logs].count("llm_budget_spent") == 1

    def test_pieces_and_second_calls_count(self, desk: Desk) -> None:
        desk.settings["TRANSLATION_USER_CALLS_PER_DAY"] = "3"
        long = desk.comment(of_its_own("¡Qué bonito es! " * 600))
        desk.run(long)
        assert len(desk.provider.calls) <= 3
        assert desk.last(long)["reason"] == "user_budget_spent"

    def test_a_language_that_a_model_finds_out_counts(self, desk: Desk) -> None:
        desk.settings |= {"TRANSLATION_USER_CALLS_PER_DAY": "1", "LANGUAGE_DETECTOR": "llm"}
        desk.provider.otherwise = lambda _: answered(language="es", confidence=0.99)
        comment = desk.comment(of_its_own(SPANISH))
        desk.run(comment)
        assert len(desk.provider.calls) == 1
        assert desk.last(comment)["reason"] == "user_budget_spent"

    def test_an_equal_text_of_another_author_is_not_skipped_for_the_first(self, desk: Desk) -> None:
        desk.settings["TRANSLATION_USER_CALLS_PER_DAY"] = "1"
        desk.run(desk.comment(of_its_own(SPANISH)))
        content = of_its_own(SPANISH)
        spent, other = desk.comment(content), desk.comment(content, author="carol")

        async def scenario(translation: CommentTranslation) -> None:
            outcomes = await asyncio.gather(
                *(translation.run(each, ORIGIN) for each in (spent, other)), return_exceptions=True
            )
            if isinstance(outcomes[1], Postponed):
                # It had waited for the other one's call.
                await translation.run(other, ORIGIN)

        desk.with_translation(scenario)
        assert desk.last(spent)["reason"] == "user_budget_spent"
        assert desk.kinds(other)[-1] == "translated"

    def test_an_edited_text_waits_until_its_author_is_done(self, desk: Desk) -> None:
        comment = desk.comment(of_its_own(SPANISH))
        now = datetime.now(UTC)

        async def scenario(translation: CommentTranslation) -> None:
            waiting = replace(translation, edit_pause=timedelta(seconds=60), clock=lambda: now)
            async with open_bus(desk.writer.recorder) as bus:
                for _ in range(3):
                    text = of_its_own("Otra cosa, señores")
                    edit = EditComment(comment, NewText(desk.video, "alice", "bob", text, NOBODY))
                    await execute(bus, edit, "bob")
                    with pytest.raises(Postponed) as postponed:
                        await waiting.run(comment, ORIGIN)
                    assert (postponed.value.delay or 0) >= 60_000
            assert desk.provider.calls == []
            later = now + timedelta(days=1)
            await replace(waiting, clock=lambda: later).run(comment, ORIGIN)

        desk.with_translation(scenario)
        assert len(desk.provider.calls) == 1
        assert desk.kinds(comment)[-1] == "translated"
