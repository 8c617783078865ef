"""Releases beside each other, or after each other, on one database: what each does with a copy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import ClassVar, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import Cursor
from psycopg.rows import TupleRow

from backlot.features import read_models
from domain.comment import Comment
from engine import checkpoints
from engine.checkpoints import ReadModelBehind, Waiting
from engine.completeness import UnknownVersion, completeness
from engine.installation import create, install
from engine.projection import Batch, Projection
from engine.projection_subscription import GOES_ON
from engine.replay.records import ReplayOptions, ReplayState
from engine.subscription import State
from infra.http.shapes import Position, decode_position
from infra.postgres.connection import make_pool
from projections.likes import TABLES, Likes
from projections.operations import Operations
from readapi.queries import STALE_ANSWERS
from tests.integration.event_log import rows
from tests.integration.operator_desk import Desk, executing
from tests.integration.projection_support import Tally, Writer, caught_up, hosting, position
from tests.integration.readapi_support import Site, serving
from tests.integration.replay_support import SWITCH, connected, replayed
from tests.support import eventually

COLUMNS = """
SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = %s
"""
COUNT = "SELECT sum(likes)::int FROM likes.counts"
STALE = "backlot-stale-position"
CONFIRMED = ReplayOptions(confirmed=True)


FIRST = Likes.version


class LikesTwo(Likes):
    """The next version; also hears of comments."""

    version = FIRST + 1
    events = (*Likes.events, Comment.Posted)  # type: ignore[assignment]  # a longer tuple
    tables: ClassVar[LiteralString] = TABLES + ";CREATE TABLE {schema}.talks (position bigint)"
    former: ClassVar[tuple[type[Projection], ...]] = (Likes,)

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        talks = [each.position for each in batch if isinstance(each.event, Comment.Posted)]
        query = self.sql("INSERT INTO {schema}.talks SELECT unnest(%b::bigint[])")
        cursor.execute(query, (talks,))
        super().apply([each for each in batch if each.position not in talks], cursor)


class LikesThree(LikesTwo):
    """And the one after, which has forgotten the first."""

    version = FIRST + 2
    former = (LikesTwo,)


class Picky(LikesTwo):
    """The next version with a fault: there is an event that it can't apply."""

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        raise ValueError("a fault of the new version")


class Forgetful(LikesTwo):
    """The next version, without the code of the one before."""

    former = ()


def made_by(database_url: str, writer: Writer, release: Projection) -> UUID:
    """A video with a like, in a copy that this release has made; it does not run any more."""
    video = writer.video().id
    writer.like(video, "first")
    with hosting(database_url, release):
        caught_up(database_url, ["likes"], writer.head)
    return video


def version(database_url: str) -> int:
    ((found,),) = rows(
        database_url, "SELECT version FROM backlot_checkpoints WHERE subscription = 'likes'"
    )
    return int(found)


class OperationsOne(Operations):
    version = 1


class Renamed(LikesTwo):
    """The next version without a column that the release before asks for."""

    tables = TABLES.replace("likes bigint", "total bigint", 1)


