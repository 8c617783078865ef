"""What the commands that build another copy have in common: run it, ask, tell, and exit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from threading import Event
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import UUID, uuid4

import structlog
import typer
from eventsourcing.persistence import PersistenceError
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskProgressColumn

from backlot.database import database_url
from backlot.features import read_models
from backlot.operator import NotDone, Operator, operating, require_done
from backlot.output import show
from backlot.projections.text import differences, told
from backlot.screen import agrees, bar, label
from backlot.signals import STOPS, Stop
from domain.operation import Members, Operation, OperationOutcome
from engine import checkpoints
from engine.comparison import Difference
from engine.connections import connect, is_outage
from engine.event_store import open_recorder
from engine.operations import claim, finish, load, release, request
from engine.replay import records as replay_progress
from engine.replay.records import Progress, Purpose, Replay, ReplayState, tell_nobody, unfinished
from infra.errors import ExitCode, describe
from infra.logging import configure_logging
from infra.settings import Settings, load_settings
from projections.analytics.rebuild import NAME
from readapi.projection_status import present_replay
from workers.analytics import analytics_means
from workers.likes import open_counters
from workers.operations.action import Ended, Tools
from workers.operations.actions import carry_out
from workers.operations.executor import perform, watch_parent
from workers.operations.replays import replay_of

QUARTERS = 4
LINE_SECONDS = 30.0

log = structlog.get_logger(__name__)


class ReplayScreen:
    """Hears of a replay's progress; to be used as a context manager."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._bar = Bar(
            label("{task.description}"),
            *bar(self._console),
            TaskProgressColumn(),
            label("{task.fields[told]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, told="")
        self._told: tuple[str, int] | None = None
        self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: replay_progress.Progress) -> None:
        described, told = f"{self._title}: {progress.state}", describe_progress(progress)
        if self._console.is_terminal:
            self._bar.update(
                self._task,
                description=described,
                total=progress.target,
                completed=progress.position,
                told=told,
            )
            return
        quarter = progress.position * QUARTERS // max(progress.target, 1)
        long_ago = time.monotonic() - self._told_at > LINE_SECONDS
        if (progress.state, quarter) != self._told or long_ago:
            self._told, self._told_at = (progress.state, quarter), time.monotonic()
            self.say(f"{described}, position {progress.position}/{progress.target}, {told}")

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Leave the terminal to somebody else meanwhile."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe_progress(progress: replay_progress.Progress) -> str:
    """Events, positions per second and remaining time in words."""
    words = [f"{progress.events:,} events", f"{progress.rate:,.0f}/s"]
    if progress.eta_seconds is not None:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        words.append(f"{hours}:{minutes:02}:{seconds:02} left")
    return ", ".join(words)


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


class Verified(NamedTuple):
    """What several verifications came to: for people, for programs, and whether all were equal."""

    lines: list[str]
    data: list[dict[str, Any]]
    equal: bool


def carry(
    action: str, name: str, parameters: Members, *, yes: bool, detach: bool, as_json: bool
) -> int:
    """Replay or roll back, here or in another process; the exit code.

    UNCONFIRMED for a replay that waits, FAILED for one that rests otherwise or did not succeed.
    """
    with operating(load_settings()) as operator:
        replaying = Replaying(operator, action, name, parameters)
        if detach:
            operation = str(replaying.detach())
            show(f"requested: operation {operation}", {"operationId": operation}, as_json)
            return ExitCode.DONE
        found = _run(replaying, yes=yes)
        lines = [told(found)]
        if found.result is not None and found.result["differs"]:
            lines += replaying.differences(found)
        show("\n".join(lines), _as_dict(operator, found), as_json)
    if not found.finished:
        return ExitCode.FAILED if found.paused else ExitCode.UNCONFIRMED
    gone = found.state in (ReplayState.CANCELLED, ReplayState.FAILED)
    return ExitCode.FAILED if gone else ExitCode.DONE


def verify_all(operator: Operator, names: Sequence[str], parameters: Members) -> Verified:
    """Verify one projection after the other; each is told whatever came of those before."""
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    equal = True
    for name in names:
        replaying = Replaying(operator, "verify", name, parameters)
        found = _run(replaying, yes=True)
        lines += [told(found), *replaying.differences(found)]
        data.append({"name": name, **_as_dict(operator, found)})
        equal &= found.result is not None and not found.result["differs"]
    return Verified(lines, data, equal)


