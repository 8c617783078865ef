"""A read model built anew beside the live one, and switched in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from projections.likes import Likes
from projections.replays import ReplayState
from tests.integration.projection_support import Writer, caught_up, hosting, rows
from tests.integration.replay_support import (
    NAMES,
    History,
    difference,
    models,
    projected,
    replayed,
)


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    writer = Writer(database_url)
    yield writer
    writer.close()


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
        assert not difference(database_url, name, f"{name}__previous").differs
    found = rows(database_url, "SELECT schema, position FROM projections.state ORDER BY schema")
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
