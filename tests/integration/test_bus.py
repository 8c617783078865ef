"""The command bus on real PostgreSQL: who races whom, and who fails alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import MapperDeserialisationError, OperationalError, StoredEvent
from structlog.testing import capture_logs

from commands.likes import Wish
from domain.errors import Conflict, NotFound
from domain.video_likes import stream_id
from engine import event_store
from engine.command_bus import CommandBus, Executed
from engine.event_store import GroupCommitRecorder
from infra import metrics
from infra.batcher import QueueFull
from infra.http.shapes import LikeState
from tests.integration.buses import (
    Toggle,
    alternating,
    decided,
    execute,
    execute_all,
    like,
    new_video,
    with_bus,
)
from tests.integration.event_log import (
    appends_wait,
    lock_of_the_log,
    logged,
    rows,
)
from tests.support import eventually


def kill_idle(log_url: str) -> None:
    """End the server's side of every idle connection but our own."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    query += "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert rows(log_url, query, [])


@pytest.fixture
def video(recorder: GroupCommitRecorder) -> UUID:
    return new_video(recorder)


class TestRaces:
    def test_200_first_likes_of_one_viewer_are_one_like(
        self, recorder: GroupCommitRecorder, log_url: str, video: UUID
    ) -> None:
        async def scenario(bus: CommandBus) -> None:
            outcomes = await execute_all(bus, [like(video, "ann")] * 200)
            assert outcomes == [Executed(LikeState(has_liked=True, likes_count=1), 3)] * 200

        with_bus(recorder, scenario)
        assert decided(log_url, stream_id(video, "ann")) == ["liked"]

    def test_2000_viewers_at_once_are_2000_likes(
        self, recorder: GroupCommitRecorder, log_url: str, video: UUID
    ) -> None:
        async def scenario(bus: CommandBus) -> None:
            outcomes = await execute_all(bus, [like(video, f"viewer-{n}") for n in range(2_000)])
            assert sorted(outcome.position for outcome in outcomes) == [*range(3, 2_003)]

        with_bus(recorder, scenario)
        liked = [event for event in logged(log_url).values() if "liked" in event.topic]
        assert len({event.originator_id for event in liked}) == len(liked) == 2_000

    @pytest.mark.parametrize("max_batch", [7, 256])
    def test_200_toggles_of_one_viewer_alternate(
        self, recorder: GroupCommitRecorder, log_url: str, video: UUID, max_batch: int
    ) -> None:
        async def scenario(bus: CommandBus) -> None:
            outcomes = await execute_all(bus, [like(video, "ann", Wish.TOGGLE)] * 200)
            assert [outcome.answer.has_liked for outcome in outcomes] == [True, False] * 100

        with_bus(recorder, scenario, max_batch=max_batch)
        assert decided(log_url, stream_id(video, "ann")) == alternating(200)

    def test_a_batch_is_one_transaction_and_says_who_when_and_why(
        self, recorder: GroupCommitRecorder, log_url: str, video: UUID
    ) -> None:
        async def scenario(bus: CommandBus) -> None:
            before = metrics.value("backlot_commands_total", command="Toggle", outcome="accepted")
            await execute_all(bus, [Toggle(uuid4()) for _ in range(20)])
            after = metrics.value("backlot_commands_total", command="Toggle", outcome="accepted")
            assert after == before + 20

        with_bus(recorder, scenario)
        payloads = [json.loads(event.state) for event in logged(log_url).values()][2:]
        assert len({payload["timestamp"] for payload in payloads}) == 1
        assert {payload["actor"] for payload in payloads} == {"ann"}
        assert {payload["correlation_id"] for payload in payloads} == {"correlation"}
        assert {payload["causation_id"] for payload in payloads} == {"correlation"}

    def test_naming_a_victims_stream_as_a_video_does_not_stop_the_victim(
        self, recorder: GroupCommitRecorder, log_url: str, video: UUID
    ) -> None:
        victim = stream_id(video, "ann")

        async def scenario(bus: CommandBus) -> None:
            for _ in range(3):
                attack, liked = await execute_all(
                    bus, [like(victim, "eve"), like(video, "ann", Wish.TOGGLE)]
                )
                assert isinstance(attack, NotFound)
                assert isinstance(liked, Executed)

        with_bus(recorder, scenario)
        assert decided(log_url, victim) == alternating(3)


