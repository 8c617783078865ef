"""What an operation admits: one request, one end, and nothing that can't be kept."""

from __future__ import annotations

from typing import Any

import pytest

from domain.errors import Conflict, Invalid, NotFound
from domain.operation import (
    MAX_JSON_CHARACTERS,
    Members,
    Operation,
    OperationOutcome,
    cut,
)
from tests.real_inputs import RealInput, each
from tests.unit.given_when_then import by, fact, given

ANN, HOST = by("ann"), by("projections")
WHAT: dict[str, Any] = {"action": "replay", "subject": "likes"}
PARAMETERS: Members = {"workers": 2, "reason": "a count is doubted"}

REQUESTED = fact(
    Operation.Requested, ANN, **WHAT, parameters={"workers": 2}, reason="a count is doubted"
)
DONE = fact(Operation.Finished, HOST, **WHAT, outcome="done", result={"position": 7})


def request(**changes: Any) -> Any:
    asked = {**WHAT, "parameters": PARAMETERS, **changes}
    return lambda operation: operation.request(**asked, origin=ANN)


def finish(outcome: OperationOutcome = OperationOutcome.DONE, **result: Any) -> Any:
    return lambda operation: operation.finish(outcome, result, HOST)


class TestRequest:
    def test_who_wants_what(self) -> None:
        operation = given(Operation).when(request()).then(REQUESTED)
        assert (operation.action, operation.subject) == ("replay", "likes")
        assert (operation.parameters, operation.requested_by) == (PARAMETERS, "ann")
        assert operation.outcome is None

    @pytest.mark.parametrize("history", [(REQUESTED,), (REQUESTED, DONE)])
    def test_the_same_again_records_nothing(self, history: Any) -> None:
        given(Operation, *history).when(request()).then()

    @pytest.mark.parametrize(
        "changes", [{"action": "pause"}, {"subject": "comments"}, {"parameters": {}}]
    )
    def test_another_one_under_the_same_id_is_refused(self, changes: Any) -> None:
        given(Operation, REQUESTED).when(request(**changes)).refused(Conflict, "another one")

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"action": ""}, "action"),
            ({"action": "Replay it"}, "action"),
            ({"subject": ""}, "subject"),
            ({"subject": "a\x00b"}, "subject"),
            ({"subject": "s" * 201}, "subject"),
            ({"parameters": {"reason": "r" * MAX_JSON_CHARACTERS}}, "parameters"),
            ({"parameters": {"reason": "a\x00b"}}, "parameters"),
            ({"parameters": {"reason": "\ud800"}}, "parameters"),
        ],
    )
    def test_what_cannot_be_kept_is_refused(self, changes: Any, field: str) -> None:
        given(Operation).when(request(**changes)).refused(Invalid, f"`{field}`", field=field)

    @each("texts", "nothing")
    def test_a_reason_has_to_say_something(self, real: RealInput) -> None:
        unsaid = given(Operation).when(request(parameters={"reason": real.text}))
        unsaid.refused(Invalid, "text that can be seen", field="reason")


class TestFinish:
    def test_what_came_of_it(self) -> None:
        operation = given(Operation, REQUESTED).when(finish(position=7)).then(DONE)
        assert (operation.outcome, operation.result) == (OperationOutcome.DONE, {"position": 7})

    @pytest.mark.parametrize("outcome", list(OperationOutcome))
    def test_the_first_end_stands(self, outcome: OperationOutcome) -> None:
        operation = given(Operation, REQUESTED, DONE).when(finish(outcome, error="late")).then()
        assert operation.outcome is OperationOutcome.DONE

    def test_nothing_ends_that_was_not_requested(self) -> None:
        given(Operation).when(finish()).refused(NotFound, "no such operation")

    def test_a_large_result_is_cut(self) -> None:
        keys = [f"key-{number}" for number in range(MAX_JSON_CHARACTERS)]
        ended = fact(Operation.Finished, HOST, **WHAT, outcome="done", result=cut({"keys": keys}))
        operation = given(Operation, REQUESTED).when(finish(keys=keys)).then(ended)
        assert operation.result == {"cut": True}


def test_a_cut_result_keeps_its_first_members() -> None:
    assert cut({"a": 1, "b": "x" * MAX_JSON_CHARACTERS, "c": 3}) == {"a": 1, "cut": True}
    assert cut({"a": 1, "error": "\x00"}) == {"a": 1, "cut": True}
    assert cut({"a": 1, "c": 3}) == {"a": 1, "c": 3}
