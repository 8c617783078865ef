"""What each action of an operator does: one engine for the command line and for HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

from psycopg import Connection
from psycopg.rows import TupleRow

from domain.operation import Members, Operation, OperationOutcome
from engine import checkpoints
from infra.codec import MAPPER
from infra.errors import OperatorError
from projections.analytics.rebuilding import NAME as ANALYTICS
from projections.operating.acting import Ended, OperationContext, OperationRefused, Tools
from projections.operating.analytics_actions import rebuild_analytics
from projections.operating.replay_actions import PURPOSES, begun, replay, replay_of
from projections.operating.restart import await_restart
from projections.parking.deciding import discard, discard_all, park_and_go_on, remedy
from projections.parking.parked import alike
from projections.parking.retrying import retry
from projections.proving.completeness import completeness
from projections.replaying import asking as replay_operations
from projections.replaying.counter_rebuild import NAME as COUNTERS
from projections.replaying.counter_rebuild import rebuild
from projections.replaying.rows import Replay

Action = Callable[[OperationContext], Ended | None]

# What is no projection, and so has no copies that are begun beforehand.
OTHERS = frozenset({COUNTERS, ANALYTICS})

CARRIED_ON = "a process with the role `projections`, or the command `replay`, goes on with it"
LONG = frozenset({"replay", "verify", "rollback", "completeness", "retry"})


def carry_out(conn: Connection[TupleRow], tools: Tools, operation: Operation) -> Ended | None:
    """Do what is asked for; None when it rests: a replay that is paused, asks, or was stopped.

    What is not possible is an end of its own. Raises whatever else goes wrong.
    """
    if operation.action not in ACTIONS:
        return Ended(OperationOutcome.FAILED, {"error": "Who began it ended before it was done."})
    if operation.subject == COUNTERS and operation.action == "replay":
        return _rebuild_counters(conn, tools)
    if operation.subject == ANALYTICS:
        return rebuild_analytics(conn, tools, operation)
    return _act(ACTIONS[operation.action], conn, tools, operation)


def prepare(conn: Connection[TupleRow], tools: Tools, operation: Operation) -> Ended | None:
    """Begin what takes long, so that what is asked for next finds it begun; None if it could be."""
    if operation.action not in PURPOSES or operation.subject in OTHERS:
        return None
    return _act(_begin, conn, tools, operation)


def _act(
    action: Action, conn: Connection[TupleRow], tools: Tools, operation: Operation
) -> Ended | None:
    try:
        projection = tools.models.get(operation.subject)
        if projection is None:
            raise OperationRefused(f"There is no projection {operation.subject}.")
        return action(OperationContext(tools, conn, operation, projection))
    except OperatorError as error:
        return Ended(OperationOutcome.REFUSED, {"reason": str(error)})


def _rebuild_counters(conn: Connection[TupleRow], tools: Tools) -> Ended:
    if tools.counters is None or tools.likes is None:
        return Ended(
            OperationOutcome.REFUSED, {"reason": "There are no counters: REDIS_URL is not set."}
        )
    done = rebuild(conn, tools.likes, tools.counters, tools.report)
    return Ended(OperationOutcome.DONE, {"counters": done})


def is_long(conn: Connection[TupleRow], operation: Operation) -> bool:
    """Whether it may take longer than a moment; not so when only its end has to be told."""
    found = replay_of(conn, operation.id)
    return operation.action in LONG and (found is None or not found.finished)


def _begin(act: OperationContext) -> None:
    begun(act)


def _pause(act: OperationContext) -> Ended:
    if act.flag("replay"):
        return _of(replay_operations.pause(act.conn, act.name))
    if act.name == "operations":
        raise OperationRefused("Without it, nobody would see the request to resume it.")
    return _changed(checkpoints.pause(act.conn, act.projection.schema))


def _resume(act: OperationContext) -> Ended:
    if act.flag("replay"):
        told = _of(replay_operations.resume(act.conn, act.name)).result
        return Ended(OperationOutcome.DONE, {**told, "note": CARRIED_ON})
    seen = checkpoints.look(act.conn, act.projection.schema)
    if seen is None or not checkpoints.resume(act.conn, act.projection.schema):
        return _changed(False)
    again = _since(act, seen.position)
    outcome = OperationOutcome.FAILED if "error" in again else OperationOutcome.DONE
    return Ended(outcome, {"changed": True, **again})


def _since(act: OperationContext, before: int) -> Members:
    """What there is to say of a projection that was let go on: that it stopped again, and why."""
    name = act.name
    seen, doubt = await_restart(act.conn, act.projection.schema, before, act.tools.stopping)
    if seen is not None and seen.stopped:
        at = seen.error_position
        told = f"{name} has stopped again, at position {at}: {seen.error}; {remedy(name)}"
        return {"stoppedAt": at, "error": told}
    return {} if doubt is None else {"note": doubt}


def _cancel(act: OperationContext) -> Ended:
    return _of(replay_operations.cancel(act.conn, act.name))


def _confirm(act: OperationContext) -> Ended:
    return _of(replay_operations.confirm(act.conn, act.name))


def _of(found: Replay) -> Ended:
    return Ended(OperationOutcome.DONE, {"replay": found.id, "position": found.position})


def _changed(changed: bool) -> Ended:
    """Whether it was otherwise before; asking twice does no harm."""
    return Ended(OperationOutcome.DONE, {"changed": changed})


def _drop_old(act: OperationContext) -> Ended:
    replay_operations.drop_old(act.conn, act.name)
    return Ended(OperationOutcome.DONE, {})


def _drop_look(act: OperationContext) -> Ended:
    position = act.number("position")
    if position is None:
        raise OperationRefused("Say which look: its position.")
    schema = f"{replay_operations.LOOK.format(act.name)}{position}"
    replay_operations.drop_look(act.conn, schema)
    return Ended(OperationOutcome.DONE, {"position": position})


def _completeness(act: OperationContext) -> Ended:
    return Ended(OperationOutcome.DONE, completeness(act.conn, act.projection).as_dict())


def _park(act: OperationContext) -> Ended:
    reason, actor = act.text("reason"), act.operation.requested_by
    found = park_and_go_on(
        act.conn, act.projection, reason=reason, actor=actor, all_like=act.number("allLike")
    )
    return Ended(OperationOutcome.DONE, {"position": found.position, **_since(act, found.position)})


def _retry(act: OperationContext) -> Ended:
    force = act.flag("force")
    results = retry(act.conn, act.projection, _chosen(act), mapper=MAPPER, force=force)
    counted = Counter(str(result.outcome) for result in results)
    events = [{"position": r.position, "outcome": str(r.outcome)} for r in results]
    return Ended(OperationOutcome.DONE, {**counted, "events": events})


def _chosen(act: OperationContext) -> list[int] | None:
    """The parked events that are named by position or as all like one; None when none is named."""
    position, like = act.number("position"), act.number("allLike")
    if like is not None:
        return alike(act.conn, act.projection.schema, like)
    return None if position is None else [position]


def _discard(act: OperationContext) -> Ended:
    chosen, schema = _chosen(act), act.projection.schema
    why: dict[str, str] = {"reason": act.text("reason"), "actor": act.operation.requested_by}
    if chosen is None:
        raise OperationRefused("Say which event: its position.")
    if act.number("allLike") is None:
        discard(act.conn, schema, chosen[0], **why)
        return Ended(OperationOutcome.DONE, {"position": chosen[0]})
    found = discard_all(act.conn, schema, chosen, **why)
    return Ended(OperationOutcome.DONE, {"discarded": len(found), "positions": found})


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "replay": replay,
        "verify": replay,
        "rollback": replay,
        "completeness": _completeness,
        "pause": _pause,
        "resume": _resume,
        "cancel": _cancel,
        "confirm": _confirm,
        "drop-old": _drop_old,
        "drop-look": _drop_look,
        "park": _park,
        "retry": _retry,
        "discard": _discard,
    }
)
