"""`backlot projections` on a real database, with and without a running Backlot beside it."""

from __future__ import annotations

import getpass
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from backlot.doctor import examine
from backlot.features import read_models
from domain.operation import Operation, OperationOutcome
from domain.video_likes import VideoLikes
from engine.connections import connect
from infra.redis import connect_blocking_redis
from projections.like_counters import Counter, Counters
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.operator_desk import (
    Backlot,
    Desk,
    Launched,
    executing,
    replay_state,
    standing_still,
    working_on,
)
from tests.integration.projection_support import Writer, caught_up, hosting, position
from tests.integration.redis_servers import redis_servers
from tests.integration.replay_support import replays
from tests.support import DEADLINE_SECONDS, eventually

ME = f"operator:{getpass.getuser()}"


class Recorded(NamedTuple):
    """A database that was left, and what its writer knows."""

    name: str
    likes: dict[tuple[UUID, str], VideoLikes]
    head: int


@pytest.fixture(scope="module")
def recorded(
    copy_of: Callable[[str], AbstractContextManager[str]], template: str
) -> Iterator[Recorded]:
    """A log with likes, which all projections have applied; nothing runs any more."""
    with copy_of(template) as url:
        with closing(Writer(url)) as writer:
            writer.like(writer.video().id, "ann", "bob", "eve")
            models = read_models().all()
            with hosting(url, *models):
                caught_up(url, [model.schema for model in models], writer.head)
        name = str(conninfo_to_dict(url)["dbname"])
        yield Recorded(name, writer.likes, writer.head)


@pytest.fixture
def database_url(
    request: pytest.FixtureRequest,
    copy_of: Callable[[str], AbstractContextManager[str]],
    template: str,
    recorded: Recorded,
) -> Iterator[str]:
    """A copy of what was recorded for who asks for `liked`, else an empty database."""
    with copy_of(recorded.name if "liked" in request.fixturenames else template) as url:
        yield url


@pytest.fixture
def liked(database_url: str, recorded: Recorded) -> Iterator[Writer]:
    """Goes on where the likes were recorded."""
    with closing(Writer(database_url)) as writer:
        writer.likes, writer.head = deepcopy(recorded.likes), recorded.head
        yield writer


def spoil(database_url: str) -> None:
    """Alter a row of the live copy, as no event did."""
    rows(database_url, "UPDATE likes.counts SET likes = 77 RETURNING 1")


def count(database_url: str) -> int:
    ((likes,),) = rows(database_url, "SELECT likes FROM likes.counts")
    return int(likes)


@pytest.mark.usefixtures("liked")
class TestReading:
    def test_all_and_one(self, backlot: Backlot) -> None:
        told = backlot("list", "--json").data["items"]
        assert [item["name"] for item in told] == sorted(read_models().by_name())
        one = backlot("show", "likes", "--json").data
        assert one.pop("rate") == 0.0
        listed = next(item for item in told if item["name"] == "likes")
        assert one == listed
        assert [copy["kind"] for copy in one["copies"]] == ["live"]
        assert "likes" in backlot("list").out
        assert "copy likes (live)" in backlot("show", "likes").out

    def test_what_there_is_not(self, backlot: Backlot) -> None:
        for words in (["show", "nothing"], ["replay", "nothing"], ["pause", "nothing"]):
            code, out, err = backlot(*words)
            assert (code, out) == (2, "")
            assert err.startswith("backlot: there is no projection 'nothing'")
            assert err.count("\n") == 1


