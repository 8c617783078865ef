"""Comments that not everybody sees, reports and blocks: read models, races, queries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, ClassVar, LiteralString, cast
from uuid import UUID, uuid4

import httpx
import orjson
import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from commands.comments import DeleteComment, EditComment, Failed, NewText, RecordTranslation
from commands.moderation import ApproveComment, DecideCase, ReportThing, RestoreComment
from domain.comment import Comment
from domain.errors import Conflict, DomainError
from domain.moderation import (
    ActingAs,
    Decision,
    Hold,
    HoldCause,
    ModerationCase,
    ReportReason,
    Standing,
    Thing,
    ThingKind,
    UserBlock,
    block_id,
    case_id,
    report_id,
)
from domain.upload import NOBODY, CommentPolicy, VideoViewer
from engine.event_store import GroupCommitRecorder
from engine.replay.records import Purpose, ReplayOptions
from infra.http.auth import mint_token
from projections.analytics.rules import KINDS, row_of
from projections.catalog import Catalog
from projections.comments import Comments
from projections.integration_events import (
    COMMENT_CREATED,
    COMMENT_DELETED,
    PUBLISHED,
    from_event,
)
from projections.likes import Likes
from projections.moderation import Moderation
from projections.translation import Translations
from tests.integration.buses import decided, execute, open_bus
from tests.integration.event_log import logged, rows
from tests.integration.projection_spec import ProjectionSpec
from tests.integration.projection_support import Writer, caught_up, hosting, origin
from tests.integration.readapi_support import SECRET, Site
from tests.integration.replay_support import (
    History,
    file,
    of_comment,
    replayed,
)

END = 2**63 - 1
OWNER, MODERATOR = ActingAs.OWNER, ActingAs.MODERATOR
HOLD = Hold(HoldCause.APPROVAL, "alice")
WORD = Hold(HoldCause.WATCHED_WORD, "alice")
MOD = origin("mod")
HOUR = timedelta(hours=1)
ALL = VideoViewer("mod", sees_all=True)


def report(writer: Writer, thing: Thing, *reporters: str, **why: Any) -> ModerationCase:
    """The case of a thing that these have reported first, recorded."""
    case = ModerationCase.blank(case_id(thing.thing_id))
    for reporter in reporters:
        file(writer, case, thing, reporter, **why)
    return case


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
            page = await model.page(conn, video, END, 10)
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


class Pages(Site):
    """The read API with callers of any role."""

    def ask(self, path: str, user: str | None = None, *roles: str, **params: Any) -> httpx.Response:
        headers = {}
        if user is not None:
            headers["Authorization"] = f"Bearer {mint_token(SECRET, user, roles)}"
        return self.get(path, headers=headers, **params)


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Pages]:
    pages = Pages(database_url, tmp_path)
    try:
        with hosting(database_url, Catalog(), Likes(), Comments(), Moderation()):
            yield pages
    finally:
        pages.close()


def listed(answer: httpx.Response) -> list[tuple[str, str | None]]:
    assert answer.status_code == 200, answer.text
    return [(item["content"], item.get("status")) for item in answer.json()["items"]]


class TestQueries:
    def test_who_sees_what_of_a_videos_comments(self, site: Pages) -> None:
        video = site.writer.video("alice").id
        path = f"/videos/{video}/comments"
        site.writer.comment(video, "bob", "first")
        gone = site.writer.comment(video, "bob", "rude")
        site.writer.comment(video, "eve", "mine", HOLD)
        site.writer.comment(video, "bob", "held", WORD)
        site.writer.comment(video, "eve", "last")
        gone.remove(MODERATOR, "an insult", MOD)
        site.writer.save(gone)
        everybody = [("last", None), ("first", None)]
        assert listed(site.ask(path)) == everybody
        for user, *roles in (("joe",), ("alice",), ("mod", "moderator")):
            assert listed(site.ask(path, user, *roles)) == everybody
        assert listed(site.ask(path, "eve")) == [
            ("last", None),
            ("mine", "held"),
            ("first", None),
        ]
        own = site.ask(path, "bob")
        assert listed(own) == [
            ("last", None),
            ("held", "held"),
            ("rude", "removed"),
            ("first", None),
        ]
        rude = own.json()["items"][2]
        assert (rude["statusReason"], rude["removedBy"]) == ("an insult", "moderator")
        held = own.json()["items"][1]
        assert "heldFor" not in held
        assert "statusReason" not in held
        # Page by page the same.
        found: list[tuple[str, str | None]] = []
        cursor: dict[str, Any] = {}
        for _ in range(4):
            page = site.ask(path, "bob", limit=1, **cursor)
            found += listed(page)
            cursor = {"cursor": page.json().get("nextCursor")}
        assert found == listed(own)
        assert cursor == {"cursor": None}
        for user, *roles in (("alice",), ("mod", "moderator"), ("root", "admin")):
            waiting = site.ask(path, user, *roles, status="held")
            assert listed(waiting) == [("held", "held"), ("mine", "held")]
            assert [item["heldFor"] for item in waiting.json()["items"]] == [
                "watched_word",
                "approval",
            ]
            assert waiting.json()["items"][0]["revision"] == 1
            assert listed(site.ask(path, user, *roles, status="removed")) == [("rude", "removed")]
        for user, *roles in (("bob",), ("joe", "auditor")):
            assert site.ask(path, user, *roles, status="held").status_code == 403
        assert site.ask(path, status="held").status_code == 401
        assert site.ask(path, "alice", status="deleted").status_code == 422
        assert site.get(f"/videos/{video}").json()["comments"] == 2

    def test_what_waits_for_the_callers_approval(self, site: Pages) -> None:
        one, two = site.writer.video("alice").id, site.writer.video("carol").id
        site.writer.comment(one, "bob", "one", HOLD)
        site.writer.comment(two, "bob", "two", Hold(HoldCause.APPROVAL, "carol"))
        both = [("two", "held"), ("one", "held")]
        assert listed(site.ask("/moderation/held", "mod", "moderator")) == both
        assert listed(site.ask("/moderation/held", "alice")) == both[1:]
        assert listed(site.ask("/moderation/held", "bob")) == []
        assert site.ask("/moderation/held").status_code == 401

    def test_the_queue(self, site: Pages) -> None:
        path = "/moderation/reports"
        upload = site.writer.video("alice", title="Rain")
        comment = site.writer.comment(upload.id, "bob", "ads")
        thing = of_comment(comment)
        case = report(site.writer, thing, "ann", detail="buy this")
        file(site.writer, case, thing, "eve", "hate")
        film = Thing(ThingKind.VIDEO, upload.id, upload.id)
        second = report(site.writer, film, "ann", why="rights")
        answer = site.ask(path, "mod", "moderator")
        one, two = answer.json()["items"]
        assert (one["reportId"], one["kind"], one["status"]) == (str(case.id), "comment", "open")
        assert (one["reports"], one["reasons"]) == (2, {"hate": 1, "spam": 1})
        assert [each["detail"] for each in one["details"]] == ["buy this"]
        assert (one["comment"]["content"], one["comment"]["userId"]) == ("ads", "bob")
        assert (two["reportId"], two["video"]["title"]) == (str(second.id), "Rain")
        assert "ann" not in answer.text
        first = site.ask(path, "root", "admin", limit=1)
        rest = site.ask(path, "root", "admin", cursor=first.json()["nextCursor"])
        assert [item["reportId"] for item in rest.json()["items"]] == [str(second.id)]
        comment.remove(OWNER, "rude", origin("alice"))
        site.writer.save(comment)
        (one, _) = site.ask(path, "mod", "moderator").json()["items"]
        assert (one["comment"]["status"], one["comment"]["removedBy"]) == ("removed", "owner")
        case.decide(Decision.REMOVE, "ads", MOD)
        upload.remove(origin("alice"))
        site.writer.save(case, upload)
        assert site.ask(path, "mod", "moderator").json()["items"] == []
        (closed,) = site.ask(path, "mod", "moderator", status="removed").json()["items"]
        assert (closed["decidedBy"], closed["decisionReason"]) == ("mod", "ads")
        assert "comment" not in closed
        (gone,) = site.ask(path, "mod", "moderator", status="gone").json()["items"]
        assert (gone["reportId"], gone["status"]) == (str(second.id), "gone")
        assert "video" not in gone

    @pytest.mark.parametrize(
        ("path", "roles", "params", "status"),
        [
            ("/moderation/reports", (), {}, 403),
            ("/moderation/reports", ("auditor",), {}, 403),
            ("/moderation/reports", ("moderator",), {"status": "what"}, 422),
            ("/moderation/reports", ("moderator",), {"cursor": "rubbish"}, 422),
            ("/moderation/held", (), {"cursor": "rubbish"}, 422),
            ("/users/me/blocked", (), {"limit": 0}, 422),
        ],
    )
    def test_what_is_refused(
        self, site: Pages, path: str, roles: tuple[str, ...], params: Any, status: int
    ) -> None:
        assert site.ask(path, "joe", *roles, **params).status_code == status

    def test_whom_the_caller_blocks(self, site: Pages) -> None:
        for name in ("ann", "eve"):
            block = UserBlock.blank(block_id("alice", name))
            block.block(name, origin("alice"))
            site.writer.save(block)
        answer = site.ask("/users/me/blocked", "alice").json()
        assert [item["userId"] for item in answer["items"]] == ["eve", "ann"]
        assert site.ask("/users/me/blocked", "ann").json()["items"] == []
        assert site.ask("/users/me/blocked").status_code == 401

    def test_who_may_comment_is_told_of_one_video(self, site: Pages) -> None:
        upload = site.writer.video("alice")
        path = f"/videos/{upload.id}"
        assert "commentPolicy" not in site.ask(path).json()
        upload.change_comment_policy(CommentPolicy.CLOSED, origin("alice"))
        site.writer.save(upload)
        assert site.ask(path).json()["commentPolicy"] == "closed"


class CommentsTwo(Comments):
    """As the release before made it: without tables for what is hidden."""

    version = 2
    tables = Comments.tables.removesuffix(Comments.additions[3])
    additions: ClassVar[Mapping[int, LiteralString]] = {}


def test_the_copy_of_a_former_release_grows_at_the_start(
    database_url: str, writer: Writer, tmp_path: Path
) -> None:
    """A data folder of the release before: what is removed from then on is hidden at once."""
    video = writer.video().id
    writer.comment(video, "bob", "kept")
    gone = writer.comment(video, "bob", "gone")
    with hosting(database_url, CommentsTwo()):
        caught_up(database_url, ["comments"], writer.head)
    found = (
        "SELECT to_regclass('comments.hidden') IS NULL, to_regclass('comments.policies') IS NULL"
    )
    assert rows(database_url, found) == [(True, True)]
    site = Pages(database_url, tmp_path)
    try:
        with hosting(database_url, Comments(), Catalog(), Likes(), Moderation()):
            gone.remove(MODERATOR, "rude", MOD)
            site.writer.save(gone)
            path = f"/videos/{video}/comments"
            assert listed(site.ask(path, "bob")) == [("gone", "removed"), ("kept", None)]
            assert listed(site.ask(path)) == [("kept", None)]
            replay = replayed(database_url, Comments(), ReplayOptions(Purpose.VERIFY))
            assert replay.result is not None
            assert not replay.result["differs"], replay.result
    finally:
        site.close()


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
