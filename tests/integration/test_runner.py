"""The runtime of projections on a real database: followed, killed, taken over, never skipping."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

import psycopg
import pytest

from engine.checkpoints import pause, resume
from engine.installation import install
from engine.log import Log
from engine.projection_subscription import OUTDATED
from engine.subscription import State
from infra import metrics
from infra.postgres.server import EmbeddedPostgres
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import Tally, Writer, caught_up, hosting, position, seen
from tests.support import DEADLINE_SECONDS, eventually

VIDEO = uuid4()


def backends(database_url: str, purpose: str = "projection tally") -> list[int]:
    found = rows(
        database_url,
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND "
        "datname = current_database()",
        [f"backlot {purpose}"],
    )
    return [pid for (pid,) in found]


def terminate(database_url: str, pids: list[int]) -> None:
    for pid in pids:
        rows(database_url, "SELECT pg_terminate_backend(%s)", [pid])


def test_each_event_is_applied_once_and_in_order(database_url: str, writer: Writer) -> None:
    writer.like(VIDEO, *(f"viewer-{n}" for n in range(50)))
    with hosting(database_url, tally := Tally(), batch_events=7) as host:
        caught_up(database_url, ["tally"], writer.head)
        writer.unlike(VIDEO, "viewer-3")
        caught_up(database_url, ["tally"], writer.head)
        eventually(lambda: host.status()[0].lag_events == 0)
        assert host.status()[0].state is State.RUNNING
    assert seen(database_url) == list(range(1, 52))
    assert max(tally.batches) == 7


def test_positions_without_wanted_events_are_passed(database_url: str, writer: Writer) -> None:
    with hosting(database_url, Tally()):
        video = writer.video()
        caught_up(database_url, ["tally"], writer.head)
        writer.comment(video.id)
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == []


def test_a_connection_killed_in_the_middle_of_a_batch(database_url: str, writer: Writer) -> None:
    tally = Tally()
    tally.go_on.clear()
    with hosting(database_url, tally):
        for n in range(10):
            writer.like(VIDEO, f"viewer-{n}")
        assert tally.entered.wait(DEADLINE_SECONDS)
        terminate(database_url, backends(database_url))
        tally.go_on.set()
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == list(range(1, 11))


KILLER = """
CREATE SEQUENCE kills;
CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('kills') <= 3 THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER kill BEFORE UPDATE OF position ON backlot_checkpoints
    FOR EACH ROW EXECUTE FUNCTION kill()
