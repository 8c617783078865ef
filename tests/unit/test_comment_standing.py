"""Who sees a comment, and who changes that: held, removed, restored, gone."""

from __future__ import annotations

from typing import Any

import pytest

from domain.comment import Comment
from domain.errors import Conflict, Invalid, NotAllowed, NotFound
from domain.moderation import (
    ActingAs,
    HoldCause,
    Standing,
)
from projections.integration_events import COMMENT_CREATED, COMMENT_DELETED, PUBLISHED
from tests.unit.comment_facts import (
    ALICE,
    ANN,
    DELETED,
    EVE,
    HOLD,
    KEYS,
    MODERATOR,
    OWNER,
    POSTED,
    RESUBMITTED,
    SUBMITTED,
    VIDEO,
    WATCHED,
    WITHDRAWN,
    WITHHELD,
    approve,
    approved,
    delete,
    edit,
    rejected,
    remove,
    removed,
    restore,
    restored,
)
from tests.unit.given_when_then import AT, by, fact, given


class TestHeld:
    def test_a_held_comment_is_submitted(self) -> None:
        comment = given(Comment).when(lambda each: each.post(VIDEO, "One", ANN, HOLD))
        held = comment.then(SUBMITTED)
        assert (held.standing, held.held_for) == (Standing.HELD, HoldCause.APPROVAL)
        assert (held.author, held.content, held.revision, held.posted_at) == ("ann", "One", 1, AT)

    def test_it_is_approved_once(self) -> None:
        given(Comment, SUBMITTED).when(approve()).then(approved())
        given(Comment, SUBMITTED, approved()).when(approve()).then()
        given(Comment, POSTED).when(approve()).then()

    def test_a_text_that_came_since_is_not_approved_unseen(self) -> None:
        given(Comment, SUBMITTED, RESUBMITTED).when(approve(revision=1)).refused(
            Conflict, "another text", commentStatus="held", revision=2
        )
        seen = given(Comment, SUBMITTED, RESUBMITTED).when(approve(revision=2))
        seen.then(approved(content="Two"))

    def test_nobody_approves_their_own(self) -> None:
        for acted_as in ActingAs:
            own = given(Comment, SUBMITTED).when(approve(acted_as, origin=ANN))
            own.refused(NotAllowed, "Nobody can approve a comment of their own")

    def test_what_was_removed_is_not_approved(self) -> None:
        given(Comment, SUBMITTED, rejected(OWNER)).when(approve()).refused(
            Conflict, "restore it", commentStatus="removed"
        )

    def test_an_edit_of_what_is_held_stays_held(self) -> None:
        comment = given(Comment, SUBMITTED).when(edit("Two")).then(RESUBMITTED)
        assert (comment.standing, comment.content, comment.revision) == (Standing.HELD, "Two", 2)

    def test_an_edit_may_be_held(self) -> None:
        comment = given(Comment, POSTED).when(edit("Two", WATCHED)).then(WITHHELD)
        assert (comment.standing, comment.held_for) == (Standing.HELD, HoldCause.WATCHED_WORD)
        given(Comment, POSTED).when(edit("One", WATCHED)).then()

    def test_a_rejected_one_is_removed(self) -> None:
        comment = given(Comment, SUBMITTED).when(remove(OWNER, ALICE)).then(rejected(OWNER, ALICE))
        assert (comment.standing, comment.removed_as) == (Standing.REMOVED, OWNER)

    def test_an_author_takes_back_what_nobody_else_saw(self) -> None:
        for history in ((SUBMITTED,), (POSTED, removed(MODERATOR))):
            comment = given(Comment, *history).when(delete).then(WITHDRAWN)
            assert comment.standing is Standing.DELETED


