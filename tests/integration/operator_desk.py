"""What tests of operators' actions share: who carries them out, and what the log says of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psutil
import psycopg
import pytest
import structlog

from backlot.cli import main
from backlot.features import read_models
from domain.operation import Members, Operation, OperationOutcome
from engine.connections import connect
from engine.event_store import GroupCommitRecorder
from engine.log import EventMapper
from engine.operations import load, request
from engine.replay.records import Replay, tell_nobody
from projections.operations import Operations
from tests.e2e.program import OWN_VARIABLES
from tests.fork_server import ForkedProcess
from tests.forked_children import ForkedChildren
from tests.integration.event_log import logged, recording
from tests.integration.projection_support import ThreadedHost
from tests.integration.replay_support import replays
from tests.support import DEADLINE_SECONDS, PROJECT, eventually
from workers.operations.actions import Tools
from workers.operations.executor import Children, Executor

MAPPER = EventMapper()
CHILD = (sys.executable, "-m", "backlot", "projections", "carry-out")


class Ran(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Backlot = Callable[..., Ran]


def in_group(
    group: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Backlot:
    """Runs commands of one group in this process: `backlot <group> …`."""

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["backlot", group, *words])
        # What others in this process log meanwhile is no part of what it answers.
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ran(int(str(ended.value.code)), said.out, said.err)

    return run


class Desk(NamedTuple):
    """An operator's place: asks for something, and looks at what came of it."""

    database_url: str
    recorder: GroupCommitRecorder

    def ask(
        self, action: str, subject: str, parameters: Members | None = None, actor: str = "root"
    ) -> UUID:
        """Record a request and leave it to others; the operation's id."""
        operation_id = uuid4()
        request(self.recorder, operation_id, actor, action, subject, parameters or {})
        return operation_id

    def operation(self, operation_id: UUID) -> Operation:
        return load(self.recorder, operation_id)

    def end(
        self, operation_id: UUID, seconds: float = DEADLINE_SECONDS
    ) -> tuple[OperationOutcome, Members]:
        """How it ended, once it has."""
        eventually(lambda: self.operation(operation_id).outcome, seconds)
        found = self.operation(operation_id)
        assert found.outcome is not None
        return found.outcome, found.result

    def done(self, action: str, subject: str, **parameters: object) -> dict[str, Any]:
        """Have it done; what came of it."""
        outcome, result = self.end(self.ask(action, subject, parameters))
        assert outcome is OperationOutcome.DONE, result
        return result

    def events(self, operation_id: UUID | None = None) -> list[Operation.Event]:
        """What the log says of operations, or of one, in order."""
        stored = [e for e in logged(self.database_url).values() if e.topic.startswith("operation.")]
        found = [MAPPER.to_domain_event(each) for each in stored]
        return [
            event
            for event in found
            if isinstance(event, Operation.Event) and operation_id in (None, event.originator_id)
        ]


@contextmanager
def desk(database_url: str) -> Iterator[Desk]:
    with recording(database_url) as recorder:
        yield Desk(database_url, recorder)


@contextmanager
def executing(
    database_url: str,
    *,
    command: tuple[str, ...] = (),
    auto_replay: bool = False,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Children]:
    """All projections of the program, and an executor, as one process has them.

    `variables` are settings of the processes that it starts, by `command`; else they are forked.
    """
    with ExitStack() as stack:
        models = read_models()
        recorder = stack.enter_context(recording(database_url))
        host = ThreadedHost(database_url, models.all())
        environment = dict.fromkeys(OWN_VARIABLES & os.environ.keys(), "")
        own = {"DATABASE_URL": database_url, "PYTHONPATH": str(PROJECT), **variables}
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="backlot-operations-")))
        children = (
            Children(command, {**environment, **own})
            if command
            else ForkedChildren(folder, {**environment, **own})
        )
        tools = Tools(database_url, models.by_name(), tell_nobody, Event())
        executor = Executor(recorder, models[Operations], tools, children, auto_replay=auto_replay)
        host.jobs.append(partial(executor.run, host.follow("operations")))
        host.start()
        stack.callback(host.stop)
        yield children


def working_on(operation_id: UUID) -> list[psutil.Process]:
    """The processes that carry this operation out."""
    name = str(operation_id)
    # Of the others only the name is read: this is asked again and again.
    python = (each for each in psutil.process_iter(["name"]) if "python" in each.info["name"])
    return [process for process in python if _is_working_on(process, name)]


def _is_working_on(process: psutil.Process, name: str) -> bool:
    with suppress(psutil.Error), process.oneshot():
        if process.status() != psutil.STATUS_ZOMBIE:
            return name in process.cmdline() or Path(process.cwd()).name == name
    return False


def await_process(operation_id: UUID) -> psutil.Process:
    """The process that carries it out, once there is one."""
    return eventually(lambda: working_on(operation_id))[0]


@contextmanager
def standing_still(database_url: str, schema: str) -> Iterator[None]:
    """Holds the row of a copy, so that nobody moves or switches it meanwhile."""
    with psycopg.connect(database_url) as conn:
        conn.execute(
            "SELECT FROM backlot_checkpoints WHERE subscription = %s FOR UPDATE", (schema,)
        )
        yield


def replay_state(
    root: Desk, *, state: str | None = None, paused: bool | None = None
) -> Replay | None:
    """The latest replay, if it is as it is wanted."""
    with connect(root.database_url, "test") as conn:
        for found in replays(conn):
            fits = state in (None, found.state) and paused in (None, found.paused)
            return found if fits else None
    return None


class Launched(ForkedProcess):
    """A command about projections as a process of its own, and what it has said."""

    def __init__(self, folder: Path, database_url: str, *words: str) -> None:
        foreign = {name: text for name, text in os.environ.items() if name not in OWN_VARIABLES}
        self._out, self._err = folder / "out", folder / "err"
        super().__init__(
            "backlot",
            ["projections", *words],
            cwd=folder,
            env={**foreign, "DATABASE_URL": database_url, "PYTHONPATH": str(PROJECT)},
            stdout=self._out,
            stderr=self._err,
        )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text() if self._err.exists() else ""
