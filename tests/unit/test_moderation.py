"""Who comments, who decides about comments, what is reported, and which words are watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from commands.comments import AuthorBlocked, CommentsClosed, DeleteComment, NewText, PostComment
from commands.moderation import ApproveComment, RestoreComment
from domain.comment import Comment
from domain.errors import Conflict, DomainError, Invalid, NotAllowed, NotFound
from domain.model import Aggregate, Origin
from domain.moderation import (
    MOST_MENTIONS,
    ContentReport,
    Decision,
    ModerationCase,
    ReportReason,
    Standing,
    Thing,
    ThingKind,
    UserBlock,
    WatchedWords,
    block_id,
    case_id,
    mentions,
    report_id,
)
from domain.upload import NOBODY, CommentPolicy, Upload, VideoViewer
from domain.video_likes import stream_id
from engine.command_bus import Aggregates, Command, Slot
from tests.unit.comment_facts import (
    ALICE,
    ANN,
    EVE,
    MOD,
    OWNER,
    POSTED,
    SUBMITTED,
    VIDEO,
    removed,
)
from tests.unit.given_when_then import STREAM, by, fact, given

EVERYTHING = VideoViewer("mod", sees_all=True)


def seen_by(moderator: bool) -> VideoViewer:
    return EVERYTHING if moderator else NOBODY


def aggregates(*streams: Aggregate) -> Aggregates:
    """These, and blank ones for whatever else is asked for."""

    class Slots(dict[UUID, Slot]):
        def __missing__(self, key: UUID) -> Slot:
            slot = self[key] = Slot(None)
            return slot

    return Aggregates(Slots({each.id: Slot(each) for each in streams}))


def video(policy: CommentPolicy = CommentPolicy.OPEN) -> Upload:
    upload = Upload.blank(VIDEO)
    upload.start(
        ALICE,
        title="Rain",
        filename="rain.mp4",
        content_type="video/mp4",
        size_bytes=1,
        description=None,
        category=None,
        part_size_bytes=1,
        object_key="key",
        store_upload_id="id",
    )
    upload.complete(1, "etag", ALICE)
    upload.change_comment_policy(policy, ALICE)
    return upload


def block(blocker: str, blocked: str) -> UserBlock:
    found = UserBlock.blank(block_id(blocker, blocked))
    found.block(blocked, by(blocker))
    return found


def posting(
    content: str,
    *streams: Aggregate,
    author: Origin = ANN,
    watched: bool = False,
    as_moderator: bool = False,
) -> tuple[str, str | None]:
    """The standing of a new comment, and what holds it."""
    found = aggregates(*streams)
    named = mentions(content)
    text = NewText(VIDEO, "alice", author.actor, content, seen_by(as_moderator), watched, named)
    PostComment(STREAM, text).decide(found, author)
    comment = found.get(Comment, STREAM)
    assert comment.standing is not None
    return comment.standing, comment.held_for if comment.standing is Standing.HELD else None


class TestWhoComments:
    def test_everybody_where_it_is_open(self) -> None:
        assert posting("Hello", video()) == ("posted", None)

    def test_whoever_is_approved_of(self) -> None:
        upload = video(CommentPolicy.APPROVAL)
        assert posting("Hello", upload) == ("held", "approval")
        assert posting("Hello", upload, author=ALICE) == ("posted", None)
        assert posting("Hello", upload, as_moderator=True) == ("posted", None)

    @pytest.mark.parametrize("author", [ANN, ALICE])
    def test_nobody_where_it_is_closed(self, author: Origin) -> None:
        with pytest.raises(CommentsClosed) as caught:
            posting("Hello", video(CommentPolicy.CLOSED), author=author, as_moderator=True)
        assert caught.value.state == {"commentPolicy": "closed"}

    def test_nobody_whom_the_owner_has_blocked(self) -> None:
        with pytest.raises(AuthorBlocked, match="has blocked you"):
            posting("Hello", video(), block("alice", "ann"))
        assert posting("Hello", video(), block("ann", "alice")) == ("posted", None)
        assert posting("Hello", video(), block("alice", "eve")) == ("posted", None)

    def test_who_names_somebody_who_blocked_them_is_held(self) -> None:
        upload = video()
        assert posting("Hello @bob!", upload, block("bob", "ann")) == ("held", "mention")
        assert posting("Hello @eve!", upload, block("bob", "ann")) == ("posted", None)
        many = " ".join(f"@user-{n}" for n in range(MOST_MENTIONS + 1))
        assert posting(many, upload) == ("held", "mention")

    def test_a_watched_word_holds_the_owner_too_but_no_moderator(self) -> None:
        assert posting("bad", video(), watched=True) == ("held", "watched_word")
        assert posting("bad", video(), author=ALICE, watched=True) == ("held", "watched_word")
        told = posting("bad", video(), watched=True, as_moderator=True)
        assert told == ("posted", None)

    def test_the_policy_is_an_event_of_its_own(self) -> None:
        upload = video()
        upload.collect_events()
        upload.change_comment_policy(CommentPolicy.CLOSED, ALICE)
        upload.change_comment_policy(CommentPolicy.CLOSED, ALICE)
        assert [type(each) for each in upload.collect_events()] == [Upload.CommentPolicyChanged]


def comment_of(*history: Any) -> Comment:
    return given(Comment, *history).load()


RIGHTS: list[tuple[str, Callable[[bool], Command[Any]], tuple[Any, ...]]] = [
    ("remove", lambda mod: DeleteComment(STREAM, VIDEO, seen_by(mod), "rude"), (POSTED,)),
    ("reject", lambda mod: DeleteComment(STREAM, VIDEO, seen_by(mod), "rude"), (SUBMITTED,)),
    (
        "restore",
        lambda mod: RestoreComment(STREAM, VIDEO, seen_by(mod)),
        (POSTED, removed(OWNER, ALICE)),
    ),
    ("approve", lambda mod: ApproveComment(STREAM, VIDEO, seen_by(mod)), (SUBMITTED,)),
]


@pytest.mark.parametrize(("name", "make", "history"), RIGHTS, ids=[each[0] for each in RIGHTS])
class TestRights:
    def test_the_owner_and_moderators_decide(self, name: str, make: Any, history: Any) -> None:
        for origin, as_moderator in ((ALICE, False), (MOD, True)):
            comment = comment_of(*history)
            make(as_moderator).decide(aggregates(video(), comment), origin)
            assert len(comment.pending_events) == 1

    def test_others_do_not(self, name: str, make: Any, history: Any) -> None:
        comment = comment_of(*history)
        error: type[DomainError] = NotAllowed if name == "remove" else NotFound
        with pytest.raises(error):
            make(False).decide(aggregates(video(), comment), EVE)
        assert comment.pending_events == []

    def test_not_on_a_video_that_is_gone(self, name: str, make: Any, history: Any) -> None:
        upload = video()
        upload.remove(ALICE)
        with pytest.raises(NotFound):
            make(True).decide(aggregates(upload, comment_of(*history)), MOD)


def test_an_authors_delete_is_for_good_whoever_they_are() -> None:
    comment = comment_of(POSTED)
    answer = DeleteComment(STREAM, VIDEO, EVERYTHING).decide(aggregates(comment), ANN)
    assert (answer.status, comment.standing) == ("deleted", Standing.DELETED)


class TestBlocks:
    def test_a_block_counts_once(self) -> None:
        told = {"blocker": "alice", "blocked": "ann"}
        blocked = fact(UserBlock.Blocked, ALICE, **told)
        unblocked = fact(UserBlock.Unblocked, ALICE, **told)
        given(UserBlock).when(lambda each: each.block("ann", ALICE)).then(blocked)
        given(UserBlock, blocked).when(lambda each: each.block("ann", ALICE)).then()
        given(UserBlock, blocked).when(lambda each: each.unblock("ann", ALICE)).then(unblocked)
        given(UserBlock).when(lambda each: each.unblock("ann", ALICE)).then()

    def test_nobody_blocks_themselves(self) -> None:
        given(UserBlock).when(lambda each: each.block("alice", ALICE)).refused(
            Invalid, "themselves", field="userId"
        )


THING = Thing(ThingKind.COMMENT, STREAM, VIDEO)
CASE = case_id(STREAM)
OPENED = fact(ModerationCase.Opened, ANN, **THING._asdict(), round=1)


def filed(case: ModerationCase, detail: str | None = None, reporter: Origin = ANN) -> ContentReport:
    report = ContentReport.blank(report_id(STREAM, reporter.actor))
    report.file(case, THING, ReportReason.SPAM, detail, reporter)
    return report


class TestReports:
    def test_the_first_report_opens_a_case_and_others_only_look_at_it(self) -> None:
        case = ModerationCase.blank(CASE)
        first, second = filed(case, "ads"), filed(case, reporter=EVE)
        assert [type(each) for each in case.collect_events()] == [ModerationCase.Opened]
        (event,) = first.collect_events()
        told = vars(event)
        assert (told["kind"], told["thing_id"], told["video_id"]) == ("comment", STREAM, VIDEO)
        assert (told["category"], told["detail"], told["reporter"]) == ("spam", "ads", "ann")
        assert (told["case_id"], told["round"]) == (CASE, 1)
        assert len(second.collect_events()) == 1

    def test_one_report_for_a_viewer_and_a_thing(self) -> None:
        case = ModerationCase.blank(CASE)
        report = filed(case)
        report.file(case, THING, ReportReason.HATE, None, ANN)
        assert len(report.pending_events) == 1
        case.decide(Decision.DISMISS, None, MOD)
        report.file(case, THING, ReportReason.HATE, None, ANN)
        assert (len(report.pending_events), case.is_open) == (1, False)

    def test_a_detail_has_to_show_something(self) -> None:
        with pytest.raises(Invalid):
            filed(ModerationCase.blank(CASE), " ")

    def test_a_later_report_opens_another_round(self) -> None:
        case = ModerationCase.blank(CASE)
        filed(case)
        case.decide(Decision.DISMISS, "fine", MOD)
        filed(case, reporter=EVE)
        assert (case.is_open, case.round) == (True, 2)

    def test_a_case_is_decided_once(self) -> None:
        decided = fact(
            ModerationCase.Decided,
            MOD,
            **THING._asdict(),
            round=1,
            decision="dismiss",
            stated_reason="fine",
        )
        dismiss = lambda case: case.decide(Decision.DISMISS, "fine", MOD)  # noqa: E731
        given(ModerationCase, OPENED).when(dismiss).then(decided)
        given(ModerationCase, OPENED, decided).when(dismiss).refused(
            Conflict, "decided before", decision="dismiss", decidedAt="2026-11-01T12:30:00Z"
        )
        given(ModerationCase).when(dismiss).refused(NotFound, "no such report")

    def test_what_a_moderator_removes_needs_no_further_decision(self) -> None:
        for origin, as_moderator, closed in ((MOD, True, True), (ALICE, False, False)):
            case = ModerationCase.blank(CASE)
            filed(case)
            found = aggregates(video(), comment_of(POSTED), case)
            DeleteComment(STREAM, VIDEO, seen_by(as_moderator), "rude").decide(found, origin)
            assert case.is_open is not closed


def test_streams_of_different_kinds_never_meet() -> None:
    ids = [
        *(block_id("a", "b"), block_id("b", "a"), block_id("ab", "")),
        *(report_id(VIDEO, "a"), case_id(VIDEO), stream_id(VIDEO, "a")),
    ]
    assert len(set(ids)) == len(ids)


class TestWatchedWords:
    WORDS = WatchedWords(
        ["bad", "Señor X", "傻瓜", "🍆", "सेक्स", "buy  now", "ﬁne", "كلمة", "ругань"]
    )

    @pytest.mark.parametrize(
        "text",
        [
            *("a bad one", "BAD!", "(bad)", "bad_word", "so-bad", "bad"),
            # Full width, bold, accents, and what is not seen.
            *("ｂａｄ", "𝐛𝐚𝐝", "bád", "ba\u0301d", "b\u200bad", "b\u00adad", "\u202ebad"),  # noqa: RUF001
            *("SENOR x", "señor\nX", "Buy, now", "这是傻瓜啊", "yum🍆yum", "सेक्स है", "fine"),
            *("كَلِمَة", "كلمـة", "РУГАНЬ"),
        ],
    )
    def test_found(self, text: str) -> None:
        assert self.WORDS.occur_in(text)

    @pytest.mark.parametrize(
        "text",
        ["badly", "subad", "b ad", "senor", "x señor", "buy nowhere", "傻子", "सेक्सी", "refine", ""],
    )
    def test_not_found(self, text: str) -> None:
        assert not self.WORDS.occur_in(text)

    def test_without_words_nothing_is_watched(self) -> None:
        assert not WatchedWords().occur_in("anything")
        assert not WatchedWords(["\u200b", ""]).occur_in("anything")


def test_mentions_are_names_behind_an_at_sign() -> None:
    assert mentions("@ann, hi @bob. x@y.com (@c-d) @ann @名前") == ["ann", "bob", "c-d", "名前"]
