"""What the commands that build another copy have in common: run it, ask, tell, and exit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import structlog
from rich.console import Console
from rich.progress import Progress as ProgressDisplay
from rich.progress import TaskProgressColumn

from backlot.database import database_url
from backlot.operator import NotDone, Operator, make_tools, operating, require_done
from backlot.output import show
from backlot.projections.text import differences, told
from backlot.screen import LINE_SECONDS, QUARTERS, agrees, bar, label
from backlot.signals import STOPS, Stop
from domain.operation import Members, OperationOutcome
from engine import checkpoints
from engine.comparison import Difference
from engine.connections import connect, is_outage
from engine.event_store import open_recorder
from engine.operations import claimed, finish, load, request
from engine.replay.records import Progress, Replay, ReplayState, of_operation, unfinished
from infra.errors import ExitCode, OperatorError, describe
from infra.logging import configure_logging
from infra.settings import Settings, load_settings
from readapi.projection_status import present_replay
from workers.operations.actions import Ended, carry_out, purpose_of
from workers.operations.executor import is_interruption, perform, watch_parent

LOOK_SECONDS = 0.5

log = structlog.get_logger(__name__)


class ReplayScreen(ProgressDisplay):
    """Hears of a replay's progress; to be used as a context manager."""

    def __init__(self, title: str) -> None:
        console = Console(stderr=True)
        super().__init__(
            label("{task.description}"),
            *bar(console),
            TaskProgressColumn(),
            label("{task.fields[told]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._title = title
        self._act = self.add_task(title, total=None, told="")
        self._told: tuple[str, int] | None = None
        self._told_at = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Show it: as a bar on a terminal; elsewhere a line at each quarter, and now and then."""
        described, told = f"{self._title}: {progress.state}", describe_progress(progress)
        position, target = progress.position, progress.target
        if self.console.is_terminal:
            self.update(
                self._act, description=described, total=target, completed=position, told=told
            )
            return
        quarter = position * QUARTERS // max(target, 1)
        long_ago = time.monotonic() - self._told_at > LINE_SECONDS
        if (progress.state, quarter) != self._told or long_ago:
            self._told, self._told_at = (progress.state, quarter), time.monotonic()
            line = f"{described}, position {position}/{target}, {told}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Leave the terminal to somebody else meanwhile."""
        self.stop()
        try:
            yield
        finally:
            self.start()


def describe_progress(progress: Progress) -> str:
    """Return events, positions per second and remaining time in words."""
    words = [f"{progress.events:,} events", f"{progress.rate:,.0f}/s"]
    if progress.eta_seconds is not None:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        words.append(f"{hours}:{minutes:02}:{seconds:02} left")
    return ", ".join(words)


class Interrupted(OperatorError):
    """Ctrl-C; the text says how the replay is now, and what can be done about it."""

    exit_code = ExitCode.INTERRUPTED


class OperatorReplay:
    """One operator and one replay, from the request to its end or to where it rests."""

    def __init__(self, operator: Operator, action: str, name: str, parameters: Members) -> None:
        self._operator = operator
        self._conn = operator.conn
        self._action, self._name = action, name
        self._parameters = parameters
        self._worked_here = False
        self._compared: list[Difference] = []

    def run(self, *, yes: bool) -> Replay:
        """Ask for it, or go on with the unfinished one, until it ends or rests.

        `yes`: switch although the copies differ; otherwise the operator is asked. Raise NotDone
        where it is refused or another one is under way, and Interrupted.
        """
        new_id = uuid4()
        # Held from before the request on, so that no other process begins with it.
        with claimed(self._conn, new_id):
            operation_id = self.request(new_id)
            while True:
                replay = self._follow(operation_id)
                waits = replay.state is ReplayState.WAITING and not replay.confirmed
                if not waits or not (yes or self._agreed(replay)):
                    return replay
                self._operator.do("confirm", self._name, {})

    def differences(self, replay: Replay) -> Iterator[str]:
        """Yield what the comparison found, in lines; with the values, if it was made here."""
        if self._compared:
            return differences(self._compared[-1].as_dict(values=True))
        return differences(replay.result)

    def _agreed(self, replay: Replay) -> bool:
        """Return whether the operator, having seen what differs, wants the switch."""
        return agrees(f"Switch {self._name} to the new copy?", *self.differences(replay))

    def request(self, new_id: UUID) -> UUID:
        """Ask for it under this id, or go on with the unfinished one; return the operation's id."""
        operator = self._operator
        operator.projection(self._name)
        found = unfinished(self._conn, self._name)
        if found is not None:
            self._join(found)
            return found.operation_id
        what = self._action, self._name, self._parameters
        request(operator.recorder, new_id, operator.actor, *what)
        return new_id

    def _join(self, found: Replay) -> None:
        """Go on with the replay that there is, when it is the one that is asked for."""
        to = self._parameters.get("to")
        if (found.purpose, found.target) != (purpose_of(self._action, to), to):
            raise NotDone(
                f"{self._name} has another replay under way ({found.purpose}, {found.state}): "
                f"let that end, or `backlot projections cancel {self._name}`"
            )
        if self._parameters.get("yes") and not found.confirmed:
            self._operator.do("confirm", self._name, {})
        if found.paused:
            self._operator.do("resume", self._name, {"replay": True})

    def _follow(self, operation_id: UUID) -> Replay:
        what, stopping = f"{self._action} {self._name}", self._operator.tools.stopping
        with ReplayScreen(what) as screen, Stop(stopping.set):
            while True:
                self._work(operation_id, screen)
                replay = of_operation(self._conn, operation_id)
                if replay is None:
                    raise NotDone(f"{what}: another process ended it")
                if replay.rests:
                    return replay
                if stopping.is_set():
                    raise self._interrupted()
                live = checkpoints.look(self._conn, self._name)
                head = live.head if live else replay.position
                screen(replay.progress(replay.target or head))
                time.sleep(LOOK_SECONDS)

    def _work(self, operation_id: UUID, screen: ReplayScreen) -> None:
        """Do it here, unless another process is at it."""
        operator = self._operator
        tools = replace(operator.tools, report=screen, compared=self._compared.append)
        with claimed(self._conn, operation_id) as self._worked_here:
            if not self._worked_here:
                return
            try:
                ended = carry_out(self._conn, tools, load(operator.recorder, operation_id))
            except Exception as error:
                if not is_outage(error):
                    failed = Ended(OperationOutcome.FAILED, {"error": describe(error)})
                    finish(operator.recorder, operation_id, *failed, operator.actor)
                raise
            if ended is None:
                return
            finish(operator.recorder, operation_id, *ended, operator.actor)
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


def carry(
    action: str, name: str, parameters: Members, *, yes: bool, detach: bool, as_json: bool
) -> int:
    """Replay or roll back, here or in another process; return the exit code.

    UNCONFIRMED for a replay that waits, FAILED for one that rests otherwise or did not succeed.
    """
    with operating(load_settings()) as operator:
        work = OperatorReplay(operator, action, name, parameters)
        if detach:
            return _show_request(work.request(uuid4()), as_json)
        found = work.run(yes=yes)
        lines = [told(found)]
        if found.result is not None and found.result["differs"]:
            lines += work.differences(found)
        show("\n".join(lines), _as_dict(operator, found), as_json)
    if not found.finished:
        return ExitCode.FAILED if found.paused else ExitCode.UNCONFIRMED
    gone = found.state in (ReplayState.CANCELLED, ReplayState.FAILED)
    return ExitCode.FAILED if gone else ExitCode.DONE


def _show_request(operation_id: UUID, as_json: bool) -> int:
    operation = str(operation_id)
    show(f"requested: operation {operation}", {"operationId": operation}, as_json)
    return ExitCode.DONE


def verify(
    operator: Operator, names: Sequence[str], parameters: Members, *, listed: bool, as_json: bool
) -> int:
    """Verify one projection after the other, whatever came of those before; return the exit code.

    `listed`: the JSON is a list, also of one.
    """
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    code = ExitCode.DONE
    for name in names:
        work = OperatorReplay(operator, "verify", name, parameters)
        found = work.run(yes=True)
        lines += [told(found), *work.differences(found)]
        data.append({"name": name, **_as_dict(operator, found)})
        if found.result is None or found.result["differs"]:
            code = ExitCode.NOT_WELL
    show("\n".join(lines), {"items": data} if listed else data[0], as_json)
    return code


def _as_dict(operator: Operator, found: Replay) -> dict[str, Any]:
    live = checkpoints.look(operator.conn, found.name)
    presented = present_replay(found, live.head if live else found.position)
    return presented.model_dump(mode="json", by_alias=True, exclude_none=True)


def rebuild_counters(parameters: Members, *, as_json: bool) -> None:
    """Put the like counters in Redis anew."""
    with operating(load_settings()) as operator, ReplayScreen("replay counters") as screen:
        tools = replace(operator.tools, report=screen)
        result = operator.do("replay", "counters", parameters, tools).result
    show(f"{result['counters']} counters put anew", result, as_json)


def rebuild_in_place(
    name: str, action: str, parameters: Members, *, detach: bool, as_json: bool
) -> int:
    """Verify or replay what has no copies; return the exit code.

    NOT_WELL where a verification finds a difference, UNCONFIRMED for a replay that nobody wanted.
    """
    with operating(load_settings()) as operator:
        if detach:
            operation_id = uuid4()
            request(operator.recorder, operation_id, operator.actor, action, name, parameters)
            return _show_request(operation_id, as_json)
        ended, found = _mend(operator, name, action, parameters)
    result: dict[str, Any] = dict(ended.result)
    show("\n".join([_told(result), *differences(found)]), result, as_json)
    if ended.outcome is OperationOutcome.CANCELLED:
        return ExitCode.UNCONFIRMED
    differs = action == "verify" and result["difference"]["differs"]
    return ExitCode.NOT_WELL if differs else ExitCode.DONE


def _mend(
    operator: Operator, name: str, action: str, parameters: Members
) -> tuple[Ended, dict[str, Any]]:
    """Return how it ended, and what was found to differ, with the values."""
    found: list[Difference] = []
    with ReplayScreen(f"{action} {name}") as screen:

        def ask(difference: Difference) -> bool:
            with screen.resting():
                lines = differences(difference.as_dict(values=True))
                return agrees(f"Mend the {name}?", *lines)

        tools = replace(operator.tools, report=screen, agrees=ask, compared=found.append)
        ended = operator.attempt(action, name, parameters, tools)
    if ended.outcome is not OperationOutcome.CANCELLED:
        require_done(ended)
    return ended, found[-1].as_dict(values=True)


def _told(result: Members) -> str:
    name = result["name"]
    compared = f"{name}: compared with {result['events']:,} events, up to position "
    compared += str(result["position"])
    match result["state"]:
        case "mended":
            return f"{compared}, and mended"
        case "cancelled":
            yes = f"`backlot projections replay {name} --yes` mends it"
            return f"{compared}; nothing was changed, {yes}"
        case _:
            return compared


def run_operation(settings: Settings, operation_id: UUID) -> None:
    """Carry it out until it is over, or rests, or the parent is gone, or the database is away."""
    configure_logging(settings.logs)
    stopping = Event()
    watch_parent(stopping)
    try:
        with Stop(stopping.set, numbers=STOPS), ExitStack() as stack:
            url = database_url(settings)
            recorder = open_recorder(url)
            stack.enter_context(closing(recorder.datastore))
            conn = stack.enter_context(connect(url, "operation"))
            perform(conn, recorder, make_tools(settings, url, stack, stopping), operation_id)
    except Exception as error:
        if not is_interruption(error):
            raise
        # It goes on where it stands, in another process, once the database is back.
        log.warning("operation_interrupted", id=str(operation_id), error=describe(error))
