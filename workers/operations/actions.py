"""What each action of an operator does: one engine for the command line and for HTTP."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

from psycopg import Connection
from psycopg.rows import TupleRow

from domain.operation import Members, Operation, OperationOutcome
from engine import checkpoints
from engine.checkpoints import CheckpointStatus
from engine.comparison import Difference
from engine.completeness import completeness
from engine.connections import connect
from engine.overview import look_at
from engine.parked_events import alike, discard, discard_all, park_and_go_on, remedy, retry
from engine.projection import Projection
from engine.replay import requests
from engine.replay.records import (
    Purpose,
    Replay,
    ReplayOptions,
    ReplayState,
    Report,
    of_operation,
    tell_nobody,
)
from engine.replay.replay import ReplayElsewhere, carry_on
from infra.errors import OperatorError
from projections.analytics.rebuild import NAME as ANALYTICS
from projections.analytics.rebuild import AnalyticsMeans, Rebuild, Stopped
from projections.feedback.rebuild import NAME as FEEDBACK
from projections.feedback.rebuild import FeedbackRebuild
from projections.like_counters import NAME as COUNTERS
from projections.like_counters import Counters, rebuild, renewing
from projections.likes import Likes
from workers.operations.failures import TaskAccess, decision_of

PATIENCE_SECONDS = 10.0
LOOK_SECONDS = 0.02
MENDED = (ANALYTICS, FEEDBACK)
"""What has no copies: it is compared and mended where it is."""
# The keys that differ there, as the audit keeps them: the first ones only.
NAMED_KEYS = 20

NOBODY = "no process runs it now; one with the role `projections` goes on with it"
STILL = "it is still at its next events"
CARRIED_ON = "a process with the role `projections`, or the command `replay`, goes on with it"

LONG = frozenset({"replay", "verify", "rollback", "completeness", "retry"})
PURPOSES = MappingProxyType(
    {"replay": Purpose.SWITCH, "verify": Purpose.VERIFY, "rollback": Purpose.ROLLBACK}
)
OUTCOMES = MappingProxyType(
    {ReplayState.CANCELLED: OperationOutcome.CANCELLED, ReplayState.FAILED: OperationOutcome.FAILED}
)


class Ended(NamedTuple):
    """How an operation ended, and what came of it."""

    outcome: OperationOutcome
    result: Members


class OperationRefused(OperatorError):
    """It is not possible, and nothing was done; the text says why."""


@dataclass(frozen=True)
class Tools:
    """What actions are carried out with; `models` are the live projections by name.

    `report` hears how far a replay is. `counters` are those in Redis, where one is configured.
    `agrees` is asked whether what differs in the `analytics` is to be mended. `compared` hears
    what a comparison found, with the values, which are kept nowhere. `tasks` lead to
    those that run in the background.
    """

    database_url: str
    models: Mapping[str, Projection]
    report: Report
    stopping: Event
    counters: Counters | None = None
    analytics: AnalyticsMeans | None = None
    agrees: Callable[[Difference], bool] = lambda difference: False
    compared: Callable[[Difference], None] = tell_nobody
    tasks: TaskAccess | None = None

    @property
    def likes(self) -> Likes | None:
        """What the counters count."""
        found = self.models.get(Likes.name)
        return found if isinstance(found, Likes) else None

    def are_for(self, replay: Replay) -> bool:
        """Whether this program makes rows of the replay's version."""
        projection = self.models.get(replay.name)
        return projection is not None and projection.version == replay.version


@dataclass(frozen=True)
class OperationContext:
    """An operation at work: with what it is done, and on which projection."""

    tools: Tools
    conn: Connection[TupleRow]
    operation: Operation
    projection: Projection

    @property
    def name(self) -> str:
        return self.projection.name

    @property
    def schema(self) -> str:
        return self.projection.schema

    def number(self, parameter: str) -> int | None:
        """Return a parameter that is a whole number, where it is given."""
        value = self.operation.parameters.get(parameter)
        return value if isinstance(value, int) else None

    def flag(self, parameter: str) -> bool:
        """Return whether a parameter is given and true."""
        return self.operation.parameters.get(parameter) is True

    @property
    def why(self) -> dict[str, str]:
        """The reason, empty where none is given, and who asks."""
        reason = self.operation.parameters.get("reason")
        text = reason if isinstance(reason, str) else ""
        return {"reason": text, "actor": self.operation.requested_by}


Action = Callable[[OperationContext], Members | Ended | None]
"""Returns the result of what is done, or how it ended otherwise; None when it rests."""


def carry_out(conn: Connection[TupleRow], tools: Tools, operation: Operation) -> Ended | None:
    """Do what is asked for; None when it rests: a replay that is paused, asks, or was stopped.

    What is not possible ends as refused. Raise whatever else goes wrong.
    """
    if tools.tasks is not None and (decide := decision_of(operation)) is not None:
        try:
            return Ended(OperationOutcome.DONE, decide(conn, tools.tasks, operation))
        except OperatorError as error:
            return _refused(str(error))
    if operation.action not in ACTIONS:
        return Ended(OperationOutcome.FAILED, {"error": "Who began it ended before it was done."})
    if operation.subject == COUNTERS and operation.action == "replay":
        return _rebuild_counters(conn, tools)
    try:
        if operation.subject in MENDED:
            return _rebuild(conn, tools, operation)
        result = ACTIONS[operation.action](_context(conn, tools, operation))
    except OperatorError as error:
        return _refused(str(error))
    return Ended(OperationOutcome.DONE, result) if isinstance(result, dict) else result


