"""The number in the answer to a like: exact at the end of the log, however far the likes are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from commands.likes import LikesOf, Wish
from engine import checkpoints
from engine.command_bus import CommandBus
from engine.event_store import GroupCommitRecorder
from engine.installation import create, install
from engine.lookups import Tally
from engine.projection import Applier
from projections.likes import Likes
from tests.integration.buses import execute, execute_all, like, new_video, open_bus
from tests.integration.event_log import recording


@pytest.fixture
def recorder(database_url: str) -> Iterator[GroupCommitRecorder]:
    """A log whose likes no process projects."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, [Likes()])
    with recording(database_url) as opened:
        yield opened


@pytest.fixture
def another(recorder: GroupCommitRecorder, database_url: str) -> Iterator[GroupCommitRecorder]:
    with recording(database_url) as opened:
        yield opened


@pytest.fixture
def video(recorder: GroupCommitRecorder) -> UUID:
    return new_video(recorder)


def project(database_url: str, until: int, likes: Likes | None = None) -> None:
    """Bring the likes up to a position."""
    likes = likes or Likes()
    with psycopg.connect(database_url, autocommit=True) as conn:
        applier = Applier(likes, batch_events=1_000)
        seen = checkpoints.look(conn, likes.schema)
        assert seen is not None
        applier.take_in(conn, seen.position, applier.read(conn, seen.position, until))


def counting(recorder: GroupCommitRecorder, tally: Tally | None = None) -> Any:
    """A bus that counts likes, as the program has it."""
    return open_bus(recorder, readers={LikesOf: tally or Likes().tally()})


async def told(bus: CommandBus, video: UUID, viewer: str, wish: Wish = Wish.LIKE) -> int:
    outcome: Any = await execute(bus, like(video, viewer, wish), viewer)
    count: int = outcome.answer.likes_count
    return count


@asynccontextmanager
async def two_buses(recorder: GroupCommitRecorder, another: GroupCommitRecorder) -> Any:
    async with counting(recorder) as bus, counting(another) as other:
        yield bus, other


def test_likes_count_at_once_while_nobody_projects_them(
    recorder: GroupCommitRecorder, another: GroupCommitRecorder, video: UUID
) -> None:
    async def scenario() -> list[int]:
        async with two_buses(recorder, another) as (bus, other):
            return [
                await told(bus, video, "ann"),
                await told(bus, video, "bob"),
                await told(bus, video, "ann"),
                await told(other, video, "eve"),
                await told(other, video, "bob", Wish.UNLIKE),
                await told(bus, video, "bob", Wish.UNLIKE),
                await told(bus, video, "eve", Wish.TOGGLE),
                await told(other, video, "ann", Wish.TOGGLE),
            ]

    assert asyncio.run(scenario()) == [1, 2, 2, 3, 2, 2, 1, 0]


def test_it_is_the_same_number_wherever_the_read_model_stands(
    recorder: GroupCommitRecorder, another: GroupCommitRecorder, database_url: str, video: UUID
) -> None:
    async def scenario() -> None:
        async with two_buses(recorder, another) as (bus, other):
            for number in range(1, 5):
                assert await told(bus, video, f"viewer-{number}") == number
            # Two events of the upload, then the likes.
            for until in range(7):
                project(database_url, until)
                for each in (bus, other):
                    assert await told(each, video, "nobody", Wish.UNLIKE) == 4
                async with counting(another) as newcomer:
                    assert await told(newcomer, video, "viewer-1") == 4
            assert await told(other, video, "viewer-5") == 5
            assert await told(bus, video, "viewer-6") == 6

    asyncio.run(scenario())


def test_commands_of_one_batch_count_each_other(recorder: GroupCommitRecorder, video: UUID) -> None:
    async def scenario() -> list[int]:
        async with counting(recorder) as bus:
            wishes = [like(video, name) for name in ("ann", "bob", "eve", "bob")]
            wishes += [like(video, name, Wish.UNLIKE) for name in ("ann", "zoe")]
            outcomes = await execute_all(bus, wishes)
            return [outcome.answer.likes_count for outcome in outcomes]

    assert asyncio.run(scenario()) == [1, 2, 3, 3, 2, 2]


def test_what_was_refused_does_not_count(
    recorder: GroupCommitRecorder,
    another: GroupCommitRecorder,
    video: UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = recorder.append

    async def scenario() -> None:
        async with two_buses(recorder, another) as (bus, other):

            def be_late(saves: Any) -> Any:
                monkeypatch.undo()
                rival = execute(other, like(video, "ann"))
                asyncio.run_coroutine_threadsafe(rival, loop).result()
                return append(saves)

            loop = asyncio.get_running_loop()
            monkeypatch.setattr(recorder, "append", be_late)
            await execute_all(bus, [like(video, "ann"), like(video, "bob")])
            for each in (bus, other):
                assert await told(each, video, "ann") == 2

    asyncio.run(scenario())


def test_a_copy_that_is_farther_behind_may_take_over(
    recorder: GroupCommitRecorder, database_url: str, video: UUID
) -> None:
    async def scenario() -> None:
        async with counting(recorder) as bus:
            for number in range(1, 5):
                assert await told(bus, video, f"viewer-{number}") == number
            with psycopg.connect(database_url, autocommit=True) as conn:
                create(conn, copy := Likes("likes_next"))
            project(database_url, 3, copy)
            project(database_url, 6)
            assert await told(bus, video, "viewer-5") == 5
            with psycopg.connect(database_url) as conn:
                for old, new in (("likes", "likes_before"), ("likes_next", "likes")):
                    conn.execute(f"ALTER SCHEMA {old} RENAME TO {new}")
                    conn.execute(
                        "UPDATE backlot_checkpoints SET subscription = %s WHERE subscription = %s",
                        (new, old),
                    )
            assert await told(bus, video, "viewer-6") == 6

    asyncio.run(scenario())


def test_it_remembers_no_more_than_so_many_and_is_exact_again_later(
    recorder: GroupCommitRecorder, database_url: str, video: UUID
) -> None:
    async def scenario() -> None:
        tally = Likes().tally(most=3)
        async with counting(recorder) as before, counting(recorder, tally) as bus:
            for number in range(1, 6):
                assert await told(before, video, f"viewer-{number}") == number
            # Of five likes, those that the tally has room for.
            assert await told(bus, video, "viewer-6") == 4
            assert await told(bus, video, "viewer-7") == 4
            assert tally.remembered == 3
            project(database_url, 7)
            assert await told(bus, video, "nobody", Wish.UNLIKE) == 7

    asyncio.run(scenario())
