"""An operator at the command line: the database at hand, and each action recorded as an operation.

What is done, and how, is in `projections/operating/`: the same as what is asked for over HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Event

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot.arguments import require
from backlot.database import (
    DatabaseAway,
    database_url,
    operator_name,
    recordable,
)
from backlot.features import read_models
from domain.operation import Members, OperationOutcome
from engine import checkpoints
from engine.comparison import Difference
from engine.connections import connect
from engine.event_store import GroupCommitRecorder, open_recorder
from engine.operations import load, recording
from engine.projection import Projection
from engine.replay.records import Report, tell_nobody
from infra.errors import OperatorError
from infra.postgres.connection import explained
from infra.settings import Settings
from projections.analytics.rebuild import NAME as ANALYTICS
from projections.analytics.rebuild import AnalyticsMeans
from projections.like_counters import NAME as COUNTERS
from projections.like_counters import Counters
from workers.analytics import analytics_means
from workers.likes import open_counters
from workers.operations.action import Ended, Tools, say_no
from workers.operations.actions import carry_out


class NotDone(OperatorError):
    """The action was refused, or failed; the text says why."""


@dataclass(frozen=True)
class Operator:
    """Who acts, and on what; `stopping` ends what takes long."""

    actor: str
    url: str
    conn: Connection[TupleRow]
    recorder: GroupCommitRecorder
    models: dict[str, Projection]
    counters: Counters | None
    analytics: AnalyticsMeans
    stopping: Event = field(default_factory=Event)

    def projection(self, name: str) -> Projection:
        """The live projection of that name; raises UnknownName."""
        return self.models[require("projection", name, self.models)]

    def tools(
        self,
        report: Report = tell_nobody,
        agrees: Callable[[Difference], bool] = say_no,
        compared: Callable[[Difference], None] = tell_nobody,
    ) -> Tools:
        """What actions are carried out with here."""
        return Tools(
            self.url,
            self.models,
            report,
            self.stopping,
            counters=self.counters,
            analytics=self.analytics,
            agrees=agrees,
            compared=compared,
        )

    def do(
        self, action: str, name: str, parameters: Members, report: Report = tell_nobody
    ) -> Ended:
        """Carry out an action that ends by itself, and record it; raises NotDone."""
        return require_done(self.attempt(action, name, parameters, self.tools(report)))

    def attempt(self, action: str, name: str, parameters: Members, tools: Tools) -> Ended:
        """The same, however it ends."""
        if name not in (COUNTERS, ANALYTICS):
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
    """The end of what was done; raises NotDone for any other."""
    if ended.outcome is not OperationOutcome.DONE:
        told = ended.result.get("reason") or ended.result.get("error") or str(ended.outcome)
        raise NotDone(str(told))
    return ended


@contextmanager
def operating(settings: Settings) -> Iterator[Operator]:
    """The operator whose shell this is; raises DatabaseAway, whenever it goes away."""
    # Progress is on the screen; of the log only what is wrong belongs there.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    url = database_url(settings)
    try:
        with ExitStack() as stack:
            conn = stack.enter_context(connect(url, "operator"))
            _require_tables(conn)
            recorder = open_recorder(url)
            stack.callback(recorder.close)
            models = read_models().by_name()
            counters = open_counters(settings, stack)
            analytics = analytics_means(settings, url)
            yield Operator(operator_name(), url, conn, recorder, models, counters, analytics)
    except (psycopg.OperationalError, psycopg.InterfaceError, PersistenceError) as error:
        raise DatabaseAway(f"the database does not answer: {explained(error)}") from error


def _require_tables(conn: Connection[TupleRow]) -> None:
    """Raise DatabaseAway unless a process of this release has started on the database."""
    try:
        checkpoints.look(conn, "")
        conn.execute("SELECT FROM projections.replays LIMIT 0")
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseAway("its tables are not there yet: start Backlot on it once") from error
