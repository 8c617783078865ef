"""An operator at the command line: the database at hand, and each action recorded as an operation.

What is done, and how, is in `workers/operations/actions.py`: the same as what HTTP asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from threading import Event

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot.arguments import require
from backlot.database import database_at_hand, operator_name, persons_at_hand, recordable
from backlot.features import read_models
from domain.operation import Members, OperationOutcome
from engine.connections import connect
from engine.event_store import GroupCommitRecorder, open_recorder
from engine.operations import load, recording
from engine.persons import Persons
from engine.projection import Projection
from engine.replay.records import tell_nobody
from infra.errors import OperatorError
from infra.settings import Settings
from projections.like_counters import NAME as COUNTERS
from workers.analytics import analytics_means
from workers.likes import open_counters
from workers.operations.actions import MENDED, Ended, Tools, carry_out


class NotDone(OperatorError):
    """The action was refused, or failed; the text says why."""


@dataclass(frozen=True)
class Operator:
    """Who acts, on which database, and what actions are carried out with."""

    actor: str
    conn: Connection[TupleRow]
    recorder: GroupCommitRecorder
    tools: Tools
    persons: Persons

    def projection(self, name: str) -> Projection:
        """Return the live projection of that name; raise UnknownName."""
        return self.tools.models[require("projection", name, self.tools.models)]

    def do(self, action: str, name: str, parameters: Members, tools: Tools | None = None) -> Ended:
        """Carry out an action that ends by itself, and record it; raise NotDone."""
        return require_done(self.attempt(action, name, parameters, tools or self.tools))

    def attempt(self, action: str, name: str, parameters: Members, tools: Tools) -> Ended:
        """Carry out an action that ends by itself, and record it, however it ends."""
        if name not in (COUNTERS, *MENDED):
            self.projection(name)
        with (
            recordable(),
            recording(self.recorder, self.actor, action, name, parameters) as running,
        ):
            operation = load(self.recorder, running.operation_id)
            ended = carry_out(self.conn, tools, operation)
            if ended is None:
                raise NotDone(f"{action} {name} is not over")
            running.outcome, running.result = ended
        return ended


def require_done(ended: Ended) -> Ended:
    """Return the end of what was done; raise NotDone for any other."""
    if ended.outcome is not OperationOutcome.DONE:
        told = ended.result.get("reason") or ended.result.get("error") or str(ended.outcome)
        raise NotDone(str(told))
    return ended


@contextmanager
def operating(settings: Settings) -> Iterator[Operator]:
    """Yield the operator whose shell this is; raise DatabaseAway, whenever it goes away."""
    # Progress is on the screen; of the log only what is wrong belongs there.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with database_at_hand(), ExitStack() as stack:
        persons = stack.enter_context(closing(persons_at_hand(settings)))
        url = persons.database_url
        conn = stack.enter_context(connect(url, "operator"))
        # Refuses a database on which no process of this release has started.
        conn.execute("SELECT FROM backlot_checkpoints, projections.replays LIMIT 0")
        recorder = open_recorder(url)
        stack.callback(recorder.close)
        tools = make_tools(settings, url, stack, Event())
        yield Operator(operator_name(), conn, recorder, tools, persons)


def make_tools(settings: Settings, url: str, stack: ExitStack, stopping: Event) -> Tools:
    """Return what actions are carried out with in this process; `stack` closes it."""
    models, counters = read_models().by_name(), open_counters(settings, stack)
    analytics = analytics_means(settings, url)
    return Tools(url, models, tell_nobody, stopping, counters, analytics)
