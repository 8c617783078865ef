"""Who sees which video, in every read; and what a release without visibility has left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import httpx
import orjson
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.comment_likes import CommentLikes
from domain.upload import Upload, Visibility
from engine.completeness import completeness
from engine.installation import install
from engine.projection import Projection
from projections.analytics import videos
from projections.analytics.schema import migrate
from projections.catalog import ADD_VISIBILITY, Catalog
from projections.likes import ADD_PRIVATE, FIRST_TABLES, Likes
from tests.integration.event_log import rows
from tests.integration.projection_spec import ProjectionSpec
from tests.integration.projection_support import Writer, caught_up, hosting, origin
from tests.integration.readapi_support import Site, serving
from tests.integration.replay_support import replayed

PUBLIC, UNLISTED, PRIVATE = Visibility
COLUMNS = """
SELECT table_name, column_name, data_type, column_default FROM information_schema.columns
WHERE table_schema = %s
"""


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with serving(database_url, tmp_path) as site:
        yield site


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["videoId"] for item in answer.json()["items"]]


def one_of_each(site: Site) -> list[str]:
    """A public, an unlisted and a private video of Alice's, by id."""
    return [str(site.writer.video("alice", visibility=each).id) for each in Visibility]


def test_lists_show_public_videos_and_owners_all_of_theirs(site: Site) -> None:
    public, unlisted, private = one_of_each(site)
    for user, roles in (("bob", []), ("mod", ["moderator"]), ("root", ["admin"]), (None, [])):
        assert ids(site.get("/videos", user, roles=roles)) == [public]
        assert ids(site.get("/videos", user, roles=roles, owner="alice")) == [public]
    assert ids(site.get("/videos", "alice")) == [public]
    for owner in ("alice", "me"):
        assert ids(site.get("/videos", "alice", owner=owner)) == [private, unlisted, public]
    assert ids(site.get("/videos", "alice", owner="alice", category="art")) == []
    assert ids(site.get("/videos", "bob", owner="me")) == []
    assert site.get("/videos", owner="me").status_code == 401


def test_pages_go_on_behind_what_they_do_not_show(site: Site) -> None:
    shown = [str(site.writer.video().id) for _ in range(3)]
    for each in Visibility:
        site.writer.video("alice", visibility=each)
    shown += [str(site.writer.video().id)]
    found: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        answer = site.get("/videos", "bob", owner="alice", limit=1, **cursor)
        found += ids(answer)
        if "nextCursor" not in answer.json():
            break
        cursor = {"cursor": answer.json()["nextCursor"]}
    assert [each for each in reversed(found) if each in shown] == shown
    assert len(found) == len(shown) + 1


def test_every_video_says_who_may_see_it(site: Site) -> None:
    for video, visibility in zip(one_of_each(site), Visibility, strict=True):
        assert site.get(f"/videos/{video}", "alice").json()["visibility"] == visibility


@pytest.mark.parametrize("path", ["", "/like", "/comments", "/events", "/stats"])
def test_a_private_video_is_as_one_that_never_was(site: Site, path: str) -> None:
    *_, private = one_of_each(site)
    for user, roles in ((None, []), ("bob", []), ("eve", ["auditor", "service"])):
        never = site.get(f"/videos/{UUID(int=7)}{path}", user, roles=roles)
        hidden = site.get(f"/videos/{private}{path}", user, roles=roles)
        assert (hidden.status_code, never.status_code) == (404, 404)
        told = [answer.json() | {"requestId": ""} for answer in (hidden, never)]
        assert told[0] == told[1]
    if path != "/events":
        for user, roles in (("alice", []), ("mod", ["moderator"]), ("root", ["admin"])):
            assert site.get(f"/videos/{private}{path}", user, roles=roles).status_code == 200


