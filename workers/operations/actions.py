"""What each action of an operator does: one engine for the command line and for HTTP."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from threading import Event
from types import MappingProxyType
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from domain.operation import Members, Operation, OperationOutcome
from engine import checkpoints
from engine.checkpoints import CheckpointStatus
from engine.completeness import completeness
from engine.event_store import EVENTS
from engine.parked_events import alike, discard, discard_all, park_and_go_on, remedy, retry
from engine.replay import requests as replay_operations
from engine.replay.records import Replay
from infra.advisory_locks import copy_lock
from infra.errors import OperatorError
from projections.analytics.rebuild import NAME as ANALYTICS
from projections.like_counters import NAME as COUNTERS
from projections.like_counters import rebuild
from workers.operations.action import Ended, OperationContext, OperationRefused, Tools
from workers.operations.replays import PURPOSES, begun, rebuild_analytics, replay, replay_of

PATIENCE_SECONDS = 10.0
LOOK_SECONDS = 0.02
NOBODY = "no process runs it now; one with the role `projections` goes on with it"
STILL = "it is still at its next events"

LOOK = f"""
SELECT position, status, error, error_position,
       (SELECT coalesce(max(notification_id), 0) FROM {EVENTS}) AS head,
       EXISTS (SELECT FROM pg_locks
               WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s
                     AND database = (SELECT oid FROM pg_database
                                     WHERE datname = current_database())) AS active
FROM backlot_checkpoints WHERE kind = 'projection' AND subscription = %s
""".encode()


class ObservedCopy(NamedTuple):
    """A copy as it stands, and whether any process runs it."""

    position: int
    status: str
    error: str | None
    error_position: int | None
    head: int
    active: bool

    @property
    def stopped(self) -> bool:
        """Whether it stands in front of an event that it can't apply."""
        return self.status == CheckpointStatus.STOPPED

    def has_gone_on(self, before: int) -> bool:
        """Whether it has applied something since it stood there, or has nothing to apply."""
        return self.position > before or self.position >= self.head


def await_restart(
    conn: Connection[TupleRow], schema: str, before: int, stopping: Event
) -> tuple[ObservedCopy | None, str | None]:
    """Wait until a copy that was let go on at `before` moves or stops again; ten seconds at most.

    Returns what was seen last (None without such a copy), and why no more can be said of it.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while (seen := _look(conn, schema)) is not None:
        if seen.stopped or seen.has_gone_on(before) or seen.status == CheckpointStatus.PAUSED:
            return seen, None
        if not seen.active:
            return seen, NOBODY
        if time.monotonic() > until or stopping.wait(LOOK_SECONDS):
            return seen, STILL
    return None, None


def _look(conn: Connection[TupleRow], schema: str) -> ObservedCopy | None:
    with conn.cursor(row_factory=class_row(ObservedCopy)) as cursor:
        class_id, key = copy_lock(schema)
        return cursor.execute(LOOK, (int(class_id), key, schema)).fetchone()


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
    results = retry(act.conn, act.projection, _chosen(act), force=force)
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
