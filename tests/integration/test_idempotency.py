"""An idempotency key makes a repeat harmless: the stored answer, and nothing recorded twice."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any
from uuid import uuid4

import pytest
from eventsourcing.persistence import OperationalError
from structlog.testing import capture_logs

from domain.errors import Conflict
from engine.command_bus import CommandBus, Executed, KeyReused
from engine.event_store import GroupCommitRecorder, IdempotencyKey, Save, StoredAnswer
from tests.integration.buses import Look, Toggle, alternating, decided, execute, open_bus, with_bus
from tests.integration.event_log import (
    appends_wait,
    events,
    lock_of_the_log,
    logged,
    rows,
)
from tests.support import eventually


def key(name: str = "key-1", body: bytes = b"body") -> IdempotencyKey:
    digest = hashlib.sha256(body).digest()
    return IdempotencyKey(name, digest, lambda answer: (201, repr(answer).encode()))


def kept(position: int, answer: Any = True, actor: str = "ann") -> StoredAnswer:
    """The stored answer of a toggle."""
    digest = hashlib.sha256(b"body").digest()
    return StoredAnswer(actor, "key-1", digest, 201, repr(answer).encode(), position)


def answers(log_url: str) -> list[tuple[Any, ...]]:
    return rows(log_url, "SELECT actor, key FROM backlot_events_answers ORDER BY 1, 2")


class TestRepeats:
    def test_a_repeat_gets_the_stored_answer_and_records_nothing(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        stream = uuid4()

        async def scenario(bus: CommandBus) -> None:
            assert await execute(bus, Toggle(stream), key=key()) == Executed(True, 1)
            await execute(bus, Toggle(stream))
            assert await execute(bus, Toggle(stream), key=key()) == kept(1)

        with_bus(recorder, scenario)
        # After a restart too: nothing of this is kept in memory.
        assert with_bus(recorder, lambda bus: execute(bus, Toggle(stream), key=key())) == kept(1)
        assert decided(log_url, stream) == ["liked", "unliked"]

    def test_100_at_once_with_one_key_are_one_event_and_equal_answers(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        stream = uuid4()

        async def scenario(bus: CommandBus) -> None:
            repeats = (execute(bus, Toggle(stream), key=key()) for _ in range(100))
            outcomes = await asyncio.gather(*repeats)
            assert outcomes == [Executed(True, 1)] + [kept(1)] * 99

        with_bus(recorder, scenario)
        assert decided(log_url, stream) == ["liked"]

    def test_two_buses_at_once_are_one_event(
        self, recorder: GroupCommitRecorder, another: GroupCommitRecorder, log_url: str
    ) -> None:
        streams = [uuid4() for _ in range(30)]

        async def scenario() -> None:
            async with open_bus(recorder) as one, open_bus(another) as two:
                outcomes = await asyncio.gather(
                    *(
                        execute(bus, Toggle(stream), key=key(f"key of {stream}"))
                        for stream in streams
                        for bus in (one, two)
                    )
                )
            for first, second in zip(outcomes[::2], outcomes[1::2], strict=True):
                assert {type(first), type(second)} == {Executed, StoredAnswer}
                assert first.position == second.position

        asyncio.run(scenario())
        assert [decided(log_url, stream) for stream in streams] == [["liked"]] * 30

    def test_two_buses_that_both_looked_before_either_wrote_are_one_event(
        self, recorder: GroupCommitRecorder, another: GroupCommitRecorder, log_url: str
    ) -> None:
        # Different streams: only the key itself can tell them apart.
        streams = [uuid4(), uuid4()]

        async def scenario() -> list[Any]:
            async with open_bus(recorder) as one, open_bus(another) as two:
                with lock_of_the_log(log_url):
                    tasks = [
                        asyncio.create_task(execute(bus, Toggle(stream), key=key()))
                        for bus, stream in zip((one, two), streams, strict=True)
                    ]
                    await asyncio.to_thread(eventually, lambda: appends_wait(log_url, 2))
                return list(await asyncio.gather(*tasks))

        outcomes = asyncio.run(scenario())
        assert kept(1) in outcomes
        assert Executed(True, 1) in outcomes
        assert len(logged(log_url)) == 1

    def test_an_answer_that_records_nothing_is_kept_with_the_position_that_it_told(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        async def scenario(bus: CommandBus) -> None:
            toggles = (execute(bus, Toggle(uuid4())) for _ in range(3))
            *_, told = await asyncio.gather(*toggles, execute(bus, Look(), key=key()))
            assert told == Executed("seen", 3)
            assert await execute(bus, Look(), key=key()) == kept(3, "seen")

        with_bus(recorder, scenario)
        assert answers(log_url) == [("ann", "key-1")]

    def test_a_lost_answer_is_found_by_its_key(
        self, recorder: GroupCommitRecorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append = recorder._append

        def lose(conn: Any, arguments: Any) -> Any:
            append(conn, arguments)
            monkeypatch.undo()
            raise OperationalError("the answer was lost")

        async def scenario(bus: CommandBus) -> None:
            await execute(bus, Toggle(uuid4()))
            monkeypatch.setattr(recorder, "_append", lose)
            # Nothing but the answer was to be recorded, so nothing else can be recognised.
            assert await execute(bus, Look(), key=key()) == kept(1, "seen")

        with capture_logs() as logs:
            with_bus(recorder, scenario)
        assert [entry["event"] for entry in logs] == ["append_retried"]


class TestBounds:
    def test_another_request_under_the_same_key_is_refused(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        stream = uuid4()

        async def scenario(bus: CommandBus) -> None:
            together = (execute(bus, Toggle(stream), key=key(body=b)) for b in (b"body", b"other"))
            first, second = await asyncio.gather(*together, return_exceptions=True)
            assert first == Executed(True, 1)
            assert isinstance(second, KeyReused)
            with pytest.raises(KeyReused, match="choose a new one"):
                await execute(bus, Toggle(stream), key=key(body=b"other"))

        with_bus(recorder, scenario)
        assert decided(log_url, stream) == ["liked"]

    def test_keys_are_each_actors_own(self, recorder: GroupCommitRecorder, log_url: str) -> None:
        stream = uuid4()

        async def scenario(bus: CommandBus) -> None:
            await execute(bus, Toggle(stream), "ann", key())
            await execute(bus, Toggle(stream), "bob", key(body=b"other"))
            assert await execute(bus, Toggle(stream), "ann", key()) == kept(1)

        with_bus(recorder, scenario)
        assert decided(log_url, stream) == alternating(2)
        assert answers(log_url) == [("ann", "key-1"), ("bob", "key-1")]

    def test_a_refused_save_keeps_no_answer(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        stream = uuid4()
        recorder.insert_events(events(stream=stream))
        appended = recorder.append(
            [
                Save(events(stream=stream), [kept(0)]),
                Save(events(2), [kept(0, actor="bob")]),
                Save([], [kept(0, actor="cid")]),
            ]
        )
        assert appended.outcomes == [None, range(2, 4), range(4, 4)]
        assert answers(log_url) == [("bob", "key-1"), ("cid", "key-1")]

    def test_a_used_key_refuses_its_save_whole(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        recorder.append([Save(events(), [kept(0)])])
        appended = recorder.append(
            [Save(events(2), [kept(0)]), Save(events(2), [kept(0, actor="bob")])]
        )
        assert appended.outcomes == [None, range(2, 4)]
        positions = rows(log_url, "SELECT actor, position FROM backlot_events_answers")
        assert sorted(positions) == [("ann", 1), ("bob", 3)]
        assert len(logged(log_url)) == 3

    def test_one_that_gives_up_leaves_neither_event_nor_answer(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        stream = uuid4()

        async def scenario(bus: CommandBus) -> None:
            with pytest.raises(Conflict):
                await execute(bus, Toggle(stream, Conflict("No.")), key=key())
            assert await execute(bus, Toggle(stream), key=key()) == Executed(True, 1)

        with_bus(recorder, scenario)
        assert decided(log_url, stream) == ["liked"]

    def test_answers_past_their_lifetime_are_forgotten(
        self, recorder: GroupCommitRecorder, log_url: str
    ) -> None:
        stream = uuid4()

        async def scenario(bus: CommandBus) -> None:
            await execute(bus, Toggle(stream), "ann", key())
            await execute(bus, Toggle(stream), "bob", key())
            rows(
                log_url,
                "UPDATE backlot_events_answers SET created_at = now() - interval '25 hours' "
                "WHERE actor = 'ann' RETURNING 1",
            )
            assert recorder.forget_answers(24) == 1
            assert answers(log_url) == [("bob", "key-1")]
            assert await execute(bus, Toggle(stream), "ann", key()) == Executed(True, 3)

        with_bus(recorder, scenario)