class TestRemoved:
    def test_removed_with_a_reason(self) -> None:
        comment = given(Comment, POSTED).when(remove()).then(removed(MODERATOR))
        assert (comment.standing, comment.removed_as) == (Standing.REMOVED, MODERATOR)
        assert comment.stated_reason == "rude"

    def test_removing_again_records_nothing(self) -> None:
        given(Comment, POSTED, removed(MODERATOR)).when(remove()).then()
        given(Comment, POSTED, removed(OWNER)).when(remove(OWNER, ALICE)).then()
        given(Comment, POSTED, removed(MODERATOR)).when(remove(OWNER, ALICE)).then()

    def test_a_moderator_takes_over_what_the_owner_removed(self) -> None:
        history = (POSTED, removed(OWNER, ALICE))
        comment = given(Comment, *history).when(remove()).then(rejected(MODERATOR))
        assert comment.removed_as is MODERATOR

    def test_a_reason_has_to_show_something(self) -> None:
        given(Comment, POSTED).when(remove(why=" ")).refused(Invalid, "can be seen", field="reason")

    def test_it_can_not_be_edited(self) -> None:
        given(Comment, POSTED, removed(OWNER)).when(edit("Two")).refused(
            Conflict, "was removed", commentStatus="removed"
        )

    def test_restored(self) -> None:
        history = (POSTED, removed(MODERATOR))
        comment = given(Comment, *history).when(restore()).then(restored())
        assert (comment.standing, comment.removed_as) == (Standing.POSTED, None)
        owned = given(Comment, POSTED, removed(OWNER, ALICE)).when(restore(OWNER, ALICE))
        owned.then(restored(OWNER, ALICE))
        given(Comment, POSTED).when(restore()).then()

    def test_neither_author_nor_owner_restores_what_a_moderator_removed(self) -> None:
        gone = given(Comment, POSTED, removed(MODERATOR))
        gone.when(restore(OWNER, ALICE)).refused(NotAllowed, "only a moderator")
        for acted_as in ActingAs:
            gone.when(restore(acted_as, ANN)).refused(NotAllowed, "of their own")

    def test_what_waits_is_approved_and_not_restored(self) -> None:
        given(Comment, SUBMITTED).when(restore()).refused(
            Conflict, "approve it", commentStatus="held"
        )

    def test_a_restored_comment_keeps_what_was_found_out(self) -> None:
        told = {"language": "es", "confidence": 0.9, "detector": "x", "target_language": "en"}
        found = fact(Comment.LanguageDetected, by("robot"), **KEYS, revision=1, **told)
        history = (POSTED, found, removed(OWNER), restored())
        assert given(Comment, *history).load().language == "es"

    @pytest.mark.parametrize("history", [(), (POSTED, DELETED), (SUBMITTED, WITHDRAWN)])
    @pytest.mark.parametrize("command", [remove(), restore(), approve(), edit("Two"), delete])
    def test_what_is_gone_is_gone(self, history: Any, command: Any) -> None:
        given(Comment, *history).when(command).refused(NotFound, "no such comment")

    @pytest.mark.parametrize("history", [(SUBMITTED,), (POSTED, removed(OWNER))])
    def test_nothing_is_found_out_about_what_not_everybody_sees(self, history: Any) -> None:
        def look(comment: Comment) -> None:
            comment.detect_language(1, "es", 0.9, "test", "en", by("robot"))
            comment.translate(1, "es", "en", "Hello", "model", "1", by("robot"))
            comment.leave_target(1, "de", "failed", "why", by("robot"))

        given(Comment, *history).when(look).then()

    @pytest.mark.parametrize("history", [(SUBMITTED,), (POSTED, removed(OWNER))])
    def test_a_stranger_is_told_nothing_of_it(self, history: Any) -> None:
        given(Comment, *history).when(edit("Two", origin=EVE)).refused(NotFound, "no such")
        with pytest.raises(NotFound):
            given(Comment, *history).load().require_posted()


SEEN = {Standing.POSTED}
COMMENT_EVENTS = [
    ("submitted", None, (SUBMITTED,)),
    ("posted", COMMENT_CREATED, (POSTED,)),
    ("resubmitted", None, (SUBMITTED, RESUBMITTED)),
    ("withheld", COMMENT_DELETED, (POSTED, WITHHELD)),
    ("approved", COMMENT_CREATED, (SUBMITTED, approved())),
    ("removed", COMMENT_DELETED, (POSTED, removed(OWNER))),
    ("rejected", None, (SUBMITTED, rejected(OWNER))),
    ("rejected by a moderator", None, (POSTED, removed(OWNER), rejected(MODERATOR))),
    ("restored", COMMENT_CREATED, (POSTED, removed(OWNER), restored())),
    ("restored once held", COMMENT_CREATED, (SUBMITTED, rejected(OWNER), restored())),
    ("deleted", COMMENT_DELETED, (POSTED, DELETED)),
    ("withdrawn", None, (SUBMITTED, WITHDRAWN)),
]


@pytest.mark.parametrize(
    ("topic", "history"),
    [each[1:] for each in COMMENT_EVENTS],
    ids=[each[0] for each in COMMENT_EVENTS],
)
def test_topics_tell_exactly_when_everybody_begins_or_ceases_to_see_it(
    topic: str | None, history: Any
) -> None:
    before = given(Comment, *history[:-1]).load().standing in SEEN
    after = given(Comment, *history).load().standing in SEEN
    published = PUBLISHED.get(history[-1].event)
    assert (published.topic if published else None) == topic
    expected = {(False, True): COMMENT_CREATED, (True, False): COMMENT_DELETED}
    assert expected.get((before, after)) == topic