"""


def test_a_connection_killed_between_rows_and_position(database_url: str, writer: Writer) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, [Tally()])
        conn.execute(KILLER)
    writer.like(VIDEO, *(f"viewer-{n}" for n in range(10)))
    with hosting(database_url, tally := Tally()):
        caught_up(database_url, ["tally"], writer.head)
    assert tally.batches == [10] * 4
    assert seen(database_url) == list(range(1, 11))


def test_two_runners_of_one_projection(database_url: str, writer: Writer) -> None:
    first, second = Tally(), Tally()
    with hosting(database_url, first) as one, hosting(database_url, second) as two:
        eventually(lambda: {h.status()[0].state for h in (one, two)} == {"running", "standby"})
        for n in range(20):
            writer.like(VIDEO, f"viewer-{n}")
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == list(range(1, 21))
    assert min(sum(first.batches), sum(second.batches)) == 0


def test_takeover_from_a_runner_that_lost_its_connection(database_url: str, writer: Writer) -> None:
    first, second = Tally(), Tally()
    first.go_on.clear()
    with hosting(database_url, first) as one:
        eventually(lambda: one.status()[0].state is State.RUNNING)
        with hosting(database_url, second) as two:
            eventually(lambda: two.status()[0].state is State.STANDBY)
            holder = [pid for pid in backends(database_url) if holds_lock(database_url, pid)]
            writer.like(VIDEO, "viewer-1", "viewer-2")
            assert first.entered.wait(DEADLINE_SECONDS)
            terminate(database_url, holder)
            eventually(lambda: two.status()[0].state is State.RUNNING)
            caught_up(database_url, ["tally"], writer.head)
            # Only now does the first one go on with its batch, on a connection that is gone.
            first.go_on.set()
            eventually(lambda: one.status()[0].state is State.STANDBY)
            writer.like(VIDEO, "viewer-3")
            caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == [1, 2, 3]


def holds_lock(database_url: str, pid: int) -> bool:
    query = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = %s"
    return bool(rows(database_url, query, [pid]))


def test_a_host_that_stops_hands_over(database_url: str, writer: Writer) -> None:
    with hosting(database_url, Tally()) as one, hosting(database_url, Tally()) as two:
        eventually(lambda: {h.status()[0].state for h in (one, two)} == {"running", "standby"})
        leader, other = (one, two) if one.status()[0].state is State.RUNNING else (two, one)
        leader.stop()
        eventually(lambda: other.status()[0].state is State.RUNNING)
        writer.like(VIDEO, "viewer-1")
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == [1]


def test_a_notification_wakes_at_once(database_url: str, writer: Writer) -> None:
    delays = []
    with hosting(database_url, Tally(), poll_seconds=30.0):
        eventually(lambda: backends(database_url, "listener"))
        writer.like(VIDEO, "warm-up")
        caught_up(database_url, ["tally"], writer.head)
        for n in range(20):
            time.sleep(0.05)
            started = time.perf_counter()
            writer.like(VIDEO, f"viewer-{n}")
            caught_up(database_url, ["tally"], writer.head)
            delays.append(time.perf_counter() - started)
    # Far sooner than it would look by itself, however busy the machine is.
    assert sorted(delays)[10] < 1.0, sorted(delays)


def test_polling_serves_while_the_listener_is_gone(database_url: str, writer: Writer) -> None:
    with hosting(database_url, Tally()):
        eventually(lambda: backends(database_url, "listener"))
        for n in range(3):
            terminate(database_url, backends(database_url, "listener"))
            writer.like(VIDEO, f"viewer-{n}")
            caught_up(database_url, ["tally"], writer.head)
        eventually(lambda: backends(database_url, "listener"))


def test_under_load_events_share_transactions(database_url: str, writer: Writer) -> None:
    with hosting(database_url, tally := Tally()):
        for n in range(300):
            writer.like(VIDEO, f"viewer-{n}")
        caught_up(database_url, ["tally"], writer.head)
    assert sum(tally.batches) == 300
    assert len(tally.batches) < 150


def test_an_open_writer_is_not_skipped(database_url: str, writer: Writer) -> None:
    """One writer holds its position open; another queues behind it; nobody reads past it."""
    with hosting(database_url, Tally()):
        writer.like(VIDEO, "first")
        caught_up(database_url, ["tally"], writer.head)
        released = Event()
        holder = Thread(target=append_and_hold, args=(database_url, writer, released))
        holder.start()
        eventually(lambda: locked(database_url))
        other = Thread(target=append_from_elsewhere, args=(database_url,))
        other.start()
        time.sleep(0.5)
        assert position(database_url, "tally") == 1
        released.set()
        holder.join()
        other.join()
        caught_up(database_url, ["tally"], 4)
    found = rows(database_url, "SELECT position, viewer FROM tally.seen ORDER BY position")
    assert found == [(1, "first"), (2, "held"), (3, "held too"), (4, "elsewhere")]


def append_and_hold(database_url: str, writer: Writer, released: Event) -> None:
    events = writer.stored(
        writer.wish("like", VIDEO, "held"), writer.wish("like", VIDEO, "held too")
    )
    arguments = [
        [0] * len(events),
        [event.originator_id for event in events],
        [event.originator_version for event in events],
        [event.topic for event in events],
        [event.state for event in events],
    ]
    empty: list[list[object]] = [[], [], [], [], [], []]
    with psycopg.connect(database_url) as conn:
        conn.execute(writer.recorder.append_statement, [*arguments, *empty])
        assert released.wait(DEADLINE_SECONDS)


def append_from_elsewhere(database_url: str) -> None:
    elsewhere = Writer(database_url)
    elsewhere.like(VIDEO, "elsewhere")
    elsewhere.close()


def locked(database_url: str) -> bool:
    return bool(
        rows(
            database_url,
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND "
            "mode = 'ExclusiveLock' AND granted AND classid <> 0 AND objsubid = 2 AND "
            "pid IN (SELECT pid FROM pg_stat_activity WHERE application_name = '')",
        )
    )


def test_many_writers_at_once(database_url: str, writer: Writer) -> None:
    def write(number: int) -> None:
        mine = Writer(database_url)
        for n in range(40):
            mine.like(VIDEO, f"{number}-{n}", f"{number}-{n}-too")
        mine.close()

    writers = [Thread(target=write, args=(number,)) for number in range(4)]
    with hosting(database_url, Tally()):
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join()
        caught_up(database_url, ["tally"], 320)
    assert seen(database_url) == list(range(1, 321))


def test_pause_and_resume_from_another_process(database_url: str, writer: Writer) -> None:
    with (
        hosting(database_url, Tally(), poll_seconds=30.0) as host,
        psycopg.connect(database_url, autocommit=True) as operator,
    ):
        eventually(lambda: host.status()[0].state is State.RUNNING)
        assert pause(operator, "tally")
        assert not pause(operator, "tally")
        eventually(lambda: host.status()[0].state is State.PAUSED)
        writer.like(VIDEO, "viewer-1")
        time.sleep(0.2)
        assert seen(database_url) == []
        assert resume(operator, "tally")
        assert not resume(operator, "tally")
        eventually(lambda: seen(database_url) == [1])
        assert not pause(operator, "unknown")


def test_a_pause_outlives_the_process(database_url: str, writer: Writer) -> None:
    with psycopg.connect(database_url, autocommit=True) as operator:
        install(operator, [Tally()])
        pause(operator, "tally")
    writer.like(VIDEO, "viewer-1")
    with hosting(database_url, Tally()) as host:
        eventually(lambda: host.status()[0].state is State.PAUSED)
        assert seen(database_url) == []


def test_many_processes_install_at_once(database_url: str) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with psycopg.connect(database_url, autocommit=True) as conn:
                install(conn, [Likes(), Tally()])
        except psycopg.Error as error:
            failures.append(error)

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert rows(database_url, "SELECT count(*) FROM backlot_checkpoints") == [(2,)]


class TallyTwo(Tally):
    version = 2
    tables = "CREATE TABLE {schema}.seen (viewer text, position bigint)"


def test_another_version_is_not_run(database_url: str, writer: Writer) -> None:
    writer.like(VIDEO, "viewer-1")
    with hosting(database_url, Tally()):
        caught_up(database_url, ["tally"], writer.head)
    writer.like(VIDEO, "viewer-2")
    with hosting(database_url, TallyTwo()) as newer:
        eventually(lambda: newer.status()[0].state is State.OUTDATED)
        assert newer.status()[0].detail == OUTDATED
        assert not newer.status()[0].in_order
        # It leaves the lock to processes that still have the other version.
        with hosting(database_url, Tally()):
            caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == [1, 2]


def test_another_version_of_an_empty_projection_is_made_anew(database_url: str) -> None:
    writer = Writer(database_url)
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, [Tally()])
        install(conn, [TallyTwo()])
        columns = conn.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'tally' "
            "ORDER BY ordinal_position"
        ).fetchall()
        assert columns == [("viewer",), ("position",)]
    assert rows(database_url, "SELECT version, position FROM backlot_checkpoints") == [(2, 0)]
    writer.close()


def test_metrics_of_the_active_runner_only(database_url: str, writer: Writer) -> None:
    before = metrics.value("backlot_projection_events_applied_total", projection="tally")
    writer.like(VIDEO, "viewer-1", "viewer-2")
    with hosting(database_url, Tally()) as host:
        eventually(lambda: host.status()[0].position == 2)
        state = "backlot_projection_state"
        assert metrics.value(state, projection="tally", state="running") == 1
        assert metrics.value(state, projection="tally", state="stopped") == 0
        assert metrics.value("backlot_projection_position", projection="tally") == 2
        assert metrics.value("backlot_projection_lag_events", projection="tally") == 0
        after = metrics.value("backlot_projection_events_applied_total", projection="tally")
        assert after - before == 2
    labels = {"projection": "tally"}
    assert metrics.REGISTRY.get_sample_value("backlot_projection_position", labels) is None


def test_lag_is_told_in_seconds(database_url: str, writer: Writer) -> None:
    with psycopg.connect(database_url, autocommit=True) as operator:
        install(operator, [Tally()])
        pause(operator, "tally")
        writer.like(VIDEO, "viewer-1")
        time.sleep(0.3)
        with hosting(database_url, Tally()) as host:
            eventually(lambda: (host.status()[0].lag_seconds or 0) >= 0.3)
            assert host.status()[0].lag_events == 1
            resume(operator, "tally")
            eventually(lambda: host.status()[0].lag_events == 0)
            assert host.status()[0].lag_seconds == 0


def test_a_window_is_bounded_in_bytes(
    database_url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.log.MAX_WINDOW_BYTES", 600)
    writer.like(VIDEO, *(f"viewer-{n}" for n in range(10)))
    with hosting(database_url, tally := Tally()):
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == list(range(1, 11))
    assert max(tally.batches) <= 4


def test_the_log_is_read_by_its_index(database_url: str, writer: Writer) -> None:
    writer.like(VIDEO, *(f"viewer-{n}" for n in range(20)))
    log = Log(Tally.events, batch_events=5)
    with psycopg.connect(database_url, autocommit=True) as conn:
        window = log.read(conn, 3, 20)
        assert [stored.position for stored in window.events] == [4, 5, 6, 7, 8]
        assert window.until == 8
        assert log.read(conn, 18, 20).until == 20
        assert log.read(conn, 20, 20).events == []


def renamed(database_url: str, table: str, name: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"ALTER TABLE {table} RENAME TO {name}".encode())


def test_waits_for_the_event_table_of_a_process_that_starts_later(database_url: str) -> None:
    renamed(database_url, "backlot_events", "not_made_yet")
    with hosting(database_url, Tally()) as host:
        eventually(lambda: host.status()[0].state is State.UNAVAILABLE)
        renamed(database_url, "not_made_yet", "backlot_events")
        writer = Writer(database_url)
        writer.like(VIDEO, "viewer-1")
        caught_up(database_url, ["tally"], 1)
        eventually(lambda: host.status()[0].state is State.RUNNING)
        writer.close()


@pytest.mark.chaos
def test_heals_when_postgres_was_killed(short_dir: Path) -> None:
    with EmbeddedPostgres(short_dir / "killed") as server:
        writer = Writer(server.url)
        with hosting(server.url, Tally(), Likes()) as host:
            for round_ in range(2):
                writer.like(VIDEO, *(f"viewer-{round_}-{n}" for n in range(100)))
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                eventually(lambda: host.status()[0].state is State.UNAVAILABLE)
                eventually(lambda: host.status()[0].state is State.RUNNING)
                writer.recorder.datastore.pool.check()
                writer.like(VIDEO, f"viewer-{round_}-after")
                caught_up(server.url, ["tally", "likes"], writer.head)
        assert seen(server.url) == list(range(1, 203))
        assert rows(server.url, "SELECT likes FROM likes.counts") == [(202,)]
        writer.close()