def prepare(conn: Connection[TupleRow], tools: Tools, operation: Operation) -> Ended | None:
    """Begin a replay, so that what is asked for next finds it begun; return how it is refused."""
    # What is mended where it is has no copies that are begun beforehand.
    if operation.action in PURPOSES and operation.subject not in (COUNTERS, *MENDED):
        try:
            _begin(_context(conn, tools, operation))
        except OperatorError as error:
            return _refused(str(error))
    return None


def purpose_of(action: str, to: object) -> Purpose:
    """Return the purpose of the replay that an action begins; `to` is the position of a look."""
    purpose = PURPOSES[action]
    return Purpose.LOOK if purpose is Purpose.SWITCH and to is not None else purpose


def action_of(replay: Replay) -> str:
    """Return what an operator would have asked for to begin the replay."""
    asked = (action for action, purpose in PURPOSES.items() if purpose is replay.purpose)
    return next(asked, "replay")


def _context(conn: Connection[TupleRow], tools: Tools, operation: Operation) -> OperationContext:
    projection = tools.models.get(operation.subject)
    if projection is None:
        raise OperationRefused(f"There is no projection {operation.subject}.")
    return OperationContext(tools, conn, operation, projection)


def _refused(reason: str) -> Ended:
    return Ended(OperationOutcome.REFUSED, {"reason": reason})


def _begin(act: OperationContext) -> Replay:
    """Return the operation's replay, begun now unless it was before; raise ReplayError."""
    found = of_operation(act.conn, act.operation.id)
    if found is not None:
        return found
    to, workers = act.number("to"), act.number("workers") or 1
    purpose = purpose_of(act.operation.action, to)
    return requests.begin(
        act.conn,
        act.projection,
        ReplayOptions(purpose, to=to, workers=workers, confirmed=act.flag("yes")),
        requested_by=act.operation.requested_by,
        operation_id=act.operation.id,
    )


def _replay(act: OperationContext) -> Ended | None:
    """Begin the operation's replay, or go on with it; None when it rests. Raise ReplayError."""
    found, tools = _begin(act), act.tools
    if not found.finished and tools.are_for(found):
        counted = None
        if tools.counters is not None and tools.likes is not None:
            counted = renewing(tools.database_url, tools.likes, tools.counters)
        try:
            found = carry_on(
                tools.database_url,
                found.id,
                tools.models,
                report=tools.report,
                stopping=tools.stopping,
                after_switch=counted,
                compared=tools.compared,
            )
        except ReplayElsewhere:
            return None
    return _end_of(found) if found.finished else None


def _end_of(replay: Replay) -> Ended:
    """Return what is recorded of a replay's end, without the keys that differ: they name people."""
    result: Members = {
        "replay": replay.id,
        "state": str(replay.state),
        "schema": replay.schema,
        "position": replay.position,
        "events": replay.events_applied,
    }
    if replay.error is not None:
        result["error"] = replay.error
    if replay.result is not None:
        told = ("differs", "total", "tables")
        result["difference"] = {name: replay.result[name] for name in told}
    return Ended(OUTCOMES.get(replay.state, OperationOutcome.DONE), result)


def _progress(found: Replay) -> Members:
    return {"replay": found.id, "position": found.position}


def _pause(act: OperationContext) -> Members:
    if act.flag("replay"):
        return _progress(requests.pause(act.conn, act.name))
    if act.name == "operations":
        raise OperationRefused("Without it, nobody would see the request to resume it.")
    return {"changed": checkpoints.pause(act.conn, act.schema)}


def _resume(act: OperationContext) -> Members | Ended:
    if act.flag("replay"):
        return {**_progress(requests.resume(act.conn, act.name)), "note": CARRIED_ON}
    seen = checkpoints.look(act.conn, act.schema)
    if seen is None or not checkpoints.resume(act.conn, act.schema):
        return {"changed": False}
    again = _restarted(act, seen.position)
    outcome = OperationOutcome.FAILED if "error" in again else OperationOutcome.DONE
    return Ended(outcome, {"changed": True, **again})