def rebuild_counters(parameters: Members, *, as_json: bool) -> None:
    """Put the like counters in Redis anew."""
    with operating(load_settings()) as operator, ReplayScreen("replay counters") as screen:
        result = operator.do("replay", "counters", parameters, screen).result
    show(f"{result['counters']} counters put anew", result, as_json)


def _run(replaying: Replaying, *, yes: bool) -> Replay:
    try:
        return replaying.run(lambda found: yes or _agreed(replaying, found))
    except Interrupted as interrupted:
        typer.echo(f"backlot: {interrupted}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _agreed(replaying: Replaying, found: Replay) -> bool:
    """Whether the operator, having seen what differs, wants the switch."""
    return agrees(f"Switch {found.name} to the new copy?", *replaying.differences(found))


def _as_dict(operator: Operator, found: Replay) -> dict[str, Any]:
    live = checkpoints.look(operator.conn, found.name)
    presented = present_replay(found, live.head if live else found.position)
    return presented.model_dump(mode="json", by_alias=True, exclude_none=True)


def rebuild(action: str, parameters: Members, *, detach: bool, as_json: bool) -> int:
    """Verify or replay the analytics; the exit code.

    NOT_WELL where a verification finds a difference, UNCONFIRMED for a replay that nobody wanted.
    """
    with operating(load_settings()) as operator:
        if detach:
            operation_id = uuid4()
            request(operator.recorder, operation_id, operator.actor, action, NAME, parameters)
            operation = str(operation_id)
            show(f"requested: operation {operation}", {"operationId": operation}, as_json)
            return ExitCode.DONE
        ended, found = _carry_out(operator, action, parameters)
    result: dict[str, Any] = dict(ended.result)
    show("\n".join([_told(result), *differences(found)]), result, as_json)
    if ended.outcome is OperationOutcome.CANCELLED:
        return ExitCode.UNCONFIRMED
    differs = action == "verify" and result["difference"]["differs"]
    return ExitCode.NOT_WELL if differs else ExitCode.DONE


def _carry_out(
    operator: Operator, action: str, parameters: Members
) -> tuple[Ended, dict[str, Any]]:
    """How it ended, and what was found to differ, with the values."""
    found: list[Difference] = []
    with ReplayScreen(f"{action} {NAME}") as screen:

        def agrees(difference: Difference) -> bool:
            with screen.resting():
                return _analytics_agreed(difference)

        ended = operator.attempt(
            action, NAME, parameters, operator.tools(screen, agrees, found.append)
        )
    done = ended if ended.outcome is OperationOutcome.CANCELLED else require_done(ended)
    return done, found[-1].as_dict(values=True)


def _analytics_agreed(difference: Difference) -> bool:
    """Whether the operator, having seen what differs, wants it mended."""
    return agrees(f"Mend the {NAME}?", *differences(difference.as_dict(values=True)))


def _told(result: Members) -> str:
    where = f"{result['events']:,} events, up to position {result['position']}"
    match result["state"]:
        case "mended":
            return f"{NAME}: compared with {where}, and mended"
        case "cancelled":
            yes = f"`backlot projections replay {NAME} --yes` mends it"
            return f"{NAME}: compared with {where}; nothing was changed, {yes}"
        case _:
            return f"{NAME}: compared with {where}"


def run_operation(settings: Settings, operation_id: UUID) -> None:
    """Carry it out until it is over, or rests, or the parent is gone, or the database is away."""
    configure_logging(settings.logs)
    stopping = Event()
    watch_parent(stopping)
    try:
        with Stop(stopping.set, numbers=STOPS):
            _perform(settings, operation_id, stopping)
    except Exception as error:
        if not (is_outage(error) or isinstance(error, PersistenceError)):
            raise
        # It goes on where it stands, in another process, once the database is back.
        log.warning("operation_interrupted", id=str(operation_id), error=describe(error))


def _perform(settings: Settings, operation_id: UUID, stopping: Event) -> None:
    url = database_url(settings)
    recorder = open_recorder(url)
    with (
        ExitStack() as stack,
        closing(recorder.datastore),
        connect(url, "operation") as conn,
    ):
        counters = open_counters(settings, stack)
        models = read_models().by_name()
        analytics = analytics_means(settings, url)
        tools = Tools(url, models, tell_nobody, stopping, counters, analytics)
        perform(conn, recorder, tools, operation_id)
