"""What operators do about replays: pause, go on, cancel, confirm, look at the past, go back."""

from __future__ import annotations

from threading import Event, Thread
from uuid import UUID

import pytest

from engine.replay import records as replay_progress
from engine.replay.records import (
    NoReplay,
    Progress,
    Purpose,
    Replay,
    ReplayOptions,
    ReplayState,
    ReplayUnderWay,
)
from engine.replay.replay import ReplayElsewhere
from engine.replay.requests import (
    BadTarget,
    NoCopy,
    cancel,
    confirm,
    drop_look,
    drop_old,
    pause,
    resume,
)
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, caught_up, hosting
from tests.integration.replay_support import (
    BACK,
    VERIFY,
    History,
    begun,
    carried_on,
    connected,
    copies,
    difference,
    projected,
    replayed,
    replays,
)
from tests.support import DEADLINE_SECONDS

LEDGER = "SELECT block, applied, positions FROM projections.ledger WHERE schema = %s ORDER BY 1"


@pytest.fixture(autouse=True)
def _told_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_progress, "SHOW_SECONDS", 0)


@pytest.fixture
def video(database_url: str, writer: Writer) -> UUID:
    """A video with 40 likes, projected."""
    video = writer.video().id
    for n in range(40):
        writer.like(video, f"viewer-{n}")
    projected(database_url, writer, {"likes": Likes()})
    return video


def likes_of(database_url: str, video: UUID, schema: str = "likes") -> int:
    ((count,),) = rows(
        database_url, f"SELECT likes FROM {schema}.counts WHERE video_id = %s", [video]
    )
    return int(count)


def rolled_back(database_url: str, projection: Likes) -> Replay:
    return replayed(database_url, projection, BACK)


@pytest.mark.usefixtures("video")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_paused_replay_goes_on_where_it_stood(database_url: str, workers: int) -> None:
    told: list[Progress] = []

    def pause_in_the_middle(progress: Progress) -> None:
        told.append(progress)
        if progress.position >= 20:
            with connected(database_url) as conn:
                pause(conn, "likes")

    replay = begun(database_url, Likes(), ReplayOptions(workers=workers))
    work = {"report": pause_in_the_middle, "batch_events": 1}
    paused = carried_on(database_url, replay, Likes(), **work)
    assert (paused.state, paused.paused) == (ReplayState.BUILDING, True)
    assert 20 <= paused.position <= 42
    assert carried_on(database_url, replay, Likes()) == paused
    with connected(database_url) as conn:
        resume(conn, "likes")
    ended = carried_on(database_url, replay, Likes(), report=told.append)
    assert ended.state is ReplayState.SWITCHED
    assert rows(database_url, LEDGER, ["likes"]) == rows(database_url, LEDGER, ["likes__previous"])
    assert [each.position for each in told] == sorted(each.position for each in told)
    assert {each.name for each in told} == {"likes"}


@pytest.mark.usefixtures("video")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_stops_leaves_the_replay_to_others(database_url: str, workers: int) -> None:
    stopping = Event()
    replay = begun(database_url, Likes(), ReplayOptions(workers=workers))
    left = carried_on(
        database_url,
        replay,
        Likes(),
        batch_events=1,
        stopping=stopping,
        report=lambda progress: stopping.set() if progress.position > 5 else None,
    )
    assert (left.state, left.paused) == (ReplayState.BUILDING, False)
    assert carried_on(database_url, replay, Likes()).state is ReplayState.SWITCHED
    assert not difference(database_url, "likes", "likes__previous").differs


@pytest.mark.usefixtures("video")
@pytest.mark.parametrize("workers", [1, 2])
def test_cancelling_drops_what_was_built(database_url: str, workers: int) -> None:
    def give_up(progress: Progress) -> None:
        if progress.position >= 10 and progress.state is ReplayState.BUILDING:
            with connected(database_url) as conn:
                assert cancel(conn, "likes").state is ReplayState.CANCELLED

    replay = begun(database_url, Likes(), ReplayOptions(workers=workers))
    ended = carried_on(database_url, replay, Likes(), report=give_up, batch_events=1)
    assert (ended.state, ended.error) == (ReplayState.CANCELLED, None)
    assert copies(database_url) == ["likes"]
    with connected(database_url) as conn, pytest.raises(NoReplay):
        cancel(conn, "likes")
    assert replayed(database_url, Likes()).state is ReplayState.SWITCHED


