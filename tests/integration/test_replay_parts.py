"""A copy built by several processes, each for its part of the streams, is the one built by one."""

from __future__ import annotations

import os
from random import Random

import psycopg
import pytest

from engine.log import MAPPER
from engine.projection import Projection
from engine.replay.records import Purpose, ReplayError, ReplayOptions, ReplayState
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.person_support import opened
from tests.integration.projection_support import Writer
from tests.integration.replay_support import (
    History,
    begun,
    carried_on,
    difference,
    models,
    projected,
    replayed,
)

SEED = int(os.environ.get("REPLAY_SEED", Random().randrange(10**6)))


def built(database_url: str, projection: Projection, to: int, **options: int) -> str:
    """A look at the past, built so; returns its schema under a name of its own."""
    workers, batch_events = options["workers"], options["batch_events"]
    look = ReplayOptions(Purpose.LOOK, to=to, workers=workers)
    replay = replayed(database_url, projection, look, batch_events=batch_events)
    assert replay.state is ReplayState.KEPT, replay
    assert replay.workers == workers
    name = f"{projection.name}_{workers}_{batch_events}"
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f'ALTER SCHEMA "{replay.schema}" RENAME TO "{name}"'.encode())
        conn.execute("DELETE FROM backlot_checkpoints WHERE subscription = %s", (replay.schema,))
    return name


@pytest.mark.parametrize(
    ("seed", "events", "ways"),
    [
        (1, 150, [(3, 7)]),
        pytest.param(SEED, 700, [(1, 13), (3, 7), (2, 20_000)], marks=pytest.mark.chaos),
    ],
    ids=["short", "long"],
)
def test_serial_parallel_and_live_are_the_same(
    database_url: str, writer: Writer, seed: int, events: int, ways: list[tuple[int, int]]
) -> None:
    """With removals, edits, likes taken back and given again, in batches of any size."""
    print(f"REPLAY_SEED={seed}")  # noqa: T201 - shown when the test fails
    History(writer, seed, videos=6, viewers=5).grow(events)
    projected(database_url, writer, models())
    for name, projection in models().items():
        for workers, batch_events in ways:
            copy = built(
                database_url, projection, writer.head, workers=workers, batch_events=batch_events
            )
            found = difference(database_url, name, copy)
            assert not found.differs, (seed, copy, found.as_dict())
    assert rows(database_url, "SELECT count(*) FROM backlot_checkpoints WHERE kind = 'replay'") == [
        (0,)
    ]


def test_what_is_built_in_parts_is_accounted_in_full(database_url: str, writer: Writer) -> None:
    History(writer, 3).grow(200)
    projected(database_url, writer, models())
    ledger = "SELECT block, applied, positions FROM projections.ledger WHERE schema = %s"
    for name, projection in models().items():
        replay = replayed(database_url, projection, ReplayOptions(workers=2), batch_events=10)
        assert replay.state is ReplayState.SWITCHED
        live, previous = (rows(database_url, ledger, [s]) for s in (name, f"{name}__previous"))
        assert live == previous
        assert replay.events_applied == sum(applied for _, applied, _ in live)


@pytest.mark.parametrize("workers", [0, 33])
def test_the_number_of_workers_is_bounded(database_url: str, writer: Writer, workers: int) -> None:
    projected(database_url, writer, models())
    with pytest.raises(ReplayError, match="1 to 32"):
        begun(database_url, Likes(), ReplayOptions(workers=workers))


class Serial(Likes):
    by_stream = False


def test_a_projection_that_needs_the_order_is_built_by_one(
    database_url: str, writer: Writer
) -> None:
    History(writer, 4).grow(50)
    projected(database_url, writer, models())
    replay = begun(database_url, Serial(), ReplayOptions(workers=4))
    assert replay.workers == 1
    assert carried_on(database_url, replay, Serial()).state is ReplayState.SWITCHED


@pytest.mark.parametrize("workers", [1, 2])
def test_encrypted_texts_are_read_in_every_process(
    database_url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """What somebody said whose key is destroyed is nothing, and everything is counted."""
    with opened(database_url) as persons:
        monkeypatch.setattr(MAPPER, "ciphers", persons)
        writer.mapper = MAPPER
        alice, bob = persons.admit("alice"), persons.admit("bob")
        video = writer.video(alice, title="Of alice").id
        for number in range(20):
            writer.comment(video, bob if number % 4 else alice, f"Number {number}")
        states = rows(database_url, "SELECT convert_from(state, 'UTF8') FROM backlot_events")
        assert not [state for (state,) in states if "Number" in state or "Of alice" in state]
        persons.fence(alice)
        persons.destroy(alice)
        projected(database_url, writer, models())
        for projection in models().values():
            options = ReplayOptions(workers=workers, confirmed=True)
            assert replayed(database_url, projection, options).state is ReplayState.SWITCHED
    said = rows(database_url, "SELECT author, content FROM comments.comments ORDER BY 2")
    assert said == sorted(
        [(alice, "")] * 5 + [(bob, f"Number {n}") for n in range(20) if n % 4],
        key=lambda row: row[1],
    )
    assert rows(database_url, "SELECT title FROM catalog.uploads") == [("",)]
