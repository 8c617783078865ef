"""Who is told what of comments that not everybody sees, of reports and of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, LiteralString

import httpx
import pytest
from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.moderation import (
    ActingAs,
    Decision,
    Hold,
    HoldCause,
    Thing,
    ThingKind,
    UserBlock,
    block_id,
)
from domain.upload import CommentPolicy
from engine.projection import Batch, columns
from engine.replay.records import Purpose, ReplayOptions
from infra.http.auth import mint_token
from projections.catalog import Catalog
from projections.comment_tables import ADD_DELTAS, FIRST_TABLES
from projections.comments import Comments
from projections.likes import Likes
from projections.moderation import Moderation
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, caught_up, hosting, origin
from tests.integration.readapi_support import SECRET, Site
from tests.integration.replay_support import (
    file,
    of_comment,
    replayed,
    report,
)

OWNER, MODERATOR = ActingAs.OWNER, ActingAs.MODERATOR
HOLD = Hold(HoldCause.APPROVAL, "alice")
WORD = Hold(HoldCause.WATCHED_WORD, "alice")
MOD = origin("mod")


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


POST: LiteralString = """
INSERT INTO {schema}.comments
    (comment_id, video_id, position, author, content, created_at, written_at)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""


class CommentsTwo(Comments):
    """As the release before made it: without tables for what is hidden."""

    version = 2
    tables = FIRST_TABLES
    additions: ClassVar[Mapping[int, LiteralString]] = {}

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        events = ((at, event) for at, event in batch if isinstance(event, Comment.Posted))
        for at, e in events:
            row = (e.originator_id, e.video_id, at, e.author, e.content, e.timestamp, e.timestamp)
            cursor.execute(self.sql(POST), row)
            cursor.execute(self.sql(ADD_DELTAS), columns([(e.video_id, 1)]))


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
