"""Operators' actions that build, or bring up, another copy: replay, verify and rollback."""

from __future__ import annotations

from contextlib import closing
from types import MappingProxyType
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow, tuple_row

from domain.operation import Members, Operation, OperationOutcome
from engine.comparison import Difference
from engine.connections import connect
from engine.replay.records import Purpose, Replay, ReplayOptions, ReplayState, find
from engine.replay.replay import ReplayElsewhere, carry_on
from engine.replay.requests import begin
from infra.errors import OperatorError
from projections.analytics.rebuild import NAME, Found, Rebuild, Stopped
from workers.operations.action import Ended, OperationContext, Tools

BY_OPERATION = "SELECT id FROM projections.replays WHERE operation_id = %s"
UNDER_WAY = "SELECT id FROM projections.replays WHERE finished_at IS NULL ORDER BY id"

PURPOSES = MappingProxyType(
    {"replay": Purpose.SWITCH, "verify": Purpose.VERIFY, "rollback": Purpose.ROLLBACK}
)
OUTCOMES = MappingProxyType(
    {ReplayState.CANCELLED: OperationOutcome.CANCELLED, ReplayState.FAILED: OperationOutcome.FAILED}
)


def replay_of(conn: Connection[TupleRow], operation_id: UUID) -> Replay | None:
    """The replay that an operation has begun."""
    row = conn.execute(BY_OPERATION, (operation_id,)).fetchone()
    return find(conn, row[0]) if row else None


def action_of(replay: Replay) -> str:
    """What an operator would have asked for to begin it."""
    asked = {purpose: action for action, purpose in PURPOSES.items()}
    return asked.get(replay.purpose, "replay")


def under_way(conn: Connection[Any]) -> list[Replay]:
    """Every replay that has not ended, whether it works, rests or asks; oldest first."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        found = cursor.execute(UNDER_WAY).fetchall()
    return [find(conn, replay_id) for (replay_id,) in found]


def rests(conn: Connection[TupleRow], tools: Tools, operation: Operation) -> bool:
    """Whether there is nothing to do here for now.

    Its replay waits for an operator, or makes rows of another version than this program's.
    """
    replay = replay_of(conn, operation.id)
    if replay is None or replay.finished:
        return False
    return replay.rests or not _is_ours(tools, replay)


def begun(act: OperationContext) -> Replay:
    """The operation's replay, begun now unless it was before; raises ReplayError."""
    found = replay_of(act.conn, act.operation.id)
    if found is not None:
        return found
    return begin(
        act.conn,
        act.projection,
        _options(act),
        requested_by=act.operation.requested_by,
        operation_id=act.operation.id,
    )


def replay(act: OperationContext) -> Ended | None:
    """Begin the operation's replay, or go on with it; None when it rests. Raises ReplayError."""
    found = begun(act)
    if not found.finished and _is_ours(act.tools, found):
        try:
            found = _carry_on(act.tools, found)
        except ReplayElsewhere:
            return None
    return ended(found) if found.finished else None


def ended(replay: Replay) -> Ended:
    """What is recorded of a replay's end. The keys that differ are not: they name people."""
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


def _options(act: OperationContext) -> ReplayOptions:
    purpose, to = PURPOSES[act.operation.action], act.number("to")
    if purpose is Purpose.SWITCH and to is not None:
        purpose = Purpose.LOOK
    workers = act.number("workers") or 1
    return ReplayOptions(purpose, to=to, workers=workers, confirmed=act.flag("yes"))


def _is_ours(tools: Tools, replay: Replay) -> bool:
    projection = tools.models.get(replay.name)
    return projection is not None and projection.version == replay.version


def _carry_on(tools: Tools, replay: Replay) -> Replay:
    return carry_on(
        tools.database_url,
        replay.id,
        tools.models,
        report=tools.report,
        stopping=tools.stopping,
        after_switch=tools.after_switch,
        compared=tools.compared,
    )


ACTIONS = frozenset({"verify", "replay"})
NAMED_KEYS = 20


def rebuild_analytics(
    conn: Connection[TupleRow], tools: Tools, operation: Operation
) -> Ended | None:
    """Verify or replay the analytics; None where this process is to end before it is over.

    A replay that differs and was not agreed to is cancelled, and changes nothing.
    """
    if tools.analytics is None or operation.action not in ACTIONS:
        reason = f"The analytics can be verified and replayed; there is no {operation.action}."
        return Ended(OperationOutcome.REFUSED, {"reason": reason})
    if "to" in operation.parameters:
        reason = "The analytics are mended where they are: there is no look at their past."
        return Ended(OperationOutcome.REFUSED, {"reason": reason})
    try:
        with closing(connect(tools.analytics.url, "analytics rebuild")) as own:
            rebuild = Rebuild(
                conn,
                own,
                tools.analytics,
                report=tools.report,
                stopping=tools.stopping,
            )
            return _carry_out(rebuild, tools, operation)
    except Stopped:
        return None
    except OperatorError as error:
        return Ended(OperationOutcome.REFUSED, {"reason": str(error)})


def _carry_out(rebuild: Rebuild, tools: Tools, operation: Operation) -> Ended:
    found = rebuild.compare()
    tools.compared(found.difference)
    result = _as_result(found)
    if operation.action == "verify" or not found.difference.differs:
        return Ended(OperationOutcome.DONE, {"state": "verified", **result})
    if operation.parameters.get("yes") is not True and not tools.agrees(found.difference):
        reason = "What is stored differs, and nothing was changed; `yes` mends it."
        return Ended(OperationOutcome.CANCELLED, {"state": "cancelled", "reason": reason, **result})
    left = rebuild.mend(found)
    if left:
        error = f"{left} rows differ still, or again; verify tells which."
        return Ended(OperationOutcome.FAILED, {"state": "failed", "error": error, **result})
    return Ended(OperationOutcome.DONE, {"state": "mended", **result})


def _as_result(found: Found) -> Members:
    return {
        "name": NAME,
        "position": found.position,
        "events": found.events,
        "difference": _short(found.difference),
    }


def _short(difference: Difference) -> Members:
    """As it is kept in the audit: the first keys only."""
    told = difference.as_dict()
    return {**told, "keys": told["keys"][:NAMED_KEYS]}
