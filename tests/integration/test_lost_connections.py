"""A connection that breaks in the middle of an append loses nothing and records nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from eventsourcing.persistence import IntegrityError, OperationalError, StoredEvent
from structlog.testing import capture_logs

from engine import event_store
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


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def lose_answers(
    recorder: GroupCommitRecorder, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]
) -> Iterator[str]:
    """Lose the answer to the next append, after its commit; others go on meanwhile."""
    answers = iter(["lost"])
    append = recorder._append

    def lose(conn: Any, arguments: Any) -> Any:
        appended = append(conn, arguments)
        if next(answers, None):
            meanwhile()
            raise OperationalError("the answer was lost")
        return appended

    monkeypatch.setattr(recorder, "_append", lose)
    return answers


def kill_appenders(log_url: str) -> int:
    """End the server's side of every connection that appends or did so last."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    query += "WHERE datname = current_database() AND query LIKE %s"
    return len(rows(log_url, query, ["SELECT head, conflicts FROM %"]))


def test_every_acknowledged_save_is_there_once(
    recorder: GroupCommitRecorder, pool: ThreadPoolExecutor, log_url: str
) -> None:
    over = threading.Event()

    def save_on() -> list[tuple[list[StoredEvent], Sequence[int] | None]]:
        saved = []
        while not over.is_set():
            save = events(2)
            saved.append((save, recorder.insert_events(save)))
        return saved

    with capture_logs() as logs:
        savers = [pool.submit(save_on) for _ in range(16)]
        try:
            for _ in range(5):
                with lock_of_the_log(log_url):
                    eventually(lambda: appends_wait(log_url))
                    assert kill_appenders(log_url)
                eventually(lambda: kill_appenders(log_url))
        finally:
            over.set()
        saved = [each for saver in savers for each in saver.result()]
    assert {entry["event"] for entry in logs} == {"append_retried"}
    log = logged(log_url)
    assert [*log] == [*range(1, 2 * len(saved) + 1)]
    for save, positions in saved:
        assert [log[position] for position in positions or ()] == save


def test_what_was_committed_though_its_answer_was_lost_is_recognised(
    recorder: GroupCommitRecorder,
    log_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = uuid4()
    with recording(log_url) as another:
        another.insert_events(events(stream=taken))
        answers = lose_answers(recorder, monkeypatch, lambda: another.insert_events(events()))
        saves = [events(2), events(stream=taken), events(3)]
        appended = recorder.append([Save(save) for save in saves])
    assert next(answers, "all were lost") == "all were lost"
    assert appended.outcomes == [range(2, 4), None, range(4, 7)]
    log = logged(log_url)
    assert [*log] == [*range(1, 8)]
    assert [log[position] for position in (2, 3, 4, 5, 6)] == saves[0] + saves[2]


def test_the_same_version_by_another_writer_is_not_mistaken_for_ones_own(
    recorder: GroupCommitRecorder, log_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = uuid4()
    with recording(log_url) as another:

        def refuse(*_: Any) -> Any:
            monkeypatch.undo()
            another.insert_events(events(stream=stream))
            raise OperationalError("lost before the commit")

        monkeypatch.setattr(recorder, "_append", refuse)
        with pytest.raises(IntegrityError):
            recorder.insert_events(events(stream=stream))
    assert [*logged(log_url)] == [1]


def test_when_the_database_stays_away_everybody_is_told(
    recorder: GroupCommitRecorder,
    pool: ThreadPoolExecutor,
    log_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(*_: Any) -> Any:
        raise OperationalError("away")

    monkeypatch.setattr(event_store, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(recorder, "_append", away)
    results = [pool.submit(recorder.insert_events, events()) for _ in range(20)]
    assert [type(result.exception()) for result in results] == [OperationalError] * 20
    monkeypatch.undo()
    assert recorder.insert_events(events()) == [1]


def test_an_attempt_that_is_still_under_way_when_it_is_repeated_counts_once(
    recorder: GroupCommitRecorder,
    pool: ThreadPoolExecutor,
    log_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = recorder._append
    under_way = []

    def go_on_in_the_server(arguments: Any) -> None:
        with recorder.connection() as conn:
            append(conn, arguments)

    def lose(_: Any, arguments: Any) -> Any:
        monkeypatch.undo()
        under_way.append(pool.submit(go_on_in_the_server, arguments))
        eventually(lambda: appends_wait(log_url))
        raise OperationalError("the connection was lost")

    monkeypatch.setattr(recorder, "_append", lose)
    save = events(3)
    with lock_of_the_log(log_url):
        repeated = pool.submit(recorder.insert_events, save)
        eventually(lambda: appends_wait(log_url, 2))
    assert repeated.result() == [1, 2, 3]
    assert under_way[0].result() is None
    assert list(logged(log_url).values()) == save
