"""Operators' actions: each is recorded, carried out by one process, and told once."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event

import pytest

from backlot.database import recorded
from backlot.features import read_models
from domain.errors import Invalid
from domain.operation import Members, Operation, OperationOutcome
from engine.connections import connect
from engine.log import event_id
from engine.operations import claimed, finish, recording
from engine.replay.records import tell_nobody
from projections.operations import Operations
from tests.integration.event_log import rows
from tests.integration.operator_desk import (
    CHILD,
    Desk,
    await_process,
    desk,
    executing,
    replay_state,
    standing_still,
    working_on,
)
from tests.integration.projection_support import Writer, caught_up, hosting, position
from tests.integration.replay_support import replays
from tests.support import eventually
from workers.operations.actions import Tools
from workers.operations.executor import PAUSE_SECONDS, POLL_SECONDS, perform


@pytest.fixture
def root(database_url: str) -> Iterator[Desk]:
    with desk(database_url) as opened:
        yield opened


class TestRecording:
    def test_who_did_what_when_with_what_result(self, root: Desk) -> None:
        before = datetime.now(UTC)
        with recording(root.recorder, "operator:ann", "export", "log", {"to": 7}) as running:
            (requested,) = root.events()
            running.result = {"events": 7}
        requested, finished = root.events()
        assert isinstance(requested, Operation.Requested)
        assert isinstance(finished, Operation.Finished)
        assert requested.actor == finished.actor == "operator:ann"
        assert (requested.action, requested.subject) == ("export", "log")
        assert requested.parameters == {"to": 7}
        assert (finished.outcome, finished.result) == ("done", {"events": 7})
        assert before <= requested.timestamp <= finished.timestamp <= datetime.now(UTC)
        assert finished.correlation_id == requested.correlation_id
        assert finished.causation_id == str(event_id(running.operation_id, 1))

    def test_a_command_names_who_gives_it(self, root: Desk) -> None:
        with recorded(root.database_url, "reconcile", "likes", {"repair": True}) as running:
            running.outcome = OperationOutcome.REFUSED
        requested, finished = root.events()
        assert requested.actor == finished.actor == f"operator:{getpass.getuser()}"
        assert root.operation(running.operation_id).outcome is OperationOutcome.REFUSED

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [(RuntimeError("no \x00 room"), "failed"), (KeyboardInterrupt(), "cancelled")],
    )
    def test_what_goes_wrong_is_recorded_and_told(
        self, root: Desk, error: BaseException, outcome: str
    ) -> None:
        def work() -> None:
            with recording(root.recorder, "ann", "export", "log", {}) as running:
                running.result = {"events": 3}
                raise error

        with pytest.raises(type(error)):
            work()
        finished = root.events()[-1]
        assert isinstance(finished, Operation.Finished)
        assert finished.outcome == outcome
        assert finished.result["events"] == 3
        assert str(finished.result["error"]).startswith(type(error).__name__)

    def test_what_cannot_be_recorded_is_not_done(self, root: Desk) -> None:
        with (
            pytest.raises(Invalid),
            recording(root.recorder, "ann", "export", "log", {"why": "x" * 10_000}),
        ):
            pytest.fail("it was done")
        assert root.events() == []

    def test_it_is_claimed_as_long_as_it_lasts(self, root: Desk) -> None:
        with connect(root.database_url, "test") as conn:
            with (
                recording(root.recorder, "ann", "export", "log", {}) as running,
                claimed(conn, running.operation_id) as mine,
            ):
                assert not mine
            with claimed(conn, running.operation_id) as mine:
                assert mine

    def test_many_who_finish_at_once_record_one_end(self, root: Desk) -> None:
        operation_id = root.ask("verify", "likes")
        ends = list(OperationOutcome) * 4
        with ThreadPoolExecutor(len(ends)) as pool:
            list(pool.map(lambda end: finish(root.recorder, operation_id, end, {}, "host"), ends))
        assert [type(event) for event in root.events()] == [
            Operation.Requested,
            Operation.Finished,
        ]


class TestReadModel:
    def test_what_was_asked_and_what_came_of_it(self, root: Desk) -> None:
        model = Operations()
        asked = [root.ask("pause", "likes", {"reason": "ça va"}), root.ask("verify", "likes")]
        finish(root.recorder, asked[0], OperationOutcome.DONE, {"changed": True}, "host")
        with hosting(root.database_url, model), connect(root.database_url, "test") as conn:
            caught_up(root.database_url, ["operations"], 3)
            assert model.unfinished(conn) == [asked[1]]
        found = rows(
            root.database_url,
            "SELECT action, subject, parameters, requested_by, position, outcome, result "
            "FROM operations.operations ORDER BY position",
        )
        assert found == [
            ("pause", "likes", {"reason": "ça va"}, "root", 1, "done", {"changed": True}),
            ("verify", "likes", {}, "root", 2, None, None),
        ]


class TestExecutor:
    def test_what_is_asked_for_is_done_and_told(self, root: Desk, writer: Writer) -> None:
        with executing(root.database_url):
            operation_id = root.ask("pause", "likes", {"reason": "looking"}, actor="ann")
            assert root.end(operation_id) == (OperationOutcome.DONE, {"changed": True})
            requested, finished = root.events(operation_id)
            assert (requested.actor, finished.actor) == ("ann", "projections")
            assert finished.correlation_id == requested.correlation_id
            assert finished.causation_id == str(event_id(operation_id, 1))
            writer.like(writer.video().id, "bob")
            caught_up(root.database_url, ["catalog"], writer.head)
            assert position(root.database_url, "likes") < writer.head
            assert root.done("pause", "likes") == {"changed": False}
            assert root.done("resume", "likes") == {"changed": True}
            caught_up(root.database_url, ["likes"], writer.head)

    def test_what_is_not_possible_is_refused_with_the_reason(self, root: Desk) -> None:
        wishes: list[tuple[str, str, Members, str]] = [
            ("replay", "nothing", {}, "no projection nothing"),
            ("replay", "likes", {"to": 10**9}, "from 1 to"),
            ("rollback", "likes", {}, "no previous copy"),
            ("cancel", "likes", {}, "no unfinished replay"),
            ("confirm", "likes", {}, "no unfinished replay"),
            ("pause", "likes", {"replay": True}, "no unfinished replay"),
            ("drop-old", "likes", {}, "no previous copy"),
            ("pause", "operations", {}, "nobody would see"),
            ("park", "likes", {"reason": "why not"}, "not stopped"),
            ("discard", "likes", {"position": 1, "reason": "why not"}, "position 1"),
            ("discard", "likes", {"reason": "why not"}, "which event"),
            ("retry", "audit", {}, "replay it"),
            ("park", "likes", {"reason": "why not", "allLike": 9}, "not stopped"),
            ("discard", "likes", {"allLike": 9, "reason": "why not"}, "position 9"),
            ("retry", "likes", {"allLike": 9}, "position 9"),
        ]
        with executing(root.database_url):
            for action, subject, parameters, reason in wishes:
                outcome, result = root.end(root.ask(action, subject, parameters))
                assert outcome is OperationOutcome.REFUSED, action
                assert reason in str(result["reason"])

    def test_a_replay_runs_in_a_process_of_its_own(self, root: Desk, writer: Writer) -> None:
        """Which imports the program, as do the two that build parts; elsewhere they are forked."""
        writer.like(writer.video().id, *(f"viewer-{number}" for number in range(50)))
        with executing(root.database_url, command=CHILD):
            caught_up(root.database_url, ["likes"], writer.head)
            result = root.done("replay", "likes", workers=2, reason="a test")
            assert result["state"] == "switched"
            assert result["events"] == 50
            assert result["difference"]["differs"] is False
            assert position(root.database_url, "likes__previous") >= writer.head

    def test_one_action_comes_after_another(self, root: Desk, writer: Writer) -> None:
        writer.like(writer.video().id, *(f"viewer-{number}" for number in range(50)))
        with executing(root.database_url):
            caught_up(root.database_url, ["likes"], writer.head)
            assert root.done("replay", "likes", workers=2)["state"] == "switched"
            assert root.done("verify", "likes")["difference"]["total"] == 0
            assert root.done("completeness", "likes")["complete"] is True
            look = root.done("replay", "likes", to=writer.head - 10)
            assert look["schema"] == f"likes__at_{writer.head - 10}"
            assert root.done("rollback", "likes")["state"] == "switched"
            root.done("drop-old", "likes")
        assert position(root.database_url, "likes__previous") == -1

    def test_a_difference_waits_for_its_confirmation(self, root: Desk, writer: Writer) -> None:
        video = writer.video()
        writer.like(video.id, "ann", "bob")
        with executing(root.database_url):
            caught_up(root.database_url, ["likes"], writer.head)
            rows(root.database_url, "UPDATE likes.counts SET likes = 77 RETURNING 1")
            rows(root.database_url, "DELETE FROM likes.likes WHERE viewer = 'ann' RETURNING 1")
            operation_id = root.ask("replay", "likes")
            eventually(lambda: replay_state(root, state="waiting", paused=False))
            assert root.operation(operation_id).outcome is None
            assert rows(root.database_url, "SELECT likes FROM likes.counts") == [(77,)]
            root.done("confirm", "likes")
            outcome, result = root.end(operation_id)
            assert (outcome, result["state"]) == (OperationOutcome.DONE, "switched")
            assert rows(root.database_url, "SELECT likes FROM likes.counts") == [(2,)]
            told = str([vars(event) for event in root.events()])
            assert "ann" not in told, "the log of operations names viewers"

    def test_pause_resume_and_cancel_reach_a_replay_that_runs(
        self, root: Desk, writer: Writer
    ) -> None:
        writer.like(writer.video().id, "ann")
        with executing(root.database_url):
            caught_up(root.database_url, ["likes"], writer.head)
            with standing_still(root.database_url, "likes"):
                operation_id = root.ask("replay", "likes")
                await_process(operation_id)
                eventually(lambda: replay_state(root))
                root.done("pause", "likes", replay=True)
            eventually(lambda: not working_on(operation_id))
            time.sleep(PAUSE_SECONDS + POLL_SECONDS)
            assert not working_on(operation_id), "it does not rest"
            assert root.operation(operation_id).outcome is None
            with standing_still(root.database_url, "likes"):
                root.done("resume", "likes", replay=True)
                await_process(operation_id)
                root.done("cancel", "likes")
            outcome, result = root.end(operation_id)
            assert (outcome, result["state"]) == (OperationOutcome.CANCELLED, "cancelled")
            assert position(root.database_url, "likes__next") == -1

    def test_one_whose_process_is_killed_goes_on_in_another_and_ends_once(
        self, root: Desk, writer: Writer
    ) -> None:
        writer.like(writer.video().id, "ann")
        with executing(root.database_url), executing(root.database_url):
            caught_up(root.database_url, ["likes"], writer.head)
            with standing_still(root.database_url, "likes"):
                operation_id = root.ask("replay", "likes")
                first = await_process(operation_id)
                eventually(lambda: replay_state(root))
                first.kill()
                eventually(lambda: {p.pid for p in working_on(operation_id)} - {first.pid})
            assert root.end(operation_id)[0] is OperationOutcome.DONE
            eventually(lambda: not working_on(operation_id))
        assert len(root.events(operation_id)) == 2
        with connect(root.database_url, "test") as conn:
            assert len(replays(conn, "likes")) == 1

    def test_who_is_at_it_is_left_alone(self, root: Desk) -> None:
        with (
            executing(root.database_url),
            recording(root.recorder, "operator:ann", "replay", "likes", {}) as running,
        ):
            other = root.ask("pause", "likes")
            root.end(other)
            assert root.operation(running.operation_id).outcome is None
            assert replay_state(root) is None
            running.result = {"by": "ann"}
        assert root.operation(running.operation_id).result == {"by": "ann"}

    def test_what_another_has_claimed_is_not_done_twice(self, root: Desk) -> None:
        models = read_models()
        tools = Tools(root.database_url, models.by_name(), tell_nobody, Event())
        with (
            hosting(root.database_url, *models.all()),
            connect(root.database_url, "one") as one,
            connect(root.database_url, "other") as other,
        ):
            operation_id = root.ask("pause", "likes")
            with claimed(one, operation_id) as mine:
                assert mine
                assert perform(other, root.recorder, tools, operation_id) is False
                assert _status(root) == "running"
            assert perform(other, root.recorder, tools, operation_id) is True
            assert _status(root) == "paused"
            assert perform(one, root.recorder, tools, operation_id) is True
            assert len(root.events(operation_id)) == 2

    def test_what_its_process_left_behind_is_told(self, root: Desk) -> None:
        operation_id = root.ask("export", "log")
        with executing(root.database_url):
            outcome, result = root.end(operation_id)
        assert outcome is OperationOutcome.FAILED
        assert "ended before" in str(result["error"])

    def test_processes_that_die_again_and_again_end_it(
        self, root: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.operations.executor.PAUSE_SECONDS", 0.01)
        with executing(root.database_url, command=("false",)):
            outcome, result = root.end(root.ask("completeness", "likes"))
        assert outcome is OperationOutcome.FAILED
        assert "3 processes died" in str(result["error"])

    def test_a_stop_lets_the_child_stop_and_a_start_goes_on(
        self, root: Desk, writer: Writer
    ) -> None:
        writer.like(writer.video().id, "ann")
        with executing(root.database_url):
            caught_up(root.database_url, ["likes"], writer.head)
            with standing_still(root.database_url, "likes"):
                operation_id = root.ask("replay", "likes")
                child = await_process(operation_id)
                eventually(lambda: replay_state(root))
        assert not child.is_running()
        with executing(root.database_url):
            assert root.end(operation_id)[0] is OperationOutcome.DONE

    @pytest.mark.parametrize("name", ["likes", "operations"])
    def test_what_an_older_release_has_made_is_built_again_at_the_start(
        self, root: Desk, writer: Writer, name: str
    ) -> None:
        writer.like(writer.video().id, "ann")
        with executing(root.database_url):
            root.done("pause", "comments")
            eventually(lambda: position(root.database_url, name) >= 5)
        query = "UPDATE backlot_checkpoints SET version = 0 WHERE subscription = %s RETURNING 1"
        rows(root.database_url, query, [name])
        with executing(root.database_url):
            root.done("resume", "comments") if name == "likes" else time.sleep(1)
            assert replay_state(root) is None
        with (
            executing(root.database_url, auto_replay=True),
            executing(root.database_url, auto_replay=True),
        ):
            eventually(lambda: replay_state(root, state="switched"))
            (requested,) = [
                event
                for event in root.events()
                if isinstance(event, Operation.Requested) and event.action == "replay"
            ]
            assert (requested.actor, requested.subject) == ("system", name)
            assert root.end(requested.originator_id)[0] is OperationOutcome.DONE
            caught_up(root.database_url, [name], writer.head)


def _status(root: Desk) -> str:
    query = "SELECT status FROM backlot_checkpoints WHERE subscription = 'likes'"
    ((found,),) = rows(root.database_url, query)
    return str(found)
