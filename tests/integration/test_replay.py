"""A read model built anew beside the live one, and switched in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import psycopg
import pytest
from psycopg import Cursor
from psycopg.rows import TupleRow

from engine.installation import install
from engine.projection import Batch
from engine.replay.records import ReplayState
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, caught_up, hosting
from tests.integration.replay_support import (
    NAMES,
    SWITCH,
    VERIFY,
    History,
    connected,
    difference,
    models,
    projected,
    replayed,
)
from tests.support import DEADLINE_SECONDS


@pytest.mark.parametrize("batch_events", [1, 7, 20_000])
def test_a_replay_takes_the_place_of_the_live_copy(
    database_url: str, writer: Writer, batch_events: int
) -> None:
    History(writer, 1).grow(300)
    projected(database_url, writer, models())
    for name, projection in models().items():
        replay = replayed(database_url, projection, batch_events=batch_events)
        assert replay.state is ReplayState.SWITCHED, replay
        assert replay.result is not None
        assert not replay.result["differs"]
        assert replay.position == writer.head
        assert not difference(database_url, name, f"{name}__previous").differs
    found = rows(database_url, "SELECT subscription, position FROM backlot_checkpoints ORDER BY 1")
    copies = [copy for name in sorted(NAMES) for copy in (name, f"{name}__previous")]
    assert found == [(copy, writer.head) for copy in copies]


def test_the_live_runner_goes_on_with_the_new_copy(database_url: str, writer: Writer) -> None:
    history = History(writer, 2)
    history.grow(100)
    with hosting(database_url, *models().values()):
        caught_up(database_url, NAMES, writer.head)
        for _ in range(3):
            for projection in models().values():
                assert replayed(database_url, projection).state is ReplayState.SWITCHED
            history.grow(50)
            caught_up(database_url, NAMES, writer.head)
        verified = replayed(database_url, Likes())
    assert verified.result is not None
    assert not verified.result["differs"]


@contextmanager
def writing(database_url: str) -> Iterator[None]:
    """Somebody writes as fast as it goes."""
    stopping = Event()

    def write() -> None:
        writer = Writer(database_url)
        history = History(writer, 5, videos=200)
        while not stopping.is_set():
            history.grow(10)
        writer.close()

    thread = Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_copies_are_compared_and_switched_while_everybody_writes(database_url: str) -> None:
    with hosting(database_url, *models().values()), writing(database_url):
        caught_up(database_url, NAMES, 500)
        for options in (VERIFY, SWITCH, VERIFY):
            for name, projection in models().items():
                replay = replayed(database_url, projection, options, batch_events=50)
                assert replay.result is not None
                assert not replay.result["differs"], (name, replay.result)
        positions = rows(database_url, "SELECT position FROM projections.replays ORDER BY id")
    assert positions[0] < positions[-1]


class Gated(Likes):
    """Waits within its transaction, when its rows are written and its position is not."""

    def __init__(self, schema: str | None = None) -> None:
        super().__init__(schema)
        self.entered, self.go_on = Event(), Event()

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        super().apply(batch, cursor)
        self.entered.set()
        assert self.go_on.wait(DEADLINE_SECONDS)


def test_no_switch_falls_into_the_middle_of_a_transaction(
    database_url: str, writer: Writer
) -> None:
    """It would leave the rows in the copy that was live, and move the position of the new one."""
    video = writer.video().id
    writer.like(video, "alice")
    projected(database_url, writer, {"likes": Likes()})
    gated = Gated()
    with hosting(database_url, gated):
        writer.like(video, "bob")
        assert gated.entered.wait(DEADLINE_SECONDS)
        replaying = Thread(target=replayed, args=(database_url, Likes()))
        replaying.start()
        replaying.join(1)
        gated.go_on.set()
        replaying.join(DEADLINE_SECONDS)
        caught_up(database_url, ["likes"], writer.head)
    assert rows(database_url, "SELECT likes FROM likes.counts") == [(2,)]
    assert rows(database_url, "SELECT likes FROM likes__previous.counts") == [(2,)]


def test_processes_that_start_during_a_switch_find_the_live_copy(
    database_url: str, writer: Writer
) -> None:
    projected(database_url, writer, {"likes": Likes()})
    stopping = Event()
    failures: list[str] = []

    def install_again_and_again() -> None:
        while not stopping.is_set():
            try:
                with connected(database_url) as conn:
                    install(conn, [Likes()])
            except psycopg.Error as error:
                failures.append(str(error))

    thread = Thread(target=install_again_and_again)
    thread.start()
    for _ in range(5):
        assert replayed(database_url, Likes()).state is ReplayState.SWITCHED
    stopping.set()
    thread.join()
    assert failures == []
