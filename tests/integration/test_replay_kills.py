"""A replay that is killed again and again ends as one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from random import Random

import pytest
from psycopg import OperationalError

from engine.projection import Projection
from engine.replay.records import Progress, Replay, ReplayOptions, ReplayState, find
from engine.replay.replay import ReplayElsewhere
from engine.replay.requests import resume
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.replay_support import (
    VERIFY,
    History,
    begun,
    carried_on,
    connected,
    copies,
    difference,
    models,
    projected,
    replayed,
)
from tests.support import DEADLINE_SECONDS, children

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("REPLAY_SEED", Random().randrange(10**6)))
LEDGER = "SELECT block, applied, positions FROM projections.ledger WHERE schema = %s ORDER BY 1"


def started(database_url: str, replay: Replay) -> subprocess.Popen[str]:
    """A process that works on the replay, from the moment when it begins to."""
    command = [sys.executable, "-m", "tests.integration.replay_process"]
    arguments = [database_url, str(replay.id), "4"]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as ready:
        assert ready.readline() == "ready\n"
    return process


def present(database_url: str, replay: Replay) -> Replay:
    with connected(database_url) as conn:
        return find(conn, replay.id)


def undisturbed(database_url: str, projection: Projection, options: ReplayOptions) -> float:
    """How long a replay takes (seconds)."""
    replay = begun(database_url, projection, options)
    process = started(database_url, replay)
    begin = time.monotonic()
    assert process.wait(60) == 0
    assert present(database_url, replay).state is ReplayState.SWITCHED
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("name", "workers", "kills"), [("likes", 1, 10), ("comments", 1, 5), ("likes", 2, 5)]
)
def test_killed_at_random(
    database_url: str, writer: Writer, name: str, workers: int, kills: int
) -> None:
    random = Random(SEED)
    History(writer, SEED, videos=20).grow(400)
    projected(database_url, writer, models())
    projection, options = models()[name], ReplayOptions(workers=workers)
    seconds = undisturbed(database_url, projection, options)
    killed, positions = 0, []
    while killed < kills:
        replay, patience = begun(database_url, projection, options), seconds
        while not present(database_url, replay).rests:
            process = started(database_url, replay)
            # On a busy machine the first attempts may not even get to their first batch.
            time.sleep(random.uniform(0, patience))
            patience *= 1.5
            process.send_signal(signal.SIGKILL)
            killed += process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
            positions.append(present(database_url, replay).position)
        assert present(database_url, replay).state is ReplayState.SWITCHED, SEED
    assert_equal(database_url, name, f"REPLAY_SEED={SEED} killed at {positions}")


KILLER = """
CREATE SEQUENCE kills;
CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('kills') IN (5, 6, 20, 40) THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER kill BEFORE UPDATE OF position ON backlot_checkpoints
    FOR EACH ROW EXECUTE FUNCTION kill()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_between_rows_and_position(database_url: str, writer: Writer, workers: int) -> None:
    History(writer, SEED).grow(200)
    projected(database_url, writer, models())
    with connected(database_url) as conn:
        conn.execute(KILLER)
    likes = models()["likes"]
    replay = begun(database_url, likes, ReplayOptions(workers=workers))
    interrupted = 0
    while not present(database_url, replay).rests:
        try:
            carried_on(database_url, replay, likes, batch_events=5)
        except OperationalError:
            interrupted += 1
        except ReplayElsewhere:
            # The server has not ended the session of the last attempt yet.
            time.sleep(0.01)
    assert present(database_url, replay).state is ReplayState.SWITCHED, SEED
    assert interrupted >= 2
    # A short history leaves a kill over, which is not meant for what compares.
    with connected(database_url) as conn:
        conn.execute("DROP FUNCTION kill CASCADE")
    assert_equal(database_url, "likes", f"REPLAY_SEED={SEED}")


def test_a_part_that_is_killed_rests_until_it_is_resumed(
    database_url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parts as in production, which take so long to start that there is one to kill.
    monkeypatch.setattr(multiprocessing, "get_context", get_context)
    History(writer, SEED).grow(200)
    projected(database_url, writer, models())
    # Other tests may have left processes to be used again.
    others = children("spawn_main")
    killed: list[int] = []

    def kill_one(_: Progress) -> None:
        for child in children("spawn_main"):
            if child not in others and not killed:
                child.kill()
                killed.append(child.pid)

    likes = models()["likes"]
    replay = begun(database_url, likes, ReplayOptions(workers=2))
    resting = carried_on(database_url, replay, likes, batch_events=1, report=kill_one)
    assert (resting.state, resting.paused) == (ReplayState.BUILDING, True)
    assert resting.error == "A process that built a part ended with exit code -9."
    with connected(database_url) as conn:
        resume(conn, "likes")
    assert carried_on(database_url, replay, likes).state is ReplayState.SWITCHED
    assert_equal(database_url, "likes", f"REPLAY_SEED={SEED}")


def assert_equal(database_url: str, name: str, told: str) -> None:
    assert not difference(database_url, name, f"{name}__previous").differs, told
    verified = replayed(database_url, models()[name], VERIFY)
    assert verified.result is not None
    assert not verified.result["differs"], told
    previous = f"{name}__previous"
    assert rows(database_url, LEDGER, [name]) == rows(database_url, LEDGER, [previous]), told
    assert set(copies(database_url)) == {*models(), previous}
