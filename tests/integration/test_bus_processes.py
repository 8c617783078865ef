"""Buses on one database, in one process or in two: nobody overwrites anybody."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest

from commands.likes import Wish
from domain.errors import NotFound
from domain.upload import Upload
from domain.video_likes import stream_id
from engine.command_bus import CommandBus, Contended
from engine.event_store import GroupCommitRecorder
from infra import metrics
from tests.integration.buses import (
    MAPPER,
    ORIGIN,
    Toggle,
    alternating,
    decided,
    execute,
    execute_all,
    hammer,
    like,
    new_video,
    open_bus,
    record,
    with_bus,
)
from tests.integration.event_log import events, gate, logged
from tests.support import DEADLINE_SECONDS


@pytest.fixture
def video(recorder: GroupCommitRecorder) -> UUID:
    return new_video(recorder)


def test_two_processes_on_the_same_streams_lose_and_double_nothing(
    log_url: str, video: UUID, processes: ProcessPoolExecutor
) -> None:
    with gate(log_url) as await_ready:
        tasks = [processes.submit(hammer, log_url, video, 5, 40, 1_000) for _ in range(2)]
        await_ready(2)
    acknowledged = [outcome for task in tasks for outcome in task.result()]
    assert Counter(stream for stream, _ in acknowledged) == {
        stream_id(video, f"viewer-{number}"): 80 for number in range(5)
    }
    for stream in {stream for stream, _ in acknowledged}:
        assert decided(log_url, stream) == alternating(80)
    log = logged(log_url)
    assert all(log[position].originator_id == stream for stream, position in acknowledged)
    assert sorted(position for _, position in acknowledged) == [*log][2:] == [*range(3, 403)]


def test_conflicts_beyond_the_limit_are_told_and_leave_nothing(
    log_url: str, video: UUID, processes: ProcessPoolExecutor
) -> None:
    with gate(log_url) as await_ready:
        tasks = [processes.submit(hammer, log_url, video, 1, 100, 0) for _ in range(2)]
        await_ready(2)
    outcomes = [outcome for task in tasks for outcome in task.result()]
    contended = [outcome for outcome in outcomes if isinstance(outcome, Contended)]
    assert contended, "the processes never met"
    recorded = decided(log_url, stream_id(video, "viewer-0"))
    assert recorded == alternating(len(outcomes) - len(contended))


@pytest.mark.parametrize("retries", [0, 3])
def test_a_conflict_is_decided_again_up_to_the_limit(
    recorder: GroupCommitRecorder,
    another: GroupCommitRecorder,
    log_url: str,
    monkeypatch: pytest.MonkeyPatch,
    retries: int,
) -> None:
    contested, calm = uuid4(), uuid4()
    append = recorder.append
    faster = iter(range(100))

    async def scenario(bus: CommandBus, rival: CommandBus) -> list[Any]:
        def be_late(saves: Any) -> Any:
            if any(event.originator_id == contested for save in saves for event in save.events):
                asyncio.run_coroutine_threadsafe(execute(rival, Toggle(contested)), loop).result()
                next(faster)
            return append(saves)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(recorder, "append", be_late)
        return await execute_all(bus, [Toggle(contested), Toggle(calm)])

    async def with_both() -> list[Any]:
        async with open_bus(recorder, retries=retries) as bus, open_bus(another) as rival:
            return await scenario(bus, rival)

    conflicts = metrics.value("backlot_append_conflicts_total")
    refusals = metrics.value("backlot_commands_total", command="Toggle", outcome="conflict")
    refused, accepted = asyncio.run(with_both())
    assert type(refused) is Contended
    assert accepted.answer is True
    assert next(faster) == retries + 1
    assert decided(log_url, contested) == alternating(retries + 1)
    assert decided(log_url, calm) == ["liked"]
    assert metrics.value("backlot_append_conflicts_total") == conflicts + retries + 1
    after = metrics.value("backlot_commands_total", command="Toggle", outcome="conflict")
    assert after == refusals + 1


def test_who_loses_a_race_keeps_nobody_waiting(
    recorder: GroupCommitRecorder,
    another: GroupCommitRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contested, calm = uuid4(), uuid4()
    append, answered = recorder.append, threading.Event()

    async def scenario(bus: CommandBus, rival: CommandBus) -> list[Any]:
        attempts = count()

        def be_late(saves: Any) -> Any:
            if next(attempts) == 0:
                asyncio.run_coroutine_threadsafe(execute(rival, Toggle(contested)), loop).result()
            else:
                # The other command of the batch has been answered before this one is tried again.
                assert answered.wait(DEADLINE_SECONDS)
            return append(saves)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(recorder, "append", be_late)
        tasks = [asyncio.create_task(execute(bus, Toggle(each))) for each in (contested, calm)]
        tasks[1].add_done_callback(lambda _: answered.set())
        return list(await asyncio.gather(*tasks))

    async def with_both() -> list[Any]:
        async with open_bus(recorder) as bus, open_bus(another) as rival:
            return await scenario(bus, rival)

    assert [outcome.answer for outcome in asyncio.run(with_both())] == [False, True]


def test_what_another_process_recorded_is_seen(
    recorder: GroupCommitRecorder, another: GroupCommitRecorder, log_url: str, video: UUID
) -> None:
    async def scenario() -> None:
        async with open_bus(recorder) as bus, open_bus(another) as other:
            turns = [bus, other, other, bus, bus, other]
            for turn, expected in zip(turns, [True, False] * 3, strict=True):
                outcome: Any = await execute(turn, like(video, "ann", Wish.TOGGLE))
                assert outcome.answer.has_liked is expected

    asyncio.run(scenario())
    assert decided(log_url, stream_id(video, "ann")) == alternating(6)


def test_a_video_that_another_process_removed_is_gone(
    recorder: GroupCommitRecorder, another: GroupCommitRecorder, video: UUID
) -> None:
    async def scenario(bus: CommandBus) -> None:
        await execute(bus, like(video, "ann"))
        upload = Upload.blank(video)
        for event in another.select_events(video):
            MAPPER.to_domain_event(event).mutate(upload)  # type: ignore[attr-defined]
        upload.remove(ORIGIN)
        record(another, upload)
        with pytest.raises(NotFound):
            await execute(bus, like(video, "bob"))

    with_bus(recorder, scenario)


def test_an_unchanged_answer_stands_behind_all_that_it_saw(
    recorder: GroupCommitRecorder, another: GroupCommitRecorder, video: UUID
) -> None:
    async def scenario(bus: CommandBus) -> None:
        first: Any = await execute(bus, like(video, "ann"))
        another.insert_events(events(5))
        again: Any = await execute(bus, like(video, "ann"))
        assert (first.position, again.position) == (3, 8)

    with_bus(recorder, scenario)
