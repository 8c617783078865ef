"""Many savers, few transactions; and what one of them gets is only its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import IntegrityError, StoredEvent

from engine import group_commit
from engine.event_store import GroupCommitRecorder, Save
from tests.integration.event_log import (
    appends_wait,
    events,
    lock_of_the_log,
    logged,
    recording,
    rows,
)
from tests.support import eventually

Saved = Sequence[int] | None


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


def save_in_one_batch(
    recorder: GroupCommitRecorder,
    pool: ThreadPoolExecutor,
    log_url: str,
    saves: Sequence[Sequence[StoredEvent]],
) -> list[Future[Saved]]:
    """Save all while the lock of the log is held: a first one leads, all others wait behind it."""
    with lock_of_the_log(log_url):
        leader = pool.submit(recorder.insert_events, events())
        eventually(lambda: appends_wait(log_url))
        futures: list[Future[Saved]] = []
        for save in saves:
            futures.append(pool.submit(recorder.insert_events, save))
            eventually(lambda: len(recorder._commits) == len(futures))
    assert leader.result() == [1]
    return futures


def outcomes(futures: Sequence[Future[Saved]]) -> list[Any]:
    return [future.exception() or future.result() for future in futures]


def flat(saved: Iterable[Saved]) -> list[int]:
    return [position for each in saved for position in each or ()]


def transactions(log_url: str) -> int:
    """How many transactions wrote the log."""
    query = "SELECT count(DISTINCT xmin::text) FROM backlot_events"
    return int(rows(log_url, query)[0][0])


@contextmanager
def listening(recorder: GroupCommitRecorder, log_url: str) -> Iterator[Callable[[], int]]:
    """Listens to the store meanwhile; what it gives counts the notifications since."""
    with psycopg.connect(log_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {recorder.channel_name}".encode())
        yield lambda: sum(1 for _ in listener.notifies(timeout=0.2))


class TestBatches:
    def test_64_threads_that_come_at_once_need_two_transactions(
        self, recorder: GroupCommitRecorder, pool: ThreadPoolExecutor, log_url: str
    ) -> None:
        saves = [events() for _ in range(63)]
        with listening(recorder, log_url) as notified:
            saved = outcomes(save_in_one_batch(recorder, pool, log_url, saves))
            assert sorted(flat(saved)) == [*range(2, 65)]
            assert transactions(log_url) == notified() == 2

    def test_64_racing_threads_leave_no_gap_and_notify_once_per_transaction(
        self, recorder: GroupCommitRecorder, pool: ThreadPoolExecutor, log_url: str
    ) -> None:
        with listening(recorder, log_url) as notified:
            saved = list(pool.map(recorder.insert_events, [events() for _ in range(1_920)]))
            assert sorted(flat(saved)) == [*range(1, 1_921)]
            assert transactions(log_url) == notified() < 1_920

    def test_what_waits_is_committed_together_in_its_order(
        self, recorder: GroupCommitRecorder, pool: ThreadPoolExecutor, log_url: str
    ) -> None:
        saves = [events(count) for count in (1, 3, 2)]
        futures = save_in_one_batch(recorder, pool, log_url, saves)
        assert outcomes(futures) == [[2], [3, 4, 5], [6, 7]]
        assert transactions(log_url) == 2
        assert list(logged(log_url).values())[1:] == [e for save in saves for e in save]

    def test_a_commit_takes_no_more_than_its_limit(
        self,
        recorder: GroupCommitRecorder,
        pool: ThreadPoolExecutor,
        log_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(group_commit, "MAX_EVENTS_PER_COMMIT", 4)
        saves = [events(3) for _ in range(4)]
        futures = save_in_one_batch(recorder, pool, log_url, saves)
        assert flat(outcomes(futures)) == [*range(2, 14)]
        assert transactions(log_url) == 3


class TestConflicts:
    def test_a_conflict_is_its_callers_alone_and_leaves_no_gap(
        self, recorder: GroupCommitRecorder, pool: ThreadPoolExecutor, log_url: str
    ) -> None:
        taken = uuid4()
        stale = events(stream=taken)
        with recording(log_url) as another:
            saves = [events(), stale, events(2), events(2, stream=taken), events()]
            with lock_of_the_log(log_url):
                leader = pool.submit(another.insert_events, events(stream=taken))
                eventually(lambda: appends_wait(log_url))
                appended = pool.submit(recorder.append, [Save(save) for save in saves])
                eventually(lambda: appends_wait(log_url, 2))
            assert leader.result() == [1]
        first, *others = appended.result().outcomes
        assert [first, *others] == [range(2, 3), None, range(3, 5), None, range(5, 6)]
        assert [*logged(log_url)] == [1, 2, 3, 4, 5]
        assert recorder.insert_events(events()) == [6]

    def test_of_many_that_want_one_version_exactly_one_wins(
        self, recorder: GroupCommitRecorder, pool: ThreadPoolExecutor, log_url: str
    ) -> None:
        stream = uuid4()
        saves = [events(stream=stream) for _ in range(10)] + [events() for _ in range(10)]
        results = outcomes(save_in_one_batch(recorder, pool, log_url, saves))
        assert results[0] == [2]
        assert [type(result) for result in results[1:10]] == [IntegrityError] * 9
        assert sorted(flat(results[10:])) == [*range(3, 13)]
        assert logged(log_url)[2] == saves[0][0]

    def test_two_versions_of_one_stream_share_a_batch(
        self, recorder: GroupCommitRecorder, pool: ThreadPoolExecutor, log_url: str
    ) -> None:
        stream = uuid4()
        saves = [events(stream=stream, first=version) for version in (1, 2, 3)]
        assert outcomes(save_in_one_batch(recorder, pool, log_url, saves)) == [[2], [3], [4]]
        assert transactions(log_url) == 2

    def test_a_save_is_recorded_whole_or_not_at_all(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        stream = uuid4()
        recorder.insert_events(events(2, stream=stream))
        for first in (1, 2):
            with pytest.raises(IntegrityError):
                recorder.insert_events([*events(3, stream=stream, first=first), *events()])
        assert [*logged(log_url)] == [1, 2]

    def test_a_save_that_contradicts_itself_never_joins_a_batch(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        with pytest.raises(IntegrityError, match="twice"):
            recorder.insert_events(events() * 2)
        assert recorder.insert_events(events()) == [1]

    def test_under_conflicts_from_all_sides_positions_stay_gapless(
        self, recorder: GroupCommitRecorder, pool: ThreadPoolExecutor, log_url: str
    ) -> None:
        streams = [uuid4() for _ in range(40)]
        wishes = [stream for stream in streams for _ in range(20)]

        def save(wish: tuple[int, UUID]) -> Saved:
            number, stream = wish
            try:
                return recorder.insert_events(events(stream=stream, first=1 + number % 4))
            except IntegrityError:
                return ()

        won = flat(pool.map(save, enumerate(wishes)))
        log = logged(log_url)
        assert sorted(won) == [*log] == [*range(1, len(log) + 1)]
        assert len(log) == len(streams) * 4