class TestReplay:
    def test_without_a_server(self, backlot: Backlot, liked: Writer, root: Desk) -> None:
        code, out, err = backlot("replay", "likes", "--reason", "a test", "--json")
        told = json.loads(out)
        assert (code, told["state"], told["events"]) == (0, "switched", 3)
        assert told["difference"]["differs"] is False
        assert "replay likes: " in err
        assert f"/{liked.head}" in err
        requested, finished = root.events()
        assert isinstance(requested, Operation.Requested)
        assert isinstance(finished, Operation.Finished)
        assert requested.actor == finished.actor == ME
        assert (requested.action, requested.subject) == ("replay", "likes")
        assert requested.asked == {"workers": 1, "reason": "a test"}
        assert (finished.outcome, finished.result["state"]) == ("done", "switched")
        assert backlot("rollback", "likes", "--yes").code == 0
        assert backlot("drop-old", "likes", "--yes").code == 0
        assert position(root.database_url, "likes__previous") == -1

    def test_a_look_at_the_past(self, backlot: Backlot, liked: Writer, root: Desk) -> None:
        told = backlot("replay", "likes", "--to", str(liked.head - 1), "--json").data
        assert (told["state"], told["purpose"]) == ("kept", "look")
        found = rows(root.database_url, f"SELECT likes FROM {told['schema']}.counts")
        assert found == [(2,)]
        assert backlot("drop-look", "likes", str(liked.head - 1)).code == 0
        assert position(root.database_url, told["schema"]) == -1
        assert "no look" in backlot("drop-look", "likes", str(liked.head - 1)).err

    @pytest.mark.usefixtures("liked")
    def test_a_difference_needs_a_yes(self, backlot: Backlot, root: Desk) -> None:
        spoil(root.database_url)
        code, out, _ = backlot("replay", "likes")
        assert code == 3
        assert "1 row differs" in out
        assert "video_id=" in out
        assert count(root.database_url) == 77
        assert backlot("confirm", "likes").code == 0
        assert count(root.database_url) == 77
        assert backlot("replay", "likes").code == 0
        assert count(root.database_url) == 3
        replay, confirmed = root.events()[0].originator_id, root.events()[1].originator_id
        assert [event.action for event in root.events(confirmed)] == ["confirm", "confirm"]
        assert root.operation(replay).outcome is OperationOutcome.DONE

    @pytest.mark.usefixtures("liked")
    def test_a_yes_given_before(self, backlot: Backlot, root: Desk) -> None:
        spoil(root.database_url)
        code, out, _ = backlot("replay", "likes", "--yes")
        assert code == 0
        assert "1 row differs" in out
        assert count(root.database_url) == 3

    @pytest.mark.usefixtures("liked")
    def test_what_is_refused_is_recorded_and_told(self, backlot: Backlot, root: Desk) -> None:
        code, out, err = backlot("rollback", "likes", "--yes")
        assert (code, out) == (4, "")
        assert err == "backlot: likes has no previous copy to go back to.\n"
        assert root.operation(root.events()[0].originator_id).outcome is OperationOutcome.REFUSED

    @pytest.mark.usefixtures("liked")
    def test_ctrl_c_lets_it_rest_and_the_same_command_goes_on(
        self, backlot: Backlot, root: Desk, tmp_path: Path
    ) -> None:
        with standing_still(root.database_url, "likes"):
            process = Launched(tmp_path, root.database_url, "replay", "likes")
            eventually(lambda: replay_state(root) is not None)
            process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 130
        assert "stays where it is" in process.err
        assert "projections cancel likes" in process.err
        assert replay_state(root, paused=True)
        with executing(root.database_url):
            root.done("pause", "comments")
            assert replay_state(root, paused=True)
        assert backlot("replay", "likes").code == 0
        with connect(root.database_url, "test") as conn:
            assert len(replays(conn)) == 1

    @pytest.mark.usefixtures("liked")
    def test_killed_it_is_finished_by_a_running_backlot(self, root: Desk, tmp_path: Path) -> None:
        with executing(root.database_url):
            with standing_still(root.database_url, "likes"):
                process = Launched(tmp_path, root.database_url, "replay", "likes", "--yes")
                eventually(lambda: replay_state(root) is not None)
                process.kill()
                process.wait(DEADLINE_SECONDS)
            (operation_id,) = {event.originator_id for event in root.events()}
            outcome, result = root.end(operation_id)
        assert (outcome, result["state"]) == (OperationOutcome.DONE, "switched")

    @pytest.mark.usefixtures("liked")
    def test_one_that_another_process_carries_out_is_followed(
        self, root: Desk, tmp_path: Path
    ) -> None:
        with executing(root.database_url):
            with standing_still(root.database_url, "likes"):
                operation_id = root.ask("replay", "likes")
                eventually(lambda: working_on(operation_id))
                process = Launched(tmp_path, root.database_url, "replay", "likes", "--json")
                eventually(lambda: process.err.startswith("replay likes: "))
            assert process.wait(DEADLINE_SECONDS) == 0, process.err
        assert json.loads(process.out)["operationId"] == str(operation_id)
        assert {event.originator_id for event in root.events()} == {operation_id}

    @pytest.mark.usefixtures("liked")
    def test_another_one_under_way(self, backlot: Backlot, root: Desk) -> None:
        spoil(root.database_url)
        assert backlot("replay", "likes").code == 3
        code, _, err = backlot("verify", "likes")
        assert code == 4
        assert "another replay under way (switch, waiting)" in err
        assert backlot("cancel", "likes").code == 0
        assert backlot("replay", "likes", "--detach", "--json").data["operationId"]
        assert replay_state(root, state="cancelled")