class TestFeeding:
    """Who applies events to a copy of another version."""

    def test_the_old_version_goes_on_until_the_new_one_is_switched_in(
        self, database_url: str, writer: Writer
    ) -> None:
        video = made_by(database_url, writer, Likes())
        with hosting(database_url, LikesTwo()) as host, connected(database_url) as conn:
            writer.like(video, "second")
            writer.comment(video)
            caught_up(database_url, ["likes"], writer.head)
            eventually(lambda: host.status()[0].position == writer.head)
            status = host.status()[0]
            assert (status.state, status.lag_events) == (State.OUTDATED, 0)
            assert status.detail is not None
            assert status.detail.endswith(GOES_ON.format(FIRST))
            # What it was asked to apply is what its own version wants.
            assert completeness(conn, LikesTwo()).complete
            assert replayed(database_url, LikesTwo()).state is ReplayState.SWITCHED
            writer.like(video, "third")
            caught_up(database_url, ["likes"], writer.head)
            eventually(lambda: host.status()[0].state is State.RUNNING)
            assert completeness(conn, LikesTwo()).complete
        assert (version(database_url), rows(database_url, COUNT)) == (FIRST + 1, [(3,)])

    def test_two_releases_at_once_apply_each_event_once(
        self, database_url: str, writer: Writer
    ) -> None:
        video = made_by(database_url, writer, Likes())
        with hosting(database_url, LikesTwo()) as new:
            for n in range(4):
                # The old release comes and goes, as its processes do.
                with hosting(database_url, Likes()):
                    writer.like(video, f"beside-{n}")
                    caught_up(database_url, ["likes"], writer.head)
                writer.like(video, f"after-{n}")
                caught_up(database_url, ["likes"], writer.head)
            assert new.status()[0].version == FIRST + 1
        assert rows(database_url, COUNT) == [(9,)]
        with connected(database_url) as conn:
            assert completeness(conn, Likes()).complete

    def test_a_replay_that_fails_leaves_the_old_version_going(
        self, database_url: str, writer: Writer
    ) -> None:
        video = made_by(database_url, writer, Likes())
        with hosting(database_url, Picky()):
            replay = replayed(database_url, Picky(), CONFIRMED)
            assert (replay.state, replay.paused) == (ReplayState.BUILDING, True)
            writer.like(video, "second")
            caught_up(database_url, ["likes"], writer.head)
        assert (version(database_url), rows(database_url, COUNT)) == (FIRST, [(2,)])

    def test_of_three_releases_the_newest_that_can_goes_on(
        self, database_url: str, writer: Writer
    ) -> None:
        video = made_by(database_url, writer, Likes())
        with hosting(database_url, LikesThree()) as third:
            with hosting(database_url, LikesTwo()):
                writer.like(video, "second")
                caught_up(database_url, ["likes"], writer.head)
                assert replayed(database_url, LikesTwo()).state is ReplayState.SWITCHED
            # The third knows what the second has made, though not what the first had.
            writer.like(video, "third")
            caught_up(database_url, ["likes"], writer.head)
            assert replayed(database_url, LikesThree()).state is ReplayState.SWITCHED
            eventually(lambda: third.status()[0].state is State.RUNNING)
        assert (version(database_url), rows(database_url, COUNT)) == (FIRST + 2, [(3,)])

    def test_an_older_release_leaves_what_a_newer_one_made_alone(
        self, database_url: str, writer: Writer
    ) -> None:
        with hosting(database_url, LikesTwo()), hosting(database_url, Likes()) as old:
            eventually(lambda: old.status()[0].state is State.OUTDATED)
            assert version(database_url) == FIRST + 1
            writer.like(writer.video().id, "first")
            caught_up(database_url, ["likes"], writer.head)
        assert rows(database_url, COUNT) == [(1,)]

    def test_requests_of_operators_are_heard_before_the_replay(
        self, root: Desk, writer: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writer.video()
        with executing(root.database_url):
            root.done("pause", "comments")
            caught_up(root.database_url, ["operations"], writer.head + 2)
        monkeypatch.setattr(Operations, "former", (OperationsOne,))
        monkeypatch.setattr(Operations, "version", 2)
        with executing(root.database_url):
            assert root.done("resume", "comments") == {"changed": True}


def test_events_of_an_unknown_version_are_not_accounted(database_url: str, writer: Writer) -> None:
    made_by(database_url, writer, Likes())
    with connected(database_url) as conn, pytest.raises(UnknownVersion, match="replay likes"):
        completeness(conn, Forgetful())


Case = Callable[[Waiting], Awaitable[None]]


def at(position: int, *schemas: str) -> dict[str, Position]:
    """These read models, at a position of the log."""
    return dict.fromkeys(schemas, Position(position))


def wait(database_url: str, release: Projection, case: Case) -> None:
    async def main() -> None:
        async with make_pool(database_url, max_size=3) as pool:
            await case(Waiting(pool, [release]))

    asyncio.run(main())


class TestWaiting:
    """Who waits for a copy that nobody can feed."""

    @pytest.mark.parametrize(
        ("maker", "reader"),
        [(Likes(), Forgetful()), (LikesTwo(), Likes()), (Likes(), LikesThree())],
        ids=["code gone", "older release", "release skipped"],
    )
    def test_is_told_where_it_stands(
        self, database_url: str, writer: Writer, maker: Projection, reader: Projection
    ) -> None:
        video = made_by(database_url, writer, maker)
        stood = writer.head
        writer.like(video, "second")

        async def case(waiting: Waiting) -> None:
            for seconds in (0.0, 60.0, 60.0):
                assert await waiting.until(at(writer.head, "likes"), seconds) == stood
            assert await waiting.until(at(stood, "likes"), 60.0) is None

        wait(database_url, reader, case)

    def test_waits_while_another_release_feeds_it(
        self, database_url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also while one process of that hands over to another."""
        monkeypatch.setattr(checkpoints, "UNFED_SECONDS", 3600.0)
        video = made_by(database_url, writer, Likes())
        writer.like(video, "second")

        async def case(waiting: Waiting) -> None:
            asked = asyncio.create_task(waiting.until(at(writer.head, "likes"), 60.0))
            await asyncio.to_thread(eventually, lambda: waiting._unfed)
            with hosting(database_url, Likes()):
                assert await asked is None
                monkeypatch.setattr(checkpoints, "UNFED_SECONDS", 0.0)
                with pytest.raises(ReadModelBehind):
                    await waiting.until(at(writer.head + 1, "likes"), 0.2)

        wait(database_url, Forgetful(), case)

    @pytest.mark.parametrize("release", [Likes(), LikesTwo()], ids=["its own", "carried"])
    def test_waits_in_vain_for_what_this_release_can_feed_and_nobody_does(
        self, database_url: str, writer: Writer, release: Projection
    ) -> None:
        video = made_by(database_url, writer, Likes())
        writer.like(video, "second")

        async def case(waiting: Waiting) -> None:
            with pytest.raises(ReadModelBehind):
                await waiting.until(at(writer.head, "likes"), 0.2)

        wait(database_url, release, case)

    def test_waits_for_the_others_all_the_same(self, database_url: str, writer: Writer) -> None:
        video = made_by(database_url, writer, Likes())
        stood = writer.head
        writer.like(video, "second")
        with psycopg.connect(database_url, autocommit=True) as conn:
            install(conn, [Tally()])

        async def case(waiting: Waiting) -> None:
            with pytest.raises(ReadModelBehind):
                await waiting.until(at(writer.head, "likes", "tally"), 0.2)
            with hosting(database_url, Tally()):
                assert await waiting.until(at(writer.head, "likes", "tally"), 60.0) == stood

        wait(database_url, Forgetful(), case)


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with serving(database_url, tmp_path) as site:
        yield site


def test_an_answer_says_that_it_is_older_until_the_replay_has_ended(site: Site) -> None:
    video = site.writer.video().id
    site.writer.like(video, "alice")
    path, stood = f"/videos/{video}", site.writer.head
    assert STALE not in site.get(path).headers
    rows(
        site.database_url,
        "UPDATE backlot_checkpoints SET version = 0 WHERE subscription = 'likes' RETURNING 1",
    )
    site.writer.like(video, "bob")
    counted = STALE_ANSWERS._value.get()
    for asked in (path, f"{path}/like", "/videos", "/videos/liked"):
        answer = site.get(asked, "bob")
        assert answer.status_code == 200, answer.text
        assert decode_position(answer.headers[STALE]) == Position(stood)
    assert STALE_ANSWERS._value.get() == counted + 4
    # What is not made from it is as new as ever, and who does not ask is not told.
    assert STALE not in site.get(f"{path}/comments").headers
    assert STALE not in site.get(path, fresh=False).headers
    replayed(site.database_url, Likes(), SWITCH)
    answer = site.get(f"{path}/like", "bob")
    assert STALE not in answer.headers
    assert answer.json() == {"hasLiked": True, "likesCount": 2}
    assert position(site.database_url, "likes") == site.writer.head


def lost(database_url: str, kind: type[Projection]) -> set[tuple[str, ...]]:
    """Columns of former versions that the newest does not have as they were."""
    found = []
    with psycopg.connect(database_url) as conn:
        install(conn, [])
        for number, each in enumerate((kind, *kind.former)):
            copy = each(f"copy_{number}")
            create(conn, copy)
            found.append({tuple(row) for row in conn.execute(COLUMNS, (copy.schema,)).fetchall()})
        conn.rollback()
    newest, *former = found
    return set().union(*former) - newest


@pytest.mark.parametrize("kind", [*map(type, read_models().all()), LikesTwo, LikesThree])
def test_the_release_before_finds_its_tables_in_the_new_ones(
    database_url: str, kind: type[Projection]
) -> None:
    assert {each.name for each in kind.former} <= {kind.name}
    assert all(each.version < kind.version for each in kind.former)
    assert lost(database_url, kind) == set()


def test_a_column_that_the_release_before_asks_for_is_missed(database_url: str) -> None:
    assert lost(database_url, Renamed) == {("counts", "likes", "bigint")}