class TestFailures:
    def test_a_refusal_is_its_commands_alone(
        self, recorder: GroupCommitRecorder, log_url: str, video: UUID
    ) -> None:
        async def scenario(bus: CommandBus) -> None:
            commands = [like(video, "ann"), like(uuid4(), "ann"), like(video, "bob")]
            outcomes = await execute_all(bus, commands)
            assert [type(outcome) for outcome in outcomes] == [Executed, NotFound, Executed]

        with_bus(recorder, scenario)
        assert [*logged(log_url)] == [1, 2, 3, 4]

    def test_connections_that_died_while_idle_fail_no_command(
        self, recorder: GroupCommitRecorder, log_url: str, video: UUID
    ) -> None:
        async def scenario(bus: CommandBus) -> None:
            await execute(bus, like(video, "ann"))
            kill_idle(log_url)
            assert type(await execute(bus, like(video, "bob"))) is Executed

        with_bus(recorder, scenario)
        assert [*logged(log_url)] == [1, 2, 3, 4]

    @pytest.mark.parametrize("error", [Conflict("No."), ZeroDivisionError("a bug")])
    def test_one_that_records_and_gives_up_leaves_nothing(
        self, recorder: GroupCommitRecorder, log_url: str, error: Exception
    ) -> None:
        shared, other = uuid4(), uuid4()

        async def scenario(bus: CommandBus) -> None:
            commands = [Toggle(shared), Toggle(shared, error), Toggle(shared), Toggle(other)]
            outcomes = await execute_all(bus, commands)
            answers = [getattr(outcome, "answer", outcome) for outcome in outcomes]
            assert answers == [True, error, False, True]
            assert await execute_all(bus, [Toggle(other, error), Toggle(shared, error)]) == [
                error,
                error,
            ]
            # What is remembered is what was recorded.
            answers = [each.answer for each in await execute_all(bus, [Toggle(shared)] * 2)]
            assert answers == [True, False]

        with capture_logs():
            with_bus(recorder, scenario)
        assert decided(log_url, shared) == alternating(4)
        assert decided(log_url, other) == ["liked"]

    def test_a_bug_is_logged_with_its_command(self, recorder: GroupCommitRecorder) -> None:
        async def scenario(bus: CommandBus) -> None:
            with pytest.raises(ZeroDivisionError):
                await execute(bus, Toggle(uuid4(), ZeroDivisionError("a bug")))

        before = metrics.value("backlot_commands_total", command="Toggle", outcome="failed")
        with capture_logs() as logs:
            with_bus(recorder, scenario)
        assert [(entry["event"], entry["command"]) for entry in logs] == [
            ("command_broke", "Toggle")
        ]
        after = metrics.value("backlot_commands_total", command="Toggle", outcome="failed")
        assert after == before + 1

    def test_a_stream_that_nobody_can_read_stops_only_its_own_commands(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        broken, sound = uuid4(), uuid4()

        async def scenario(bus: CommandBus) -> None:
            await execute_all(bus, [Toggle(broken), Toggle(sound)])
            recorder.insert_events([StoredEvent(broken, 2, "video_likes.adored.v1", b"{}")])
            for _ in range(2):
                outcomes = await execute_all(bus, [Toggle(broken), Toggle(sound), Toggle(broken)])
                assert [type(outcome) for outcome in outcomes] == [
                    MapperDeserialisationError,
                    Executed,
                    MapperDeserialisationError,
                ]

        with capture_logs() as logs:
            with_bus(recorder, scenario)
        assert [entry["stream"] for entry in logs] == [str(broken)] * 2
        assert decided(log_url, sound) == alternating(3)

    def test_when_the_store_is_away_all_are_told_and_nothing_is_remembered(
        self,
        recorder: GroupCommitRecorder,
        log_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        stream = uuid4()

        def away(*_: Any) -> Any:
            raise OperationalError("away")

        async def scenario(bus: CommandBus) -> None:
            await execute(bus, Toggle(stream))
            monkeypatch.setattr(event_store, "RETRY_SECONDS", 0.0)
            monkeypatch.setattr(recorder, "_append", away)
            outcomes = await execute_all(bus, [Toggle(stream), Toggle(uuid4())])
            assert [type(outcome) for outcome in outcomes] == [OperationalError] * 2
            monkeypatch.undo()
            assert (await execute(bus, Toggle(stream))).position == 2

        with capture_logs():
            with_bus(recorder, scenario)
        assert decided(log_url, stream) == ["liked", "unliked"]


class TestLimits:
    def test_what_is_not_remembered_is_loaded_again(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        streams = [uuid4() for _ in range(5)]

        async def scenario(bus: CommandBus) -> None:
            for _ in range(3):
                await execute_all(bus, [Toggle(stream) for stream in streams])
                assert list(bus._cache) == streams[-2:]

        with_bus(recorder, scenario, remember=2)
        assert [decided(log_url, stream) for stream in streams] == [alternating(3)] * 5

    def test_closing_finishes_what_was_accepted(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        streams = [uuid4() for _ in range(50)]

        async def scenario(bus: CommandBus) -> None:
            accepted = [asyncio.create_task(execute(bus, Toggle(stream))) for stream in streams]
            await asyncio.sleep(0)
            await bus.close()
            assert [task.result().position for task in accepted] == [*range(1, 51)]
            with pytest.raises(QueueFull):
                await execute(bus, Toggle(uuid4()))

        with_bus(recorder, scenario, max_batch=8)
        assert len(logged(log_url)) == 50

    def test_too_many_waiting_are_refused_and_the_others_served(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        async def scenario(bus: CommandBus) -> None:
            with lock_of_the_log(log_url):
                tasks = [asyncio.create_task(execute(bus, Toggle(uuid4())))]
                await asyncio.to_thread(eventually, lambda: appends_wait(log_url))
                tasks += [asyncio.create_task(execute(bus, Toggle(uuid4()))) for _ in range(15)]
                await asyncio.sleep(0.01)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(each) for each in outcomes] == [Executed] * 11 + [QueueFull] * 5

        with_bus(recorder, scenario, max_waiting=10)
        assert len(logged(log_url)) == 11
