"""Comments that not everybody sees, reports and blocks, as their read models have them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.moderation import (
    ActingAs,
    Decision,
    Hold,
    HoldCause,
    Standing,
    Thing,
    ThingKind,
    UserBlock,
    block_id,
)
from domain.upload import CommentPolicy
from engine.replay.records import Purpose, ReplayOptions
from projections.analytics.rules import KINDS, row_of
from projections.comment_order import CommentOrder, CommentPlace
from projections.comments import Comments
from projections.integration_events import (
    COMMENT_CREATED,
    COMMENT_DELETED,
    PUBLISHED,
    from_event,
)
from projections.moderation import Moderation
from projections.translation import Translations
from tests.integration.event_log import logged, rows
from tests.integration.projection_spec import ProjectionSpec
from tests.integration.projection_support import Writer, caught_up, hosting, origin
from tests.integration.replay_support import (
    History,
    file,
    of_comment,
    replayed,
    report,
)

END = 2**63 - 1
OWNER, MODERATOR = ActingAs.OWNER, ActingAs.MODERATOR
HOLD = Hold(HoldCause.APPROVAL, "alice")
WORD = Hold(HoldCause.WATCHED_WORD, "alice")
MOD = origin("mod")
HOUR = timedelta(hours=1)


class TestComments:
    """The read model of comments."""

    @pytest.fixture
    def spec(self, conn: Connection[TupleRow], writer: Writer) -> ProjectionSpec[Comments]:
        return ProjectionSpec(conn, writer, Comments)

    def test_only_what_everybody_sees_is_counted_and_listed(
        self, spec: ProjectionSpec[Comments], writer: Writer
    ) -> None:
        video = writer.video().id
        posted, gone, back, held, let, no, taken, kept = comments = [
            writer.comment(video, content=str(n), hold=HOLD if n >= 3 else None) for n in range(8)
        ]
        spec.given()
        gone.remove(MODERATOR, "rude", MOD)
        back.remove(OWNER, None, origin("alice"))
        back.restore(OWNER, None, origin("alice"))
        let.approve(OWNER, None, origin("alice"))
        no.remove(OWNER, "no", origin("alice"))
        taken.delete(origin("bob"))
        kept.edit("other", origin("bob"))
        kept.edit("another", origin("bob"), WORD)
        spec.when(gone, back, let, no, taken, kept)
        places = {each.id: at for at, each in enumerate(comments, start=3)}

        async def query(model: Comments, conn: AsyncConnection[Any]) -> None:
            assert await model.counts(conn, [video]) == {video: 3}
            page = await model.page(conn, CommentOrder.NEWEST, video, CommentPlace(END), 10)
            assert [row.comment_id for row in page] == [let.id, back.id, posted.id]
            assert page[0].position == places[let.id]
            hidden = await model.hidden_page(conn, END, 10, video_id=video)
            told = [
                (each.comment.comment_id, each.standing, each.removed_as, each.stated_reason)
                for each in hidden
            ]
            assert told == [
                (kept.id, "held", None, None),
                (no.id, "removed", "owner", "no"),
                (held.id, "held", None, None),
                (gone.id, "removed", "moderator", "rude"),
            ]
            assert (hidden[0].comment.content, hidden[0].comment.edited) == ("another", True)
            assert (hidden[0].held_for, hidden[0].revision) == ("watched_word", 3)
            assert (hidden[2].held_for, hidden[2].revision) == ("approval", 1)
            older = await model.hidden_page(conn, hidden[0].comment.position, 1, video_id=video)
            assert [each.comment.comment_id for each in older] == [no.id]
            owned = await model.hidden_page(
                conn, END, 10, video_owner="alice", standing=Standing.HELD
            )
            assert [each.comment.comment_id for each in owned] == [kept.id, held.id]
            assert await model.hidden_page(conn, END, 10, video_id=video, author="eve") == []
            assert set(await model.hidden_found(conn, [kept.id, posted.id])) == {kept.id}
            assert set(await model.found(conn, [kept.id, posted.id])) == {posted.id}

        spec.asked(query)

    def test_a_comment_comes_back_with_what_was_found_out(
        self, spec: ProjectionSpec[Comments], writer: Writer
    ) -> None:
        video, robot = writer.video().id, origin("robot")
        comment = writer.comment(video, content="hola")
        comment.detect_language(1, "es", 0.9, "lite", "en", robot)
        comment.translate(1, "es", "en", "hello", "model", "v1", robot)
        comment.remove(OWNER, None, origin("alice"))
        comment.remove(MODERATOR, "rude", MOD)
        comment.restore(MODERATOR, None, MOD)
        told = "language, confidence, translated_text, translation_status, edited"
        spec.given(comment).then(
            "comments", ("es", 0.9, "hello", "translated", False), columns=told
        )
        spec.then("hidden").then("counts", (video, 1))

    def test_a_held_edit_forgets_what_was_found_out(
        self, spec: ProjectionSpec[Comments], writer: Writer
    ) -> None:
        video, robot = writer.video().id, origin("robot")
        comment = writer.comment(video, content="hola")
        comment.translate(1, "es", "en", "hello", "model", "v1", robot)
        comment.edit("bad", origin("bob"), WORD)
        told = "content, language, translated_text, translation_status, edited"
        spec.given(comment).then("counts", (video, 0)).then("comments")
        spec.then("hidden", ("bad", None, None, "pending", True), columns=told)
        comment.approve(OWNER, 2, origin("alice"))
        spec.when(comment).then("comments", ("bad", None, None, "pending", True), columns=told)
        spec.then("counts", (video, 1))

    def test_a_removed_video_takes_what_is_hidden_along(
        self, spec: ProjectionSpec[Comments], writer: Writer
    ) -> None:
        upload = writer.video()
        held, gone = writer.comment(upload.id, hold=HOLD), writer.comment(upload.id)
        gone.remove(OWNER, None, origin("alice"))
        upload.change_comment_policy(CommentPolicy.CLOSED, origin("alice"))
        spec.given(gone, upload).then("policies", (upload.id, "closed"))
        upload.remove(origin("alice"))
        # Decided elsewhere before the removal was seen there, and recorded after it.
        late = Comment.blank(uuid4())
        late.post(upload.id, "late", origin("bob"), HOLD)
        held.approve(OWNER, None, origin("alice"))
        gone.restore(OWNER, None, origin("alice"))
        spec.when(upload, late, held, gone)
        for table in ("comments", "hidden", "counts", "policies"):
            spec.then(table)

    def test_what_is_hidden_waits_for_no_translation(
        self, spec: ProjectionSpec[Comments], writer: Writer
    ) -> None:
        video = writer.video().id
        posted, held = writer.comment(video), writer.comment(video, hold=HOLD)
        gone = writer.comment(video)
        gone.remove(OWNER, None, origin("alice"))
        spec.given(gone)
        with psycopg.connect(spec._conn.info.dsn) as conn:
            for copy in spec._copies.values():
                found = copy.untranslated(conn, -HOUR, (), HOUR, 10)
                assert found == [posted.id]
        held.approve(OWNER, None, origin("alice"))
        gone.restore(OWNER, None, origin("alice"))
        spec.when(held, gone)
        with psycopg.connect(spec._conn.info.dsn) as conn:
            for copy in spec._copies.values():
                assert len(copy.untranslated(conn, -HOUR, (), HOUR, 10)) == 3

    def test_translations_that_readers_asked_for_follow_the_text(
        self, conn: Connection[TupleRow], writer: Writer
    ) -> None:
        video, robot = writer.video().id, origin("robot")
        spec = ProjectionSpec(conn, writer, Translations)
        kept, held, taken = (writer.comment(video) for _ in range(3))
        for comment in (kept, held, taken):
            comment.translate_target(1, "es", "de", "Schön", "model", "v1", robot)
        kept.remove(OWNER, None, origin("alice"))
        held.edit("bad", origin("bob"), WORD)
        taken.remove(OWNER, None, origin("alice"))
        taken.delete(origin("bob"))
        spec.given(kept, held, taken).then("translations", (kept.id,), columns="comment_id")


class TestReportsAndBlocks:
    """The read model of what was reported, and of blocks."""

    @pytest.fixture
    def spec(self, conn: Connection[TupleRow], writer: Writer) -> ProjectionSpec[Moderation]:
        return ProjectionSpec(conn, writer, Moderation)

    def test_reports_are_grouped_by_thing_the_oldest_first(
        self, spec: ProjectionSpec[Moderation], writer: Writer
    ) -> None:
        video = writer.video()
        comment = writer.comment(video.id)
        one = report(writer, of_comment(comment), "ann", "eve", detail="ads")
        file(writer, one, of_comment(comment), "joe", "hate")
        two = report(writer, Thing(ThingKind.VIDEO, video.id, video.id), "ann", why="rights")
        spec.given()

        async def query(model: Moderation, conn: AsyncConnection[Any]) -> None:
            found = await model.cases(conn, "open", 0, 10)
            assert [row.case_id for row in found] == [one.id, two.id]
            assert (found[0].kind, found[0].thing_id) == ("comment", comment.id)
            rest = await model.cases(conn, "open", found[0].position, 10)
            assert rest == found[1:]
            assert await model.tallies(conn, [one.id, two.id]) == {
                one.id: {"spam": 2, "hate": 1},
                two.id: {"rights": 1},
            }
            details = await model.details(conn, [one.id, two.id], 1)
            assert [(row.case_id, row.category, row.detail) for row in details] == [
                (one.id, "spam", "ads")
            ]

        spec.asked(query)

    def test_a_decision_closes_a_case_and_a_later_report_opens_another_round(
        self, spec: ProjectionSpec[Moderation], writer: Writer
    ) -> None:
        comment = writer.comment(writer.video().id)
        thing = of_comment(comment)
        case = report(writer, thing, "ann", "eve", detail="ads")
        case.decide(Decision.DISMISS, "fine", MOD)
        told = "status, round, decided_by, stated_reason"
        spec.given(case).then("cases", ("dismissed", 1, "mod", "fine"), columns=told)
        file(writer, case, thing, "joe", "hate")
        spec.given().then("cases", ("open", 2, None, None), columns=told)

        async def query(model: Moderation, conn: AsyncConnection[Any]) -> None:
            assert await model.tallies(conn, [case.id]) == {case.id: {"hate": 1}}
            assert await model.details(conn, [case.id], 5) == []

        spec.asked(query)
        case.decide(Decision.REMOVE, None, MOD)
        spec.when(case).then("cases", ("removed", 2, "mod", None), columns=told)

    def test_what_is_gone_leaves_the_queue_whatever_comes_first(
        self, spec: ProjectionSpec[Moderation], writer: Writer
    ) -> None:
        video, other = writer.video(), writer.video()
        gone, late, held = (
            writer.comment(video.id),
            writer.comment(video.id),
            writer.comment(other.id),
        )
        stays = writer.comment(other.id)
        cases = [report(writer, of_comment(each), "ann") for each in (gone, held, stays)]
        gone.delete(origin("bob"))
        held.remove(OWNER, None, origin("alice"))
        held.delete(origin("bob"))
        video.remove(origin("alice"))
        late.delete(origin("bob"))
        spec.given(gone, held, late, video)
        # Reported elsewhere before that was seen there, and recorded after it.
        cases.append(report(writer, of_comment(late), "eve"))
        cases.append(report(writer, Thing(ThingKind.VIDEO, video.id, video.id), "eve"))
        spec.given()

        async def query(model: Moderation, conn: AsyncConnection[Any]) -> None:
            found = await model.cases(conn, "open", 0, 10)
            assert [row.case_id for row in found] == [cases[2].id]
            ended = await model.cases(conn, "gone", END, 10)
            assert {row.case_id for row in ended} == {case.id for case in cases} - {cases[2].id}

        spec.asked(query)

    def test_blocks(self, spec: ProjectionSpec[Moderation], writer: Writer) -> None:
        ann, eve = (UserBlock.blank(block_id("alice", each)) for each in ("ann", "eve"))
        ann.block("ann", origin("alice"))
        eve.block("eve", origin("alice"))
        spec.given(ann, eve)
        ann.unblock("ann", origin("alice"))
        ann.block("ann", origin("alice"))
        eve.unblock("eve", origin("alice"))
        spec.when(ann, eve).then("blocks", ("alice", "ann", 4))


@pytest.mark.parametrize(("seed", "workers"), [(1, 1), (2, 2)])
def test_a_replay_gives_the_same_rows(
    database_url: str, writer: Writer, seed: int, workers: int
) -> None:
    history = History(writer, seed)
    kinds: tuple[Any, ...] = (Comments, Moderation, Translations)
    with hosting(database_url, *(kind() for kind in kinds)):
        history.grow(250)
        caught_up(database_url, [kind.name for kind in kinds], writer.head)
    told = {each.topic.split(".")[1] for each in logged(database_url).values()}
    assert {"submitted", "withheld", "approved", "removed", "restored", "decided"} <= told
    for kind in kinds:
        replay = replayed(database_url, kind(), ReplayOptions(Purpose.VERIFY, workers=workers))
        assert replay.result is not None
        assert not replay.result["differs"], replay.result


def test_the_counts_are_what_the_topics_and_the_log_come_to(
    database_url: str, writer: Writer
) -> None:
    history = History(writer, 3)
    with hosting(database_url, Comments()):
        history.grow(250)
        caught_up(database_url, ["comments"], writer.head)
    counts: dict[UUID, int] = dict(
        rows(database_url, "SELECT video_id, comments FROM comments.counts")
    )
    listed: dict[UUID, int] = dict(
        rows(database_url, "SELECT video_id, count(*) FROM comments.comments GROUP BY 1")
    )
    assert {video: n for video, n in counts.items() if n} == listed
    assert sum(listed.values()) > 0
    told: dict[UUID, int] = {}
    for stored in logged(database_url).values():
        event: Any = writer.mapper.to_domain_event(stored)
        published = PUBLISHED.get(type(event))
        if published and published.topic in (COMMENT_CREATED, COMMENT_DELETED):
            delta = 1 if published.topic == COMMENT_CREATED else -1
            told[event.video_id] = told.get(event.video_id, 0) + delta
    assert {video: told[video] for video in counts} == counts


def test_the_analytics_count_a_comment_while_everybody_sees_it(writer: Writer) -> None:
    """What they take in: a comment and its author, once more or once less."""
    comment = writer.comment(writer.video().id, hold=HOLD)
    comment.approve(OWNER, None, origin("alice"))
    comment.remove(OWNER, None, origin("alice"))
    comment.restore(OWNER, None, origin("alice"))
    comment.edit("bad", origin("bob"), WORD)
    comment.delete(origin("bob"))
    counted, events = [], cast("list[Comment.Event]", list(comment.collect_events()))
    for place, event in enumerate(events, start=1):
        if type(event) in PUBLISHED:
            message = from_event(place, event)
            if message.topic in KINDS:
                value = orjson.loads(message.value)
                row = row_of(message.topic, message.id, value, event.timestamp)
                counted.append((row.event_type, row.user_id, row.metadata["delta"]))
    assert counted == [("comment", "bob", delta) for delta in (1, -1, 1, -1)]
