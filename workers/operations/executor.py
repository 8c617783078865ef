"""Carries out what operators asked for, in any process with the role `projections`.

The log says what was asked, and a claim who is at it, so each operation is carried out by one
process at a time, and another one goes on with it when that one dies.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any
from uuid import UUID

import structlog
from eventsourcing.persistence import PersistenceError
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.model import SystemActor
from domain.operation import Members, Operation, OperationOutcome
from engine import checkpoints
from engine.connections import EveryProcess, ThreadedConnection, in_thread, is_outage
from engine.event_store import GroupCommitRecorder
from engine.operations import claimed, finish, load, request
from engine.projection_subscription import ProjectionHost
from engine.replay.records import of_operation, tell_nobody, under_way
from engine.replay.requests import begin_for_outdated
from engine.subscription import Handler, NoCheckpoint, Subscription, Wakeups
from infra.cancellation import cancel, to_the_end
from infra.errors import describe
from infra.tasks.broker import task_queues, task_sender
from projections.operations import Operations
from workers.analytics import analytics_means
from workers.operations.actions import LONG, Ended, Tools, action_of, carry_out, prepare
from workers.operations.failures import TaskAccess
from workers.parts import Parts

log = structlog.get_logger(__name__)

# The least time between two starts of a process for one operation.
PAUSE_SECONDS = 1.0
CHILD_STOP_SECONDS = 15.0
MAX_CHILDREN = 4
SLOW_EXIT = 70


class Children:
    """The processes at work here, by what they work on; used by one thread."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """`command` gets the id of what is to be done as its last argument."""
        self._command = command
        self._environment = {**os.environ, **environment}
        self.running: dict[UUID, subprocess.Popen[bytes]] = {}
        self._started: dict[UUID, float] = {}
        self.crashes: Counter[UUID] = Counter()
        """How many children have died over each work."""

    def may_start(self, work: UUID) -> bool:
        """Return whether there is room for one more child, and none has only just been at it."""
        rested = time.monotonic() - self._started.get(work, float("-inf")) > PAUSE_SECONDS
        return len(self.running) < MAX_CHILDREN and rested

    def start(self, work: UUID) -> None:
        """Begin to work in a process of its own; raises OSError when there can be none."""
        self._started[work] = time.monotonic()
        self.running[work] = subprocess.Popen(
            [*self._command, str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=self._environment,
            # Its own session: Ctrl-C ends this process first, which then stops the child.
            start_new_session=True,
        )

    def reap(self) -> None:
        """Notice which have ended."""
        for work, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            _close(process)
            del self.running[work]
            if code != 0:
                self.crashes[work] += 1
                log.error("operation_process_died", id=str(work), code=code)

    def stop(self) -> None:
        """Ask all to stop where they are, wait for that, and kill who takes too long."""
        for process in self.running.values():
            _close(process)
        deadline = time.monotonic() + CHILD_STOP_SECONDS
        for work, process in self.running.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("operation_process_killed", id=str(work))
                process.kill()
                process.wait()
        self.running.clear()


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def watch_parent(stopping: Event, *, exit_seconds: float = CHILD_STOP_SECONDS) -> Thread:
    """In a child: have `stopping` set when the parent is gone or closes the pipe.

    Who does not stop within `exit_seconds` after that is ended by force.
    """

    def watch(end: Callable[[int], object] = os._exit) -> None:
        # Past Python's buffer: its lock, held here, would break the interpreter's end.
        os.read(sys.stdin.fileno(), 1)
        stopping.set()
        time.sleep(exit_seconds)
        end(SLOW_EXIT)

    thread = Thread(target=watch, name="parent", daemon=True)
    thread.start()
    return thread


ACTOR = SystemActor.PROJECTIONS
POLL_SECONDS = 0.5
STOP_SECONDS = 30.0
MAX_CRASHES = 3


def is_interruption(error: Exception) -> bool:
    """Return whether the database or the log is away: then the operation goes on later."""
    return is_outage(error) or isinstance(error, PersistenceError)


def perform(
    conn: Connection[TupleRow], recorder: GroupCommitRecorder, tools: Tools, operation_id: UUID
) -> bool:
    """Carry an operation out, unless another process is at it; whether it is over now.

    A fault of ours is recorded as its end. Raises what the database raises when it is away: then
    the operation is as unfinished as before.
    """
    with claimed(conn, operation_id) as mine:
        if not mine:
            return False
        operation = load(recorder, operation_id)
        if operation.version == 0 or operation.outcome is not None:
            return True
        ended = _attempt(carry_out, conn, tools, operation)
        if ended is None:
            return False
        finish(recorder, operation_id, *ended, ACTOR)
        log.info("operation_finished", id=str(operation_id), outcome=str(ended.outcome))
        return True


def _attempt(
    step: Callable[..., Ended | None],
    conn: Connection[TupleRow],
    tools: Tools,
    operation: Operation,
) -> Ended | None:
    try:
        return step(conn, tools, operation)
    except Exception as error:
        if is_interruption(error):
            raise
        log.exception("operation_broke", id=str(operation.id), action=operation.action)
        return Ended(OperationOutcome.FAILED, {"error": describe(error)})


@dataclass(eq=False)
class Executor(Handler[None]):
    """Looks for operations to carry out: short ones here, long ones in children.

    `auto_replay`: what an older version of the code has made is built again at the start.
    """

    recorder: GroupCommitRecorder
    operations: Operations
    tools: Tools
    children: Children
    auto_replay: bool

    async def run(self, moved: asyncio.Event) -> None:
        """Carry out what is asked for until cancelled; everything stops where it is then.

        `moved` is set when the read model of the operations has moved in this process. What is
        unfinished goes on when some process starts again.
        """
        subscription = Subscription(
            self.tools.database_url,
            "operations",
            source=Wakeups(moved),
            checkpoint=NoCheckpoint(),
            handler=self,
            on_error=self._failed,
            # Each operation is claimed for itself.
            leader=EveryProcess(),
            poll_seconds=POLL_SECONDS,
        )
        work = asyncio.create_task(subscription.run())
        try:
            # A cancellation would wait for the operation at hand, which has to be told first.
            await asyncio.wait([work])
        finally:
            self.tools.stopping.set()
            await to_the_end(self._stop(work))

    async def _stop(self, work: asyncio.Task[Any]) -> None:
        await cancel(work, seconds=STOP_SECONDS)
        await in_thread(self.children.stop)

    async def handle(self, conn: ThreadedConnection, batch: None) -> None:
        await conn.do(self._attend_all)

    def _failed(self, error: Exception) -> None:
        trace = None if is_interruption(error) else error
        log.warning("operations_interrupted", error=describe(error), exc_info=trace)

    def _attend_all(self, conn: Connection[TupleRow]) -> None:
        if self.auto_replay:
            begin_for_outdated(conn, self.tools.models, requested_by=SystemActor.SYSTEM)
            self.auto_replay = False
        self.children.reap()
        for operation_id in self._open(conn):
            if not self.tools.stopping.is_set():
                self._attend(conn, operation_id)

    def _open(self, conn: Connection[TupleRow]) -> Sequence[UUID]:
        """Return what may have to be done; replays tell it too while the read model is rebuilt."""
        replays = [replay.operation_id for replay in under_way(conn)]
        model = checkpoints.look(conn, self.operations.schema)
        if model is None or model.version not in self.operations.versions:
            return replays
        return list(dict.fromkeys([*self.operations.unfinished(conn), *replays]))

    def _attend(self, conn: Connection[TupleRow], operation_id: UUID) -> None:
        if operation_id in self.children.running:
            return
        # The log decides: the read model may not know yet that it has ended.
        operation = load(self.recorder, operation_id)
        replay = of_operation(conn, operation_id)
        if operation.version == 0 and replay is not None:
            # Begun without a request: a replay of what an older version has made.
            because: Members = {"reason": f"version {replay.version} of the code"}
            asked = replay.requested_by, action_of(replay), replay.name, because
            operation = request(self.recorder, operation_id, *asked)
        if operation.outcome is not None:
            return
        if operation.action not in LONG or (replay is not None and replay.finished):
            perform(conn, self.recorder, self.tools, operation_id)
        elif replay is not None and (replay.rests or not self.tools.are_for(replay)):
            return
        elif self.children.crashes[operation_id] >= MAX_CRASHES:
            error = f"{MAX_CRASHES} processes died over it; the log has their last words"
            finish(self.recorder, operation_id, OperationOutcome.FAILED, {"error": error}, ACTOR)
        elif self.children.may_start(operation_id) and self._prepare(conn, operation):
            # The child claims it for itself.
            self.children.start(operation_id)

    def _prepare(self, conn: Connection[TupleRow], operation: Operation) -> bool:
        """Begin it; return False when it is refused, or another process is at it."""
        with claimed(conn, operation.id) as mine:
            ended = _attempt(prepare, conn, self.tools, operation) if mine else None
            if ended is not None:
                finish(self.recorder, operation.id, *ended, ACTOR)
            return mine and ended is None


def reactors(parts: Parts, host: ProjectionHost) -> Iterator[Coroutine[Any, Any, None]]:
    """Have what operators ask for done here; replays in processes of their own."""
    command = [sys.executable, "-m", "backlot", "projections", "carry-out"]
    url, settings = parts.database_url, parts.settings
    models, analytics = parts.models.by_name(), analytics_means(settings, url)
    executor = Executor(
        parts.recorder,
        parts.models[Operations],
        Tools(
            *(url, models, tell_nobody, Event(), parts.counters, analytics),
            tasks=TaskAccess(task_queues(settings.tasks), task_sender(settings.tasks)),
        ),
        Children(command, {"DATABASE_URL": url}),
        auto_replay=settings.projections.auto_replay,
    )
    yield executor.run(host.follow(Operations.name))
