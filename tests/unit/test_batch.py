"""One round of a batch: who shares a fate with whom, and who does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from structlog.testing import capture_logs

from domain.comment import Comment
from domain.errors import Conflict
from domain.model import Aggregate, Origin
from domain.video_likes import VideoLikes
from engine.command_bus import (
    Aggregates,
    Command,
    Executed,
    Group,
    Query,
    Request,
    Round,
    Slot,
)
from engine.event_store import IdempotencyKey
from engine.log import EventMapper

AT = datetime(2026, 11, 1, tzinfo=UTC)
A, B, C = (UUID(int=number) for number in (1, 2, 3))
HEAD = 100
MAPPER = EventMapper()


@dataclass(frozen=True)
class Do(Command[Any]):
    """Toggles some streams, reads others, and then perhaps gives up."""

    toggles: tuple[UUID, ...] = ()
    reads: tuple[UUID, ...] = ()
    error: Exception | None = None
    viewer: str = "ann"

    def streams(self) -> Sequence[UUID]:
        return (*self.toggles, *self.reads)

    def decide(self, aggregates: Aggregates, origin: Origin) -> Any:
        for stream in self.toggles:
            aggregates.get(VideoLikes, stream).toggle(stream, self.viewer, origin)
        if self.error is not None:
            raise self.error.with_traceback(None)
        return {stream: aggregates.get(VideoLikes, stream).liked for stream in self.streams()}


@dataclass(frozen=True)
class Ask(Do, Query[Any]):
    """The same as a query, which must not toggle."""


def request(command: Command[Any], key: IdempotencyKey | None = None) -> Request:
    return Request(command, "ann", "correlation", "causation", key)


def key(render: Callable[[Any], tuple[int, bytes]] = lambda _: (200, b"{}")) -> IdempotencyKey:
    return IdempotencyKey("key", b"hash", render)


def decide(*requests: Request, known: dict[UUID, Aggregate] | None = None) -> list[Group]:
    slots = {stream: Slot((known or {}).get(stream)) for stream in (A, B, C)}
    this = Round(slots, HEAD, AT)
    with capture_logs() as logs:
        for each in requests:
            this.decide(each)
    assert {entry["event"] for entry in logs} <= {"command_broke"}
    return this.groups


def places(group: Group) -> list[tuple[Any, int]]:
    return [(event.originator_id, event.originator_version) for event in group.events]


def changed(group: Group) -> set[UUID]:
    return {slot.aggregate.id for slot in group.changed if slot.aggregate}


def fates(groups: list[Group]) -> list[list[Request]]:
    return [[each for each, _ in group.results] for group in groups]


class TestFates:
    def test_commands_on_different_streams_stand_alone(self) -> None:
        first, second = request(Do((A,))), request(Do((B,)))
        groups = decide(first, second)
        assert fates(groups) == [[first], [second]]
        assert [places(group) for group in groups] == [[(A, 1)], [(B, 1)]]
        assert first.outcome is None

    def test_the_later_one_sees_and_shares_what_the_earlier_one_changed(self) -> None:
        first, second, reader = request(Do((A,))), request(Do((A,))), request(Do(reads=(A,)))
        groups = decide(first, second, reader)
        assert fates(groups) == [[first, second, reader]]
        assert places(groups[0]) == [(A, 1), (A, 2)]
        assert [result for _, result in groups[0].results] == [{A: True}, {A: False}, {A: False}]

    def test_one_that_reads_what_nobody_changed_is_settled_at_once(self) -> None:
        reader = request(Do(reads=(B,)))
        assert fates(decide(reader, first := request(Do((A,))))) == [[first]]
        assert reader.outcome == Executed({B: False}, HEAD)

    def test_one_that_touches_two_groups_makes_them_one(self) -> None:
        requests = [request(Do(toggles)) for toggles in [(A,), (B,), (C,), (B, A), (B,)]]
        groups = decide(*requests)
        first, second, alone, both, later = requests
        assert fates(groups) == [[first, second, both, later], [alone]]
        assert places(groups[0]) == [(A, 1), (B, 1), (B, 2), (A, 2), (B, 3)]
        assert changed(groups[0]) == {A, B}

    def test_everybody_in_a_group_gets_its_last_position(self) -> None:
        requests = [request(Do((A,))), request(Do((A, B))), request(Do(reads=(B,)))]
        (group,) = decide(*requests)
        group.settle(range(HEAD + 8, HEAD + 11))
        assert [each.outcome for each in requests] == [
            Executed({A: True}, HEAD + 10),
            Executed({A: False, B: True}, HEAD + 10),
            Executed({B: True}, HEAD + 10),
        ]


class TestFailures:
    def test_a_refusal_on_what_is_recorded_is_settled_at_once(self) -> None:
        refused = request(Do(reads=(A,), error=Conflict("No.")))
        assert decide(refused) == []
        assert isinstance(refused.outcome, Conflict)

    def test_a_refusal_on_what_was_just_decided_waits_for_it(self) -> None:
        requests = [request(Do((A,))), request(Do(reads=(A,), error=(no := Conflict("No."))))]
        (group,) = decide(*requests)
        assert [each.outcome for each in requests] == [None, None]
        group.settle(range(HEAD + 1, HEAD + 2))
        assert [each.outcome for each in requests] == [Executed({A: True}, HEAD + 1), no]

    def test_one_that_recorded_and_gave_up_voids_its_group_only(self) -> None:
        before, after, other = request(Do((A,))), request(Do((A,))), request(Do((B,)))
        for error in (Conflict("No."), ZeroDivisionError()):
            broken = request(Do((A,), error=error))
            groups = decide(before, broken, after, other)
            assert broken.outcome is error
            assert [group.void for group in groups] == [True, False]
            assert fates(groups) == [[before, after], [other]]
            assert changed(groups[0]) == {A}

    def test_a_void_group_voids_what_is_tied_to_it(self) -> None:
        groups = decide(
            request(Do((A,))), request(Do((B,), error=Conflict("No."))), request(Do((A, B)))
        )
        assert [group.void for group in groups] == [True]

    def test_an_event_that_can_not_be_written_is_its_commands_failure(self) -> None:
        broken, other = request(Do((A,), viewer="\ud800")), request(Do((B,)))
        groups = decide(broken, other)
        assert isinstance(broken.outcome, TypeError)
        assert [(group.void, changed(group)) for group in groups] == [(True, {A}), (False, {B})]
        assert fates(groups) == [[], [other]]

    def test_an_answer_that_can_not_be_written_is_its_commands_failure(self) -> None:
        def broken(_: Any) -> tuple[int, bytes]:
            raise ZeroDivisionError

        changes, reads = request(Do((A,)), key(broken)), request(Do(reads=(B,)), key(broken))
        groups = decide(changes, reads)
        assert isinstance(changes.outcome, ZeroDivisionError)
        assert isinstance(reads.outcome, ZeroDivisionError)
        assert [group.void for group in groups] == [True]

    def test_a_query_that_records_is_refused_and_leaves_nothing(self) -> None:
        asks, other = request(Ask((A,))), request(Do((B,)))
        groups = decide(asks, other)
        assert isinstance(asks.outcome, TypeError)
        assert [(group.void, places(group)) for group in groups] == [(True, []), (False, [(B, 1)])]
        assert decide(reads := request(Ask(reads=(A,)))) == []
        assert reads.outcome == Executed({A: False}, HEAD)


class TestKinds:
    def test_nobody_blocks_a_new_stream_by_asking_for_another_kind(self) -> None:
        slots = {A: Slot(None)}
        aggregates = Aggregates(slots)
        assert aggregates.get(Comment, A).version == 0
        aggregates.get(VideoLikes, A).like(A, "ann", Origin("ann", AT, "c", "c"))
        assert [type(event) for event in slots[A].collect()] == [VideoLikes.Liked]
        assert aggregates.get(VideoLikes, A).liked

    def test_a_stream_of_another_kind_does_not_exist(self) -> None:
        likes = VideoLikes.blank(A).like(A, "ann", Origin("ann", AT, "c", "c"))
        slots = {A: Slot(likes)}
        assert Aggregates(slots).get(Comment, A).version == 0
        assert slots[A].aggregate is likes

    def test_only_declared_streams_can_be_touched(self) -> None:
        with pytest.raises(KeyError):
            Aggregates({A: Slot(None)}).get(VideoLikes, B)


class TestAnswers:
    def test_an_answer_is_saved_with_its_events(self) -> None:
        (group,) = decide(request(Do((A,)), key(lambda result: (201, repr(result).encode()))))
        assert len(group.events) == 1
        (answer,) = group.answers
        assert (answer.actor, answer.key, answer.request_hash) == ("ann", "key", b"hash")
        assert (answer.status, answer.body) == (201, repr({A: True}).encode())

    def test_an_answer_without_events_is_saved_and_settled_where_the_store_put_it(self) -> None:
        reader = request(Do(reads=(A,)), key())
        (group,) = decide(reader)
        assert (len(group.events), len(group.answers)) == (0, 1)
        # What an empty save after nine recorded events gets.
        group.settle(range(HEAD + 10, HEAD + 10))
        assert reader.outcome == Executed({A: False}, HEAD + 9)

    def test_a_refusal_keeps_no_answer(self) -> None:
        refused = request(Do(reads=(A,), error=Conflict("No.")), key())
        assert decide(refused) == []


COMMANDS = st.builds(
    Do,
    toggles=st.lists(st.sampled_from([A, B, C]), max_size=2, unique=True).map(tuple),
    reads=st.sampled_from([(), (A,), (B,), (C,)]),
    error=st.sampled_from([None, None, None, Conflict("No."), ZeroDivisionError()]),
)


@for_all(st.lists(COMMANDS, max_size=12), st.lists(st.booleans(), max_size=10))
def test_whatever_fails_or_conflicts_each_accepted_command_counts_once(
    commands: list[Do], conflicts: list[bool]
) -> None:
    log: dict[UUID, list[Any]] = {A: [], B: [], C: []}
    requests = waiting = [request(command) for command in commands]
    while waiting:
        known: dict[UUID, Aggregate] = {stream: VideoLikes.blank(stream) for stream in log}
        for stream, events in log.items():
            for event in events:
                event.mutate(known[stream])
        groups = decide(*waiting, known=known)
        for group in groups:
            conflict = conflicts.pop() if conflicts else False
            if not group.void and not conflict:
                for stored in group.events:
                    event = MAPPER.to_domain_event(stored)
                    log[event.originator_id].append(event)
                group.settle(range(HEAD, HEAD + len(group.events)))
        waiting = [each for each in waiting if each.outcome is None]
    for stream, events in log.items():
        accepted = [
            command
            for command, each in zip(commands, requests, strict=True)
            if stream in command.toggles and isinstance(each.outcome, Executed)
        ]
        assert [event.originator_version for event in events] == [*range(1, len(accepted) + 1)]
    assert all(
        each.outcome is command.error
        for command, each in zip(commands, requests, strict=True)
        if command.error
    )
