"""Records what operators do: the request before anything is done, what came of it after.

The process that carries an operation out holds its claim, an advisory lock. So an operation that is
neither finished nor claimed was left by a process that died.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError
from psycopg import Connection

from domain.model import Aggregate, Origin
from domain.operation import Members, Operation, OperationOutcome
from engine.event_store import GroupCommitRecorder, Save
from engine.log import MAPPER, event_id
from infra.advisory_locks import operation_lock, try_lock, unlock
from infra.errors import describe

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Recording:
    """An operation under way: what its `finished` event will say unless an error ends it."""

    operation_id: UUID
    outcome: OperationOutcome = OperationOutcome.DONE
    result: Members = field(default_factory=dict)


@contextmanager
def claimed(conn: Connection[Any], operation_id: UUID) -> Iterator[bool]:
    """Hold the right to carry the operation out; yield False where another process holds it."""
    which = operation_lock(operation_id)
    mine = try_lock(conn, which)
    try:
        yield mine
    finally:
        # A connection that is lost has lost its claims, too.
        with suppress(psycopg.OperationalError):
            if mine:
                unlock(conn, which)


def load(recorder: GroupCommitRecorder, operation_id: UUID) -> Operation:
    """Return the operation as the log knows it; version 0 where nothing is recorded."""
    operation = Operation.blank(operation_id)
    for stored in recorder.select_events(operation_id):
        event = MAPPER.to_domain_event(stored)
        if isinstance(event, Operation.Event):
            event.mutate(operation)
    return operation


def request(
    recorder: GroupCommitRecorder,
    operation_id: UUID,
    actor: str,
    action: str,
    subject: str,
    parameters: Members,
) -> Operation:
    """Record that this is wanted; the operation is a conversation of its own.

    Raise DomainError for what an operation can't be, PersistenceError when the store is away.
    """
    operation = load(recorder, operation_id)
    conversation = str(operation_id)
    origin = Origin(actor, datetime.now(UTC), conversation, conversation)
    operation.request(action, subject, parameters, origin)
    _save(recorder, operation)
    return operation


def finish(
    recorder: GroupCommitRecorder,
    operation_id: UUID,
    outcome: OperationOutcome,
    result: Members,
    actor: str,
) -> None:
    """Record how it ended, unless that is recorded already; caused by the request's event."""
    while True:
        operation = load(recorder, operation_id)
        cause = str(event_id(operation_id, 1))
        origin = Origin(actor, datetime.now(UTC), operation.correlation_id, cause)
        operation.finish(outcome, result, origin)
        if _save(recorder, operation):
            return


def _save(recorder: GroupCommitRecorder, aggregate: Aggregate) -> bool:
    """Return False when another process was first."""
    events = [MAPPER.to_stored_event(event) for event in aggregate.collect_events()]
    if not events:
        return True
    (outcome,) = recorder.append([Save(events)]).outcomes
    return outcome is not None


@contextmanager
def recording(
    recorder: GroupCommitRecorder, actor: str, action: str, subject: str, parameters: Members
) -> Iterator[Recording]:
    """Record a request, run the block, and record its end with the result that the block set.

    An error ends it as failed, Ctrl-C as cancelled; both go on upwards.
    """
    running = Recording(uuid4())
    # Claimed first: a process that sees the request must find it claimed.
    with recorder.connection() as conn, claimed(conn, running.operation_id):
        try:
            request(recorder, running.operation_id, actor, action, subject, parameters)
            yield running
        except BaseException as error:
            _finish_broken(recorder, running, actor, error)
            raise
        else:
            finish(recorder, running.operation_id, running.outcome, running.result, actor)


def _finish_broken(
    recorder: GroupCommitRecorder, running: Recording, actor: str, error: BaseException
) -> None:
    interrupted = isinstance(error, KeyboardInterrupt)
    outcome = OperationOutcome.CANCELLED if interrupted else OperationOutcome.FAILED
    result = {**running.result, "error": describe(error)}
    try:
        if load(recorder, running.operation_id).version > 0:
            finish(recorder, running.operation_id, outcome, result, actor)
    except PersistenceError as away:
        # The error itself is what its caller has to see; a host finishes the operation later.
        log.warning("operation_not_finished", id=str(running.operation_id), error=str(away))