@pytest.mark.usefixtures("video")
def test_a_replay_can_be_cancelled_while_nobody_works_on_it(database_url: str) -> None:
    begun(database_url, Likes())
    with connected(database_url) as conn:
        cancel(conn, "likes")
    assert copies(database_url) == ["likes"]


@pytest.mark.usefixtures("video")
def test_one_replay_of_a_projection_and_one_process_at_a_time(database_url: str) -> None:
    entered, go_on = Event(), Event()

    def wait(progress: Progress) -> None:
        entered.set()
        assert go_on.wait(DEADLINE_SECONDS)

    replay = begun(database_url, Likes())
    with pytest.raises(ReplayUnderWay):
        begun(database_url, Likes(), VERIFY)
    worker = Thread(
        target=carried_on, args=(database_url, replay, Likes()), kwargs={"report": wait}
    )
    worker.start()
    assert entered.wait(DEADLINE_SECONDS)
    with pytest.raises(ReplayElsewhere):
        carried_on(database_url, replay, Likes())
    go_on.set()
    worker.join()
    with connected(database_url) as conn:
        assert [each.state for each in replays(conn, "likes")] == [ReplayState.SWITCHED]


def test_a_difference_waits_to_be_confirmed(database_url: str, writer: Writer, video: UUID) -> None:
    rows(database_url, "UPDATE likes.counts SET likes = 41 RETURNING 1")
    with hosting(database_url, Likes()):
        waiting = replayed(database_url, Likes())
        assert waiting.state is ReplayState.WAITING
        assert waiting.result is not None
        (key,) = waiting.result["keys"]
        assert (key["table"], key["key"]) == ("counts", {"video_id": str(video)})
        # Nothing has changed, and the live copy goes on.
        assert carried_on(database_url, waiting, Likes()) == waiting
        writer.like(video, "late")
        caught_up(database_url, ["likes"], writer.head)
        assert likes_of(database_url, video) == 42
        with connected(database_url) as conn:
            confirm(conn, "likes")
        assert carried_on(database_url, waiting, Likes()).state is ReplayState.SWITCHED
        assert likes_of(database_url, video) == 41
        writer.like(video, "later")
        caught_up(database_url, ["likes"], writer.head)
    assert likes_of(database_url, video) == 42
    assert likes_of(database_url, video, "likes__previous") == 42


def test_who_confirms_beforehand_is_not_asked(database_url: str, video: UUID) -> None:
    rows(database_url, "UPDATE likes.counts SET likes = 41 RETURNING 1")
    replay = replayed(database_url, Likes(), ReplayOptions(confirmed=True))
    assert replay.state is ReplayState.SWITCHED
    assert replay.result is not None
    assert replay.result["total"] == 1
    assert likes_of(database_url, video) == 40


@pytest.mark.parametrize("wrong", [0, 1])
def test_verifying_changes_nothing(database_url: str, video: UUID, wrong: int) -> None:
    rows(database_url, f"UPDATE likes.counts SET likes = likes + {wrong} RETURNING 1")
    before = rows(database_url, "SELECT * FROM backlot_checkpoints")
    replay = replayed(database_url, Likes(), VERIFY)
    assert replay.state is ReplayState.VERIFIED
    assert replay.schema == f"likes__verify_{replay.id}"
    assert replay.result is not None
    assert replay.result["total"] == wrong
    assert rows(database_url, "SELECT * FROM backlot_checkpoints") == before
    assert likes_of(database_url, video) == 40 + wrong


def test_a_look_at_the_past_stays_there(database_url: str, writer: Writer, video: UUID) -> None:
    look = replayed(database_url, Likes(), ReplayOptions(Purpose.LOOK, to=12))
    assert (look.state, look.schema, look.position) == (ReplayState.KEPT, "likes__at_12", 12)
    with hosting(database_url, Likes()):
        writer.like(video, "late")
        caught_up(database_url, ["likes"], writer.head)
    assert likes_of(database_url, video, "likes__at_12") == 10
    assert replayed(database_url, Likes()).state is ReplayState.SWITCHED
    assert copies(database_url) == ["likes", "likes__at_12", "likes__previous"]
    with connected(database_url) as conn:
        drop_look(conn, "likes__at_12")
        for name in ("likes__at_12", "likes", "likes__previous"):
            with pytest.raises(NoCopy):
                drop_look(conn, name)
    assert copies(database_url) == ["likes", "likes__previous"]


