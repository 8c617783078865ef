"""What an action of an operator works with, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from domain.operation import Members, Operation, OperationOutcome
from engine.comparison import Difference
from engine.projection import Projection
from engine.replay.records import Replay, Report, tell_nobody
from infra.errors import OperatorError
from projections.analytics.rebuild import AnalyticsMeans
from projections.like_counters import Counters, renewing
from projections.likes import Likes


class Ended(NamedTuple):
    """How an operation ended, and what came of it."""

    outcome: OperationOutcome
    result: Members


class OperationRefused(OperatorError):
    """It is not possible, and nothing was done; the text says why."""


def say_no(difference: Difference) -> bool:
    """For where nobody can be asked."""
    return False


@dataclass(frozen=True)
class Tools:
    """What actions are carried out with; `models` are the live projections by name.

    `report` hears how far a replay is. `counters` are those in Redis, where one is configured.
    `agrees` is asked whether what differs in the `analytics` is to be mended. `compared` hears
    what a comparison found, with the values, which are kept nowhere.
    """

    database_url: str
    models: Mapping[str, Projection]
    report: Report
    stopping: Event
    counters: Counters | None = None
    analytics: AnalyticsMeans | None = None
    agrees: Callable[[Difference], bool] = say_no
    compared: Callable[[Difference], None] = tell_nobody

    @property
    def likes(self) -> Likes | None:
        """What the counters count."""
        found = self.models.get(Likes.name)
        return found if isinstance(found, Likes) else None

    @property
    def after_switch(self) -> Callable[[Replay], None] | None:
        """What follows when another copy has become the live one."""
        if self.counters is None or self.likes is None:
            return None
        return renewing(self.database_url, self.likes, self.counters)


@dataclass(frozen=True)
class OperationContext:
    """An operation at work: with what it is done, and on which projection."""

    tools: Tools
    conn: Connection[TupleRow]
    operation: Operation
    projection: Projection

    @property
    def name(self) -> str:
        return self.projection.name

    def number(self, parameter: str) -> int | None:
        """A parameter that is a whole number, where it is given."""
        value = self.operation.parameters.get(parameter)
        return value if isinstance(value, int) else None

    def flag(self, parameter: str) -> bool:
        """Whether a parameter is given and true."""
        return self.operation.parameters.get(parameter) is True

    def text(self, parameter: str) -> str:
        """A parameter that is a text; empty where it is not given."""
        value = self.operation.parameters.get(parameter)
        return value if isinstance(value, str) else ""