@pytest.mark.usefixtures("liked")
class TestChecking:
    def test_verify_names_the_row_and_changes_nothing(self, backlot: Backlot, root: Desk) -> None:
        assert backlot("verify", "--all").code == 0
        spoil(root.database_url)
        code, out, _ = backlot("verify", "likes")
        assert code == 1
        assert "counts: video_id=" in out
        assert "is different\n    likes: 77 → 3" in out
        assert count(root.database_url) == 77
        told = backlot("verify", "--all", "--json")
        assert told.code == 1
        differing = [each["name"] for each in told.data["items"] if each["difference"]["differs"]]
        assert differing == ["likes"]
        (item,) = (each for each in told.data["items"] if each["name"] == "likes")
        (key,) = item["difference"]["keys"]
        assert (key["columns"], "changes" in key) == (["likes"], False)
        names = rows(root.database_url, "SELECT subscription FROM backlot_checkpoints ORDER BY 1")
        assert [name for (name,) in names] == sorted(read_models().by_name())

    def test_completeness(self, backlot: Backlot, root: Desk) -> None:
        assert backlot("completeness", "--all").code == 0
        rows(root.database_url, "UPDATE projections.ledger SET applied = applied + 1 RETURNING 1")
        code, out, _ = backlot("completeness", "likes", "--json")
        assert code == 1
        assert json.loads(out)["faults"][0]["firstPosition"] == 1

    @pytest.mark.parametrize("words", [["verify"], ["verify", "likes", "--all"], ["completeness"]])
    def test_one_or_all(self, backlot: Backlot, words: list[str]) -> None:
        code, out, err = backlot(*words)
        assert (code, out, err) == (2, "", "backlot: name one projection, or say --all\n")