def test_an_upload_that_will_be_private_is_nobody_elses_business(site: Site) -> None:
    given_up = site.writer.upload("alice", visibility=PRIVATE)
    given_up.abort(origin("alice"))
    site.writer.save(given_up)
    path = f"/uploads/{given_up.id}"
    assert [site.get(path, user).status_code for user in ("alice", "bob")] == [200, 404]
    assert site.get(path, "root", admin=True).status_code == 200
    open_path = f"/uploads/{site.writer.upload('alice').id}"
    assert site.get(open_path, "bob").status_code == 403


def test_a_like_is_listed_to_its_viewer_as_long_as_the_video_is(site: Site) -> None:
    video = site.writer.video("alice")
    site.writer.like(video.id, "alice", "bob")
    for visibility, others in ((UNLISTED, []), (PRIVATE, []), (PUBLIC, [str(video.id)])):
        site.writer.show(video, visibility)
        assert ids(site.get("/videos/liked", "bob")) == others
        # Who moderates has a list of likes like everybody else.
        assert ids(site.get("/videos/liked", "bob", roles=["moderator"])) == others
        assert ids(site.get("/videos/liked", "alice")) == [str(video.id)]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.sampled_from(Visibility), max_size=5))
def test_reads_follow_every_change(site: Site, changes: list[Visibility]) -> None:
    video = site.writer.video("alice")
    for visibility in (PUBLIC, *changes):
        site.writer.show(video, visibility)
        seen = {user: site.get(f"/videos/{video.id}", user) for user in ("alice", "bob", None)}
        assert seen["alice"].json()["visibility"] == visibility
        for user in ("bob", None):
            assert seen[user].status_code == (404 if visibility is PRIVATE else 200)
        assert (str(video.id) in ids(site.get("/videos", "bob"))) is (visibility is PUBLIC)


def test_what_the_catalog_makes_of_visibility(conn: Connection[TupleRow], writer: Writer) -> None:
    spec = ProjectionSpec(conn, writer, Catalog)
    plain, private = writer.upload(), writer.upload(visibility=PRIVATE)
    columns = "upload_id, visibility"
    spec.given().then("uploads", (plain.id, "public"), (private.id, "private"), columns=columns)
    for upload in (plain, private):
        upload.complete(2500, "etag", origin("alice"))
        upload.change_visibility(UNLISTED, origin("alice"))
    spec.when(plain, private)
    spec.then("uploads", (plain.id, "unlisted"), (private.id, "unlisted"), columns=columns)


def test_what_the_likes_make_of_visibility(conn: Connection[TupleRow], writer: Writer) -> None:
    spec = ProjectionSpec(conn, writer, Likes)
    video, private = writer.video(), writer.video(visibility=PRIVATE)
    writer.like(private.id, "ann")
    spec.given().then("private", (private.id,)).then("counts", (private.id, 1))
    for visibility, hidden in ((PRIVATE, [video.id]), (UNLISTED, []), (PRIVATE, [video.id])):
        video.change_visibility(visibility, origin("alice"))
        spec.when(video).then("private", (private.id,), *((each,) for each in hidden))
    for visibility in (UNLISTED, PUBLIC, PRIVATE):
        video.change_visibility(visibility, origin("alice"))
    private.change_visibility(PUBLIC, origin("alice"))
    spec.when(video, private).then("private", (video.id,)).then("counts", (private.id, 1))


def test_the_analytics_list_what_is_public(conn: Connection[TupleRow], writer: Writer) -> None:
    migrate(conn)
    listed = "SELECT listed FROM analytics.videos WHERE video_id = %s"
    upload = writer.upload(visibility=UNLISTED)
    upload.complete(2500, "etag", origin("alice"))
    for visibility in (PRIVATE, PUBLIC, UNLISTED):
        upload.change_visibility(visibility, origin("alice"))
    writer.save(upload)
    told = []
    for stored in rows(
        conn.info.dsn,
        "SELECT originator_id, originator_version, topic, state FROM backlot_events "
        "ORDER BY notification_id",
    ):
        event = writer.mapper.decode(*stored)
        change = videos.change_of(type(event).TOPIC, _told(event))
        conn.execute(videos.WRITES[change.kind], change.values)
        told += conn.execute(listed, (upload.id,)).fetchall()
    assert told == [(True,), (False,), (False,), (False,), (True,), (False,)]


