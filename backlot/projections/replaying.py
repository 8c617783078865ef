"""Carries a replay through from the command line: in this process, or by looking on.

Whatever ends this process, the database knows how far the replay is. Ctrl-C lets it rest there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

from backlot.projections.lines import differences
from backlot.projections.operating import NotDone, Operator, require_done
from backlot.projections.replay_screen import ReplayScreen
from backlot.signals import Stop
from domain.operation import Members, Operation, OperationOutcome
from engine import checkpoints
from engine.connections import is_outage
from infra.errors import describe
from infra.operations import claim, finish, load, release, request
from projections.operating.acting import Ended, Tools
from projections.operating.actions import carry_out
from projections.operating.replay_actions import replay_of
from projections.proving.compare import Difference
from projections.replaying.progress import Progress
from projections.replaying.rows import Purpose, Replay, ReplayState, unfinished

LOOK_SECONDS = 0.5

Ask = Callable[[Replay], bool]
"""Whether to switch although the copies differ."""


class Interrupted(Exception):
    """Ctrl-C; the text says how the replay is now, and what can be done about it."""


class Replaying:
    """One operator and one replay, from the request to its end or to where it rests."""

    def __init__(self, operator: Operator, action: str, name: str, parameters: Members) -> None:
        self._operator = operator
        self._conn = operator.conn
        self._action, self._name = action, name
        self._parameters = parameters
        self._worked_here = False
        self._compared: Difference | None = None

    def detach(self) -> UUID:
        """Ask for it, and leave it to a process with the role `projections`; the operation's id."""
        return self._request(uuid4())

    def run(self, ask: Ask) -> Replay:
        """Ask for it, or go on with the unfinished one, until it ends or rests.

        Raises NotDone where it is refused or another one is under way, and Interrupted.
        """
        new_id = uuid4()
        # Held from before the request on, so that no other process begins with it.
        claim(self._conn, new_id)
        try:
            operation_id = self._request(new_id)
            while True:
                replay = self._follow(operation_id)
                if not _asks(replay) or not ask(replay):
                    return replay
                self._operator.do("confirm", self._name, {})
        finally:
            release(self._conn, new_id)

    def differences(self, replay: Replay) -> Iterator[str]:
        """What the replay's comparison found, in lines; with the values, if it was made here."""
        found = self._compared
        return differences(replay.result if found is None else found.as_dict(values=True))

    def _hear(self, found: Difference) -> None:
        self._compared = found

    def _request(self, new_id: UUID) -> UUID:
        operator = self._operator
        operator.projection(self._name)
        found = unfinished(self._conn, self._name)
        if found is not None:
            self._join(found)
            return found.operation_id
        actor, what = operator.actor, (self._action, self._name, self._parameters)
        request(operator.recorder, new_id, actor, *what)
        return new_id

    def _join(self, found: Replay) -> None:
        """Go on with the replay that there is, when it is the one that is asked for."""
        if (found.purpose, found.target) != (self._purpose, self._parameters.get("to")):
            raise NotDone(
                f"{self._name} has another replay under way ({found.purpose}, {found.state}): "
                f"let that end, or `backlot projections cancel {self._name}`"
            )
        if self._parameters.get("yes") and not found.confirmed:
            self._operator.do("confirm", self._name, {})
        if found.paused:
            self._operator.do("resume", self._name, {"replay": True})

    @property
    def _purpose(self) -> Purpose:
        if self._action == "replay":
            return Purpose.SWITCH if self._parameters.get("to") is None else Purpose.LOOK
        return Purpose(self._action)

    def _follow(self, operation_id: UUID) -> Replay:
        title = f"{self._action} {self._name}"
        with ReplayScreen(title) as screen, Stop(self._operator.stopping.set):
            while True:
                self._work(operation_id, screen)
                replay = replay_of(self._conn, operation_id)
                if replay is None:
                    raise NotDone(f"{self._action} {self._name}: another process ended it")
                if replay.rests:
                    return replay
                if self._operator.stopping.is_set():
                    raise self._interrupted()
                screen(self._progress(replay))
                time.sleep(LOOK_SECONDS)

    def _work(self, operation_id: UUID, screen: ReplayScreen) -> None:
        """Do it here, unless another process is at it."""
        self._worked_here = claim(self._conn, operation_id)
        if not self._worked_here:
            return
        try:
            operation = load(self._operator.recorder, operation_id)
            ended = self._attempt(operation, screen)
            if ended is not None:
                self._finish(operation_id, ended)
        finally:
            release(self._conn, operation_id)

    def _attempt(self, operation: Operation, screen: ReplayScreen) -> Ended | None:
        try:
            return carry_out(self._conn, self._tools(screen), operation)
        except Exception as error:
            if not is_outage(error):
                self._finish(
                    operation.id, Ended(OperationOutcome.FAILED, {"error": describe(error)})
                )
            raise

    def _tools(self, screen: ReplayScreen) -> Tools:
        return self._operator.tools(screen, compared=self._hear)

    def _finish(self, operation_id: UUID, ended: Ended) -> None:
        finish(self._operator.recorder, operation_id, *ended, self._operator.actor)
        if ended.outcome is OperationOutcome.REFUSED:
            require_done(ended)

    def _interrupted(self) -> Interrupted:
        cancel = f"`backlot projections cancel {self._name}` gives it up"
        if not self._worked_here:
            return Interrupted(f"the {self._action} goes on in another process; {cancel}")
        # Else a process with the role `projections` would go on with it.
        because: Members = {"replay": True, "reason": "interrupted with Ctrl-C"}
        self._operator.do("pause", self._name, because)
        return Interrupted(
            f"the {self._action} stays where it is; the same command goes on with it, {cancel}"
        )

    def _progress(self, replay: Replay) -> Progress:
        live = checkpoints.look(self._conn, self._name)
        target = replay.target or (live.head if live else replay.position)
        rate = replay.rate or 0.0
        eta = (target - replay.position) / rate if rate > 0 else None
        events = replay.events_applied
        return Progress(self._name, replay.state, replay.position, target, events, rate, eta)


def _asks(replay: Replay) -> bool:
    return replay.state is ReplayState.WAITING and not replay.confirmed and not replay.finished