def _restarted(act: OperationContext, before: int) -> Members:
    """Wait until the projection, let go on at `before`, moves or stops again; ten seconds at most.

    Return where and why it has stopped again, or why nothing is known; empty when it moves.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while (seen := look_at(act.conn, act.schema)) is not None:
        if seen.status == CheckpointStatus.STOPPED:
            at, advice = seen.error_position, remedy(act.name)
            told = f"{act.name} has stopped again, at position {at}: {seen.error}; {advice}"
            return {"stoppedAt": at, "error": told}
        moves = seen.position > before or seen.position >= seen.head
        if moves or seen.status == CheckpointStatus.PAUSED:
            break
        if not seen.active:
            return {"note": NOBODY}
        if time.monotonic() > until or act.tools.stopping.wait(LOOK_SECONDS):
            return {"note": STILL}
    return {}


def _drop_old(act: OperationContext) -> Members:
    requests.drop_old(act.conn, act.name)
    return {}


def _drop_look(act: OperationContext) -> Members:
    position = act.number("position")
    if position is None:
        raise OperationRefused("Say which look: its position.")
    requests.drop_look(act.conn, requests.LOOK.format(act.name, position))
    return {"position": position}


def _park(act: OperationContext) -> Members:
    found = park_and_go_on(act.conn, act.projection, **act.why, all_like=act.number("allLike"))
    return {"position": found.position, **_restarted(act, found.position)}


def _retry(act: OperationContext) -> Members:
    force = act.flag("force")
    results = retry(act.conn, act.projection, _chosen(act), force=force)
    counted = Counter(str(result.outcome) for result in results)
    events = [{"position": r.position, "outcome": str(r.outcome)} for r in results]
    return {**counted, "events": events}


def _chosen(act: OperationContext) -> list[int] | None:
    """Return the parked events named by position or as all like one; None when none is named."""
    position, like = act.number("position"), act.number("allLike")
    if like is not None:
        return alike(act.conn, act.schema, like)
    return None if position is None else [position]


def _discard(act: OperationContext) -> Members:
    chosen = _chosen(act)
    if chosen is None:
        raise OperationRefused("Say which event: its position.")
    if act.number("allLike") is None:
        discard(act.conn, act.schema, chosen[0], **act.why)
        return {"position": chosen[0]}
    found = discard_all(act.conn, act.schema, chosen, **act.why)
    return {"discarded": len(found), "positions": found}


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "replay": _replay,
        "verify": _replay,
        "rollback": _replay,
        "completeness": lambda act: completeness(act.conn, act.projection).as_dict(),
        "pause": _pause,
        "resume": _resume,
        "cancel": lambda act: _progress(requests.cancel(act.conn, act.name)),
        "confirm": lambda act: _progress(requests.confirm(act.conn, act.name)),
        "drop-old": _drop_old,
        "drop-look": _drop_look,
        "park": _park,
        "retry": _retry,
        "discard": _discard,
    }
)


def _rebuild_counters(conn: Connection[TupleRow], tools: Tools) -> Ended:
    if tools.counters is None or tools.likes is None:
        return _refused("There are no counters: REDIS_URL is not set.")
    done = rebuild(conn, tools.likes, tools.counters, tools.report)
    return Ended(OperationOutcome.DONE, {"counters": done})


def _rebuild(conn: Connection[TupleRow], tools: Tools, operation: Operation) -> Ended | None:
    """Verify or replay what is mended where it is; None where this process ends before it is over.

    A replay that differs and was not agreed to is cancelled, and changes nothing.
    """
    name, action, means = operation.subject, operation.action, tools.analytics
    if means is None or action not in ("verify", "replay"):
        return _refused(f"The {name} can be verified and replayed; there is no {action}.")
    if "to" in operation.parameters:
        return _refused(f"The {name} can be mended in place: there is no look at the past.")
    try:
        with closing(connect(means.url, f"{name} rebuild")) as own:
            if name == FEEDBACK:
                again = FeedbackRebuild(conn, own, datetime.now(UTC) - means.retention)
                return _mend(again, tools, operation)
            work = Rebuild(conn, own, means, report=tools.report, stopping=tools.stopping)
            return _mend(work, tools, operation)
    except Stopped:
        return None


class Compared(Protocol):
    """What a comparison came to."""

    @property
    def position(self) -> int: ...

    @property
    def events(self) -> int: ...

    @property
    def difference(self) -> Difference: ...


F = TypeVar("F", bound=Compared)


class InPlace(Protocol[F]):
    """What compares what is stored with where it came from, and mends it."""

    def compare(self) -> F: ...

    def mend(self, found: F) -> int: ...


def _mend(work: InPlace[F], tools: Tools, operation: Operation) -> Ended:
    found = work.compare()
    tools.compared(found.difference)
    told = found.difference.as_dict()
    result: Members = {
        "name": operation.subject,
        "position": found.position,
        "events": found.events,
        "difference": {**told, "keys": told["keys"][:NAMED_KEYS]},
    }
    if operation.action == "verify" or not found.difference.differs:
        return Ended(OperationOutcome.DONE, {"state": "verified", **result})
    if operation.parameters.get("yes") is not True and not tools.agrees(found.difference):
        reason = "What is stored differs, and nothing was changed; `yes` mends it."
        return Ended(OperationOutcome.CANCELLED, {"state": "cancelled", "reason": reason, **result})
    left = work.mend(found)
    if left:
        error = f"{left} rows differ still, or again; verify tells which."
        return Ended(OperationOutcome.FAILED, {"state": "failed", "error": error, **result})
    return Ended(OperationOutcome.DONE, {"state": "mended", **result})