@pytest.mark.usefixtures("liked")
class TestParked:
    def test_an_event_is_parked_shown_retried_and_discarded(
        self, backlot: Backlot, root: Desk
    ) -> None:
        with psycopg.connect(root.database_url, autocommit=True) as conn:
            conn.execute(
                "INSERT INTO backlot_dead_letters (kind, subscription, position, error, status) "
                "SELECT 'projection', 'likes', position, 'it broke', 'parked' "
                "FROM unnest(ARRAY[3, 4]) AS position"
            )
            # As if they had never been applied.
            conn.execute(
                "WITH gone AS "
                "(DELETE FROM likes.likes WHERE position IN (3, 4) RETURNING video_id), "
                "taken AS (SELECT video_id, count(*) AS likes FROM gone GROUP BY video_id) "
                "UPDATE likes.counts c SET likes = c.likes - t.likes FROM taken t "
                "WHERE t.video_id = c.video_id"
            )
        items = backlot("parked", "list", "likes", "--json").data["items"]
        assert [(item["position"], item["status"]) for item in items] == [
            (3, "parked"),
            (4, "parked"),
        ]
        shown = backlot("parked", "show", "likes", "3", "--json").data
        assert shown["error"] == "it broke"
        assert shown["payload"]["viewer"] == "ann"
        assert "viewer" in backlot("parked", "show", "likes", "3").out
        retried = backlot("parked", "retry", "likes", "3", "--json")
        assert retried.data["events"] == [{"position": 3, "outcome": "applied"}]
        words = ["parked", "discard", "likes", "4", "--reason", "a test account", "--yes"]
        assert backlot(*words).code == 0
        (left,) = backlot("parked", "list", "likes", "--json").data["items"]
        assert (left["status"], left["decidedBy"]) == ("discarded", ME)
        actions = [(e.action, e.actor) for e in root.events() if isinstance(e, Operation.Requested)]
        assert actions == [("retry", ME), ("discard", ME)]

    def test_a_stopped_projection_goes_on_behind_the_event(
        self, backlot: Backlot, root: Desk
    ) -> None:
        at = position(root.database_url, "likes")
        with psycopg.connect(root.database_url, autocommit=True) as conn:
            conn.execute(
                "UPDATE backlot_checkpoints SET status = 'stopped', error = 'it broke', "
                "error_position = position + 1 WHERE subscription = 'likes'"
            )
        listed = backlot("list")
        assert listed.code == 1
        assert f"likes: stopped at position {at + 1}: it broke" in listed.out
        assert backlot("list", "--json").code == 1
        assert backlot("parked", "park", "likes", "--reason", "an alert", "--yes").code == 0
        assert backlot("list").code == 0
        assert position(root.database_url, "likes") == at + 1
        code, _, err = backlot("parked", "park", "likes", "--reason", "again", "--yes")
        assert code == 4
        assert "not stopped" in err


UNREADABLE = "UPDATE backlot_events SET state = '{}' WHERE topic = %s RETURNING 1"


