"""What operators do to a running system, from the request to what came of it."""

from __future__ import annotations

import json
import re
from dataclasses import field
from enum import StrEnum
from typing import Annotated

from domain.errors import Conflict, Invalid, NotFound
from domain.model import Aggregate, Origin, Personal
from domain.text import shows

NAME = re.compile(r"[a-z][a-z0-9-]{0,49}")
SURROGATE = re.compile(r"[\ud800-\udfff]")
MAX_SUBJECT_LENGTH = 200
MAX_JSON_CHARACTERS = 8_000
REASON = "reason"
"""What an operator wrote, of all that may be asked for: it is forgotten with them."""

# What is decided about messages and tasks that failed, and the subjects of these operations.
RETRY_MESSAGES, DISCARD_MESSAGES = "redrive-dead", "discard-dead"
RETRY_TASKS, DISCARD_TASKS = "redrive-tasks", "discard-tasks"
DEAD_MESSAGES, DEAD_TASKS = "dead messages", "dead tasks"
# The subject is the comment.
RETRY_TRANSLATION = "retry-translation"

Members = dict[str, object]
"""A JSON object."""


class OperationOutcome(StrEnum):
    """How an operation ended: `failed` is a fault of ours, `refused` was never possible."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"


class Operation(Aggregate):
    """One action of an operator on one subject, such as the replay of a projection.

    It is requested once and finished once; whoever else wants to finish it records nothing.
    """

    TOPIC = "operation"

    class Event(Aggregate.Event):
        action: str
        subject: str

    class Requested(Event):
        """`reason` is what the operator wrote; older events have it among the parameters."""

        TOPIC = "operation.requested.v1"
        parameters: dict[str, object]
        reason: Annotated[str | None, Personal("actor")] = field(default=None, kw_only=True)

        @property
        def asked(self) -> Members:
            """All that was asked for, with the reason where it is still known."""
            return (
                self.parameters if self.reason is None else {**self.parameters, REASON: self.reason}
            )

        def apply(self, operation: Operation) -> None:
            operation.action = self.action
            operation.subject = self.subject
            operation.parameters = self.asked
            operation.requested_by = self.actor
            operation.correlation_id = self.correlation_id

    class Finished(Event):
        """`outcome` is one of OperationOutcome."""

        TOPIC = "operation.finished.v1"
        outcome: str
        result: dict[str, object]

        def apply(self, operation: Operation) -> None:
            operation.outcome = OperationOutcome(self.outcome)
            operation.result = self.result

    def __init__(self) -> None:
        self.action = ""
        self.subject = ""
        self.parameters: Members = {}
        self.requested_by = ""
        self.correlation_id = ""
        self.outcome: OperationOutcome | None = None
        self.result: Members = {}

    def request(self, action: str, subject: str, parameters: Members, origin: Origin) -> None:
        """Ask for an action; the same again records nothing.

        Raise Conflict for another request under the same id, and Invalid for one that is too
        large to be kept, or whose `reason` says nothing.
        """
        if self.version > 0:
            if (self.action, self.subject, self.parameters) != (action, subject, parameters):
                raise Conflict("This operation is another one.")
            return
        if not NAME.fullmatch(action):
            raise Invalid("`action` is a short word in lower case.", field="action")
        if not 1 <= len(subject) <= MAX_SUBJECT_LENGTH or not subject.isprintable():
            raise Invalid(
                f"`subject` has 1 to {MAX_SUBJECT_LENGTH} printable characters.", field="subject"
            )
        if not _is_kept(parameters):
            raise Invalid(
                f"`parameters` have at most {MAX_JSON_CHARACTERS} storable characters of JSON.",
                field="parameters",
            )
        reason = parameters.get(REASON)
        if reason is not None and not shows(str(reason)):
            raise Invalid("`reason` needs some text that can be seen.", field=REASON)
        self.record(
            self.Requested,
            origin,
            action=action,
            subject=subject,
            parameters={name: value for name, value in parameters.items() if name != REASON},
            reason=None if reason is None else str(reason),
        )

    def finish(self, outcome: OperationOutcome, result: Members, origin: Origin) -> None:
        """Tell how it ended; what ended already records nothing. Raise NotFound before a request.

        A result that is too large to be kept is cut to its first members, and says so.
        """
        if self.version == 0:
            raise NotFound("There is no such operation.")
        if self.outcome is not None:
            return
        self.record(
            self.Finished,
            origin,
            action=self.action,
            subject=self.subject,
            outcome=str(outcome),
            result=cut(result),
        )


def cut(members: Members) -> Members:
    """Return the members that can be kept, in their order; `cut` is added when some had to go."""
    kept: Members = {}
    for name, value in members.items():
        if not _is_kept({**kept, name: value, "cut": True}):
            return {**kept, "cut": True}
        kept[name] = value
    return kept


def _is_kept(members: Members) -> bool:
    text = json.dumps(members, ensure_ascii=False)
    # PostgreSQL's jsonb has no NUL, and UTF-8 no half of a surrogate pair.
    storable = "\\u0000" not in text and not SURROGATE.search(text)
    return len(text) <= MAX_JSON_CHARACTERS and storable
