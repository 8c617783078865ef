"""Replays with events that can't be applied, and of projections whose version has changed."""

from __future__ import annotations

from uuid import UUID

import pytest
from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.video_likes import VideoLikes
from engine.projection import Batch
from engine.replay.records import ReplayOptions, ReplayState
from engine.replay.requests import OtherVersion, begin_for_outdated, outdated, resume
from engine.subscription import State
from projections.likes import TABLES, Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, caught_up, hosting, position
from tests.integration.replay_support import (
    BACK,
    VERIFY,
    begun,
    carried_on,
    connected,
    difference,
    replayed,
)
from tests.support import eventually

BAD = ("viewer-13", "viewer-17", "viewer-30")
PARKED = "SELECT position FROM backlot_dead_letters WHERE subscription = %s ORDER BY position"
LEDGER = "SELECT block, applied, positions FROM projections.ledger WHERE schema = %s"


class Picky(Likes):
    """Can't bear some viewers."""

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        for _, event in batch:
            if isinstance(event, VideoLikes.Event) and event.viewer in BAD:
                raise ValueError(event.viewer)
        super().apply(batch, cursor)


class Parking(Picky):
    on_poison = "park"


class NextLikes(Likes):
    version = Likes.version + 1
    tables = TABLES + ";CREATE TABLE {schema}.extra (video_id uuid)"


@pytest.fixture
def video(writer: Writer) -> UUID:
    """A video with 40 likes; 13 of the viewers' is at position 16."""
    video = writer.video().id
    for n in range(40):
        writer.like(video, f"viewer-{n}")
    return video


@pytest.mark.usefixtures("video")
@pytest.mark.parametrize(("workers", "batch_events"), [(1, 1), (1, 7), (3, 5), (2, 5_000)])
def test_parked_events_are_parked_again(
    database_url: str, writer: Writer, workers: int, batch_events: int
) -> None:
    with hosting(database_url, Parking()):
        caught_up(database_url, ["likes"], writer.head)
    options = ReplayOptions(workers=workers)
    replay = replayed(database_url, Parking(), options, batch_events=batch_events)
    assert replay.state is ReplayState.SWITCHED
    assert not difference(database_url, "likes", "likes__previous").differs
    for query in (PARKED, LEDGER):
        live, previous = (rows(database_url, query, [s]) for s in ("likes", "likes__previous"))
        assert live == previous
    assert len(rows(database_url, PARKED, ["likes"])) == len(BAD)


@pytest.mark.usefixtures("video")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_replay_stops_at_what_it_cannot_apply_and_goes_on_when_it_can(
    database_url: str, writer: Writer, workers: int
) -> None:
    with hosting(database_url, Likes()):
        caught_up(database_url, ["likes"], writer.head)
    replay = begun(database_url, Picky(), ReplayOptions(workers=workers))
    stopped = carried_on(database_url, replay, Picky(), batch_events=4)
    assert (stopped.state, stopped.paused) == (ReplayState.BUILDING, True)
    assert stopped.error is not None
    assert "ValueError: viewer-" in stopped.error
    assert carried_on(database_url, replay, Likes()) == stopped
    with connected(database_url) as conn:
        assert resume(conn, "likes").error is None
    assert carried_on(database_url, replay, Likes()).state is ReplayState.SWITCHED
    assert not difference(database_url, "likes", "likes__previous").differs
    assert rows(database_url, LEDGER, ["likes"]) == rows(database_url, LEDGER, ["likes__previous"])


@pytest.mark.usefixtures("video")
def test_a_projection_that_is_stopped_is_replaced_by_one_that_is_not(
    database_url: str, writer: Writer
) -> None:
    with hosting(database_url, Picky()) as host:
        eventually(lambda: host.status()[0].state is State.STOPPED)
        assert position(database_url, "likes") == 15
        # As far as the live copy is, there is nothing to object to; beyond, it is the same.
        replay = replayed(database_url, Picky())
        assert (replay.state, replay.paused) == (ReplayState.CATCHING_UP, True)
        with connected(database_url) as conn:
            resume(conn, "likes")
        switched = carried_on(database_url, replay, Likes())
        assert switched.state is ReplayState.SWITCHED
        assert position(database_url, "likes") == writer.head
        eventually(lambda: host.status()[0].state is State.RUNNING)


def test_a_changed_version_is_built_and_switched_in_by_itself(
    database_url: str, writer: Writer, video: UUID
) -> None:
    older, newer = Likes(), NextLikes()
    with hosting(database_url, older) as old_release:
        caught_up(database_url, ["likes"], writer.head)
        with hosting(database_url, newer) as new_release, connected(database_url) as conn:
            eventually(lambda: new_release.status()[0].state is State.OUTDATED)
            assert outdated(conn, {"likes": older}) == []
            assert outdated(conn, {"likes": newer}) == [newer]
            (replay,) = begin_for_outdated(conn, {"likes": newer}, requested_by="backlot")
            assert begin_for_outdated(conn, {"likes": newer}, requested_by="backlot") == []
            writer.like(video, "late")
            assert carried_on(database_url, replay, newer).state is ReplayState.SWITCHED
            eventually(lambda: new_release.status()[0].state is State.RUNNING)
            eventually(lambda: old_release.status()[0].state is State.OUTDATED)
            writer.like(video, "later")
            caught_up(database_url, ["likes"], writer.head)
            assert outdated(conn, {"likes": newer}) == []
            # The older release leaves it alone, too, when it starts again.
            assert outdated(conn, {"likes": older}) == []
    assert rows(database_url, "SELECT likes FROM likes.counts") == [(42,)]


@pytest.mark.usefixtures("video")
def test_a_replay_of_an_older_version_is_given_up_for_the_newer(
    database_url: str, writer: Writer
) -> None:
    with hosting(database_url, Likes()):
        caught_up(database_url, ["likes"], writer.head)
    left = begun(database_url, Likes())
    with pytest.raises(OtherVersion):
        carried_on(database_url, left, NextLikes())
    with connected(database_url) as conn:
        (replay,) = begin_for_outdated(conn, {"likes": NextLikes()}, requested_by="backlot")
    assert carried_on(database_url, left, Likes()).state is ReplayState.CANCELLED
    assert carried_on(database_url, replay, NextLikes()).state is ReplayState.SWITCHED


@pytest.mark.usefixtures("video")
def test_only_a_copy_of_the_own_version_is_verified_or_gone_back_to(
    database_url: str, writer: Writer
) -> None:
    with hosting(database_url, Likes()):
        caught_up(database_url, ["likes"], writer.head)
    with pytest.raises(OtherVersion):
        begun(database_url, NextLikes(), VERIFY)
    replayed(database_url, NextLikes())
    with pytest.raises(OtherVersion):
        replayed(database_url, NextLikes(), BACK)
    # The release that made the previous copy can go back to it.
    back = replayed(database_url, Likes(), BACK)
    assert back.state is ReplayState.SWITCHED
    assert rows(database_url, "SELECT version FROM backlot_checkpoints ORDER BY subscription") == [
        (Likes.version,),
        (NextLikes.version,),
    ]