def _told(event: Any) -> Any:
    return orjson.loads(videos.message(1, event).value)


class CatalogTwo(Catalog):
    """The catalog as the release before made it."""

    version = 2
    events = tuple(event for event in Catalog.events if event is not Upload.VisibilityChanged)
    tables = Catalog.tables.replace(
        ",\n    visibility text COLLATE \"C\" NOT NULL DEFAULT 'public'", ""
    )
    additions: ClassVar[Any] = {}


class LikesOne(Likes):
    """The likes as the release before made them."""

    version = 1
    events = tuple(  # type: ignore[assignment]  # a shorter one
        event
        for event in Likes.events
        if event not in (Upload.VisibilityChanged, *CommentLikes.events())
    )
    tables = FIRST_TABLES.replace(f";\n{ADD_PRIVATE}", "")
    additions: ClassVar[Any] = {}


class TestUpgrade:
    """What the release before has left is made into what this one reads, at its start."""

    @pytest.mark.parametrize(("before", "now"), [(CatalogTwo, Catalog), (LikesOne, Likes)])
    def test_tables_are_those_of_a_new_copy(
        self,
        conn: Connection[TupleRow],
        writer: Writer,
        before: type[Projection],
        now: type[Projection],
    ) -> None:
        install(conn, [before()])
        assert rows(conn.info.dsn, COLUMNS, [before.name])
        conn.execute("UPDATE backlot_checkpoints SET position = 1 WHERE kind = 'projection'")
        install(conn, [now()])
        grown = set(conn.execute(COLUMNS, (now.name,)).fetchall())
        install(conn, [now("beside")])
        assert grown == set(conn.execute(COLUMNS, ("beside",)).fetchall())
        assert rows(
            conn.info.dsn,
            "SELECT version FROM backlot_checkpoints WHERE subscription = %s",
            [now.name],
        ) == [(now.version,)]

    def test_the_release_before_had_no_visibility(self) -> None:
        assert "visibility" not in CatalogTwo.tables
        assert "private" not in LikesOne.tables
        assert "visibility" in ADD_VISIBILITY

    def test_all_is_public_and_nothing_is_built_again(
        self, database_url: str, writer: Writer
    ) -> None:
        old = writer.video("alice")
        writer.like(old.id, "ann")
        with hosting(database_url, CatalogTwo(), LikesOne()):
            caught_up(database_url, ["catalog", "likes"], writer.head)
        with hosting(database_url, Catalog(), Likes()) as host:
            assert [each.version for each in host.status()] == [Catalog.version, Likes.version]
            new = writer.video("alice", visibility=UNLISTED)
            writer.show(old, PRIVATE)
            caught_up(database_url, ["catalog", "likes"], writer.head)
            found = "SELECT upload_id, visibility FROM catalog.uploads"
            assert set(rows(database_url, found)) == {(old.id, "private"), (new.id, "unlisted")}
            assert rows(database_url, "SELECT * FROM likes.private") == [(old.id,)]
            with psycopg.connect(database_url, autocommit=True) as conn:
                assert completeness(conn, Catalog()).complete
                assert completeness(conn, Likes()).complete
        # And they are what a replay makes of the log.
        for kind in (Catalog, Likes):
            replay = replayed(database_url, kind())
            assert (replay.state, (replay.result or {})["differs"]) == ("switched", False)

    def test_the_release_before_leaves_it_alone(self, database_url: str, writer: Writer) -> None:
        writer.video("alice")
        with hosting(database_url, CatalogTwo()):
            caught_up(database_url, ["catalog"], writer.head)
        with hosting(database_url, Catalog()), hosting(database_url, CatalogTwo()):
            private = writer.video("alice", visibility=PRIVATE)
            caught_up(database_url, ["catalog"], writer.head)
        found = "SELECT visibility FROM catalog.uploads WHERE upload_id = %s"
        assert rows(database_url, found, [private.id]) == [("private",)]
