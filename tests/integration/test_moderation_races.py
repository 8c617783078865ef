"""Decisions about comments that are made at the same time."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any
from uuid import UUID

import pytest

from commands.comments import DeleteComment, EditComment, NewText
from commands.moderation import ApproveComment, DecideCase, ReportThing, RestoreComment
from commands.translation import Failed, RecordTranslation
from domain.errors import Conflict, DomainError
from domain.moderation import (
    ActingAs,
    Decision,
    Hold,
    HoldCause,
    ReportReason,
    case_id,
    report_id,
)
from domain.upload import NOBODY, VideoViewer
from engine.event_store import GroupCommitRecorder
from tests.integration.buses import decided, execute, open_bus
from tests.integration.projection_support import Writer
from tests.integration.replay_support import (
    of_comment,
    report,
)

OWNER, MODERATOR = ActingAs.OWNER, ActingAs.MODERATOR
HOLD = Hold(HoldCause.APPROVAL, "alice")
ALL = VideoViewer("mod", sees_all=True)


class TestRaces:
    """Of two at once, whichever comes second finds what the first has left."""

    @pytest.fixture
    def desk(self, log_url: str, recorder: GroupCommitRecorder) -> Writer:
        return Writer(log_url)

    @pytest.mark.parametrize("seed", range(4))
    def test_removals_restores_approvals_edits_and_deletes(
        self,
        log_url: str,
        recorder: GroupCommitRecorder,
        another: GroupCommitRecorder,
        desk: Writer,
        seed: int,
    ) -> None:
        random = Random(seed)
        video = desk.video().id
        comments = [desk.comment(video, hold=HOLD if n % 2 else None).id for n in range(12)]

        def wish(comment: UUID) -> tuple[Any, str]:
            words = f"text {random.random()}"
            text = NewText(video, "alice", "bob", words, NOBODY, random.random() < 0.3)
            return random.choice(
                [
                    (DeleteComment(comment, video, NOBODY, "why"), "alice"),
                    (DeleteComment(comment, video, ALL, "why"), "mod"),
                    (RestoreComment(comment, video, ALL), "mod"),
                    (ApproveComment(comment, video, NOBODY), "alice"),
                    (EditComment(comment, text), "bob"),
                    (DeleteComment(comment, video, NOBODY), "bob"),
                ]
            )

        async def scenario() -> list[Any]:
            async with open_bus(recorder) as one, open_bus(another) as two:
                wishes = [
                    execute(random.choice([one, two]), *wish(comment))
                    for comment in random.choices(comments, k=120)
                ]
                return list(await asyncio.gather(*wishes, return_exceptions=True))

        failures = [each for each in asyncio.run(scenario()) if isinstance(each, Exception)]
        assert all(isinstance(each, DomainError) for each in failures), failures
        deltas = {"posted": 1, "approved": 1, "restored": 1}
        deltas |= {"removed": -1, "withheld": -1, "deleted": -1}
        for comment in comments:
            seen = 0
            for kind in decided(log_url, comment):
                seen += deltas.get(kind, 0)
                assert seen in (0, 1), decided(log_url, comment)

    def test_of_two_decisions_one_counts(
        self,
        log_url: str,
        recorder: GroupCommitRecorder,
        another: GroupCommitRecorder,
        desk: Writer,
    ) -> None:
        video = desk.video().id
        comments = [desk.comment(video) for _ in range(8)]
        cases = [report(desk, of_comment(each), "ann").id for each in comments]

        async def scenario() -> list[Any]:
            async with open_bus(recorder) as one, open_bus(another) as two:
                wishes = [
                    execute(bus, DecideCase(case, of_comment(comment), decision, None), "mod")
                    for case, comment in zip(cases, comments, strict=True)
                    for bus, decision in ((one, Decision.REMOVE), (two, Decision.DISMISS))
                ]
                return list(await asyncio.gather(*wishes, return_exceptions=True))

        outcomes = asyncio.run(scenario())
        assert sum(isinstance(each, Conflict) for each in outcomes) == len(cases)
        for case, comment in zip(cases, comments, strict=True):
            assert decided(log_url, case) == ["opened", "decided"]
            assert decided(log_url, comment.id) in (["posted"], ["posted", "removed"])

    def test_many_reports_at_once_are_one_case_and_never_wait_for_each_other(
        self,
        log_url: str,
        recorder: GroupCommitRecorder,
        another: GroupCommitRecorder,
        desk: Writer,
    ) -> None:
        comment = desk.comment(desk.video().id)
        thing = of_comment(comment)

        async def scenario() -> None:
            async with open_bus(recorder) as one, open_bus(another) as two:
                await asyncio.gather(
                    *(
                        execute(
                            bus,
                            ReportThing(thing, NOBODY, f"user-{n}", ReportReason.SPAM),
                            f"user-{n}",
                        )
                        for n in range(60)
                        for bus in (one, two)
                    )
                )

        asyncio.run(scenario())
        assert decided(log_url, case_id(comment.id)) == ["opened"]
        streams = [report_id(comment.id, f"user-{n}") for n in range(60)]
        assert [decided(log_url, stream) for stream in streams] == [["filed"]] * 60

    def test_nothing_is_recorded_of_a_translation_that_comes_after_the_removal(
        self, log_url: str, recorder: GroupCommitRecorder, desk: Writer
    ) -> None:
        video = desk.video().id
        comment = desk.comment(video).id

        async def scenario() -> None:
            async with open_bus(recorder) as bus:
                await execute(bus, DeleteComment(comment, video, ALL), "mod")
                late: Any = await execute(
                    bus, RecordTranslation(comment, 1, "en", outcome=Failed("late"))
                )
                assert late.answer is None

        asyncio.run(scenario())
        assert decided(log_url, comment) == ["posted", "removed"]