@pytest.mark.usefixtures("video")
@pytest.mark.parametrize(
    "options",
    [
        ReplayOptions(Purpose.LOOK),
        ReplayOptions(Purpose.LOOK, to=0),
        ReplayOptions(Purpose.LOOK, to=43),
        ReplayOptions(Purpose.SWITCH, to=10),
    ],
)
def test_a_look_needs_a_position_of_the_log(database_url: str, options: ReplayOptions) -> None:
    with pytest.raises(BadTarget):
        begun(database_url, Likes(), options)
    assert copies(database_url) == ["likes"]


def test_going_back_shows_the_newest_state(database_url: str, writer: Writer, video: UUID) -> None:
    with pytest.raises(NoCopy):
        rolled_back(database_url, Likes())
    rows(database_url, "UPDATE likes.counts SET likes = 41 RETURNING 1")
    with hosting(database_url, Likes()):
        replayed(database_url, Likes(), ReplayOptions(confirmed=True))
        for n in range(30):
            writer.like(video, f"late-{n}")
        back = rolled_back(database_url, Likes())
        assert (back.state, back.purpose) == (ReplayState.SWITCHED, Purpose.ROLLBACK)
        caught_up(database_url, ["likes"], writer.head)
        assert back.position <= writer.head
        # The copy with the error is back, and has all that came since.
        assert likes_of(database_url, video) == 71
        writer.like(video, "later")
        assert rolled_back(database_url, Likes()).state is ReplayState.SWITCHED
        caught_up(database_url, ["likes"], writer.head)
    assert likes_of(database_url, video) == 71
    assert copies(database_url) == ["likes", "likes__previous"]


@pytest.mark.usefixtures("video")
def test_a_rollback_that_is_given_up_leaves_both_copies(database_url: str) -> None:
    replayed(database_url, Likes())
    begun(database_url, Likes(), BACK)
    with connected(database_url) as conn:
        with pytest.raises(ReplayUnderWay):
            drop_old(conn, "likes")
        cancel(conn, "likes")
    assert copies(database_url) == ["likes", "likes__previous"]
    assert rolled_back(database_url, Likes()).state is ReplayState.SWITCHED


@pytest.mark.usefixtures("video")
def test_the_previous_copy_is_kept_until_it_is_dropped(database_url: str) -> None:
    for _ in range(3):
        replayed(database_url, Likes())
        assert copies(database_url) == ["likes", "likes__previous"]
    with connected(database_url) as conn:
        drop_old(conn, "likes")
        with pytest.raises(NoCopy):
            drop_old(conn, "likes")
    assert copies(database_url) == ["likes"]


@pytest.mark.usefixtures("video")
def test_a_paused_projection_rests_on_after_the_switch(database_url: str, writer: Writer) -> None:
    rows(database_url, "UPDATE backlot_checkpoints SET status = 'paused' RETURNING 1")
    position = writer.head
    History(writer, 1).grow(5)
    assert replayed(database_url, Likes()).state is ReplayState.SWITCHED
    found = rows(
        database_url,
        "SELECT status, position FROM backlot_checkpoints WHERE subscription = 'likes'",
    )
    assert found == [("paused", position)]


class Broken(Likes):
    """Its tables can't hold what it writes."""

    tables = "CREATE TABLE {schema}.counts (video_id uuid PRIMARY KEY)"


@pytest.mark.usefixtures("video")
def test_a_replay_whose_tables_are_wrong_stops_and_tells(database_url: str) -> None:
    replay = replayed(database_url, Broken())
    assert (replay.state, replay.paused) == (ReplayState.BUILDING, True)
    assert "UndefinedTable" in str(replay.error)
    with connected(database_url) as conn:
        cancel(conn, "likes")
    assert copies(database_url) == ["likes"]


@pytest.mark.usefixtures("video")
def test_an_unexpected_error_ends_the_replay(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("surprise")

    monkeypatch.setattr("engine.replay.replay.compare", fail)
    replay = replayed(database_url, Likes())
    assert (replay.state, replay.error) == (ReplayState.FAILED, "ValueError: surprise")
    assert copies(database_url) == ["likes"]