class TestStopped:
    """Likes of three viewers, whose events nobody can read any more."""

    @pytest.fixture
    def stopped(self, database_url: str, writer: Writer) -> Iterator[Writer]:
        model = read_models()[Likes]
        writer.like(writer.video().id, "ann", "bob", "eve")
        rows(database_url, UNREADABLE.replace("%s", "'video_likes.liked.v1'"))
        with hosting(database_url, *read_models().all(), poll_seconds=30.0):
            eventually(lambda: _state(database_url, model.name) == ("stopped", 3))
            yield writer

    def test_resume_does_not_say_done_when_it_stops_again(
        self, backlot: Backlot, root: Desk, stopped: Writer
    ) -> None:
        code, out, err = backlot("resume", "likes")
        assert (code, out) == (4, "")
        assert "has stopped again, at position 3: MapperDeserialisationError" in err
        assert "`backlot projections parked park likes --reason" in err
        (ended,) = _operations(root)
        assert (ended.outcome, ended.result["stoppedAt"]) == (OperationOutcome.FAILED, 3)

    def test_park_tells_where_it_stops_next(
        self, backlot: Backlot, root: Desk, stopped: Writer
    ) -> None:
        told = backlot("parked", "park", "likes", "--reason", "lost", "--yes", "--json").data
        assert (told["position"], told["stoppedAt"]) == (3, 4)
        wrong = backlot("parked", "park", "likes", "--reason", "x", "--yes", "--all-like", "3")
        assert (wrong.code, wrong.err) == (
            4,
            "backlot: likes is stopped in front of 4, not of 3.\n",
        )

    def test_all_like_one_are_parked_retried_and_discarded(
        self, backlot: Backlot, root: Desk, stopped: Writer
    ) -> None:
        parked = backlot("parked", "park", "likes", "--reason", "lost", "--yes", "--all-like", "3")
        assert (parked.code, parked.out) == (0, "park likes: done, position 3\n")
        caught_up(root.database_url, ["likes"], stopped.head)
        items = backlot("parked", "list", "likes", "--json").data["items"]
        assert [(item["position"], item["reason"]) for item in items] == [
            (3, "lost"),
            (4, "lost"),
            (5, "lost"),
        ]
        retried = backlot("parked", "retry", "likes", "--all-like", "4", "--json")
        assert [event["position"] for event in retried.data["events"]] == [3, 4, 5]
        assert retried.code == 1
        words = ["parked", "discard", "likes", "--all-like", "5", "--reason", "gone", "--yes"]
        assert backlot(*words).out == "discard likes: done, 3 events\n"
        assert backlot("completeness", "likes").code == 0
        (discarded,) = (each for each in _operations(root) if each.action == "discard")
        assert discarded.parameters == {"allLike": 5, "reason": "gone"}
        assert discarded.result == {"discarded": 3, "positions": [3, 4, 5]}

    @pytest.mark.parametrize(
        ("words", "refused"),
        [
            (["discard", "likes", "--reason", "x", "--yes"], 2),
            (["discard", "likes", "3", "--all-like", "3", "--reason", "x", "--yes"], 2),
            (["retry", "likes", "3", "--all-like", "3"], 2),
            (["discard", "likes", "3", "--reason", "\u2800", "--yes"], 4),
        ],
    )
    def test_what_is_not_said_clearly_is_not_done(
        self, backlot: Backlot, root: Desk, stopped: Writer, words: list[str], refused: int
    ) -> None:
        code, out, err = backlot("parked", *words)
        assert (code, out) == (refused, "")
        assert "name one event" in err or "text that can be seen" in err
        assert _operations(root) == []

    def test_doctor_says_where_and_what_to_do(
        self, stopped: Writer, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", database_url)
        (part,) = (part for part in examine() if part.name == "projections")
        assert not part.ok
        assert "likes: stopped at position 3: MapperDeserialisationError" in part.detail
        assert "`backlot projections resume likes`" in part.detail


@pytest.mark.usefixtures("liked")
def test_resume_says_when_nobody_goes_on(backlot: Backlot, root: Desk, liked: Writer) -> None:
    assert backlot("pause", "likes").code == 0
    liked.like(liked.video().id, "zoe")
    said = backlot("resume", "likes")
    assert said.code == 0
    assert "no process runs it now" in said.out
    assert backlot("resume", "likes", "--json").data == {"outcome": "done", "changed": False}


def _operations(root: Desk) -> list[Operation]:
    """All that the log knows, though other events in it can't be read."""
    query = "SELECT originator_id FROM backlot_events WHERE topic = 'operation.requested.v1'"
    return [root.operation(operation_id) for (operation_id,) in rows(root.database_url, query)]


def _state(database_url: str, schema: str) -> tuple[str, int | None]:
    query = (
        f"SELECT status, error_position FROM backlot_checkpoints WHERE subscription = '{schema}'"
    )
    found = rows(database_url, query)
    return found[0] if found else ("", None)


class TestCounters:
    @pytest.mark.usefixtures("liked")
    def test_without_a_redis_there_are_none(self, backlot: Backlot, root: Desk) -> None:
        code, out, err = backlot("replay", "counters")
        assert (code, out) == (4, "")
        assert "REDIS_URL is not set" in err
        assert [event.subject for event in root.events()] == ["counters", "counters"]

    def test_they_are_put_anew_and_follow_a_switch(
        self,
        backlot: Backlot,
        liked: Writer,
        root: Desk,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (video,) = {video for video, _ in liked.likes}
        with redis_servers(1, tmp_path) as (server,), connect_blocking_redis(server.url) as redis:
            monkeypatch.setenv("REDIS_URL", server.url)
            counters = Counters(redis, 600)
            assert backlot("replay", "counters", "--json").data == {"counters": 1}
            assert counters.get([video])[0] == Counter(3, liked.head)
            spoil(root.database_url)
            assert backlot("replay", "counters").code == 0
            assert _likes(counters, video) == 77
            assert backlot("replay", "likes", "--yes").code == 0
            assert _likes(counters, video) == 3


def _likes(counters: Counters, video: UUID) -> int:
    (held,) = counters.get([video])
    assert held is not None
    return held.likes
