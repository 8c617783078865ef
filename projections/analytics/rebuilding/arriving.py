"""What was recorded and is not stored yet is on its way: how much has to be there, and the wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.rebuilding import checking, places
from projections.analytics.rebuilding.places import NotTakenIn
from projections.proving.compare import Difference

LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class AnalyticsMeans:
    """Where the analytics are kept, and how they are counted.

    `repeat` is how long a view stands for its repetitions, `arrival_seconds` how long is waited for
    what is on its way, and `settle_seconds` without change after which nothing more is expected.
    """

    url: str
    repeat: timedelta
    arrival_seconds: float = 60.0
    settle_seconds: float = 10.0


class Arrival:
    """What came before `goal`: told by the keeper's place, or else waited for until Kafka has
    brought it."""

    def __init__(
        self,
        log_conn: Connection[TupleRow],
        conn: Connection[TupleRow],
        means: AnalyticsMeans,
        goal: int,
    ) -> None:
        self._log_conn, self._conn = log_conn, conn
        self._means = means
        self._goal = goal

    def due(self) -> int:
        """The position up to which likes and comments have to be stored."""
        found = self._taken()
        return self._goal if found.by_kafka else found.position

    def await_relay(self, waiting: Callable[[], None]) -> None:
        """Return once what was recorded before the start is published, where Kafka brings it.

        `waiting` is called now and then. Raises NotTakenIn.
        """
        deadline = time.monotonic() + self._means.arrival_seconds
        while self._taken().by_kafka:
            if not places.is_active(self._conn, places.ROWS):
                raise NotTakenIn(
                    "No process takes in what Kafka brings: start one with the role "
                    "`consumers`, and ask again."
                )
            relayed = places.relayed(self._log_conn)
            if relayed >= self._goal:
                return
            if time.monotonic() > deadline:
                raise NotTakenIn(
                    f"The relay is at position {relayed} of {self._goal}: what was recorded is "
                    "not in Kafka yet. See that Kafka and a process with the role `relay` run."
                )
            waiting()
            time.sleep(LOOK_SECONDS)

    def misses(self, found: Difference) -> bool:
        """Whether something is missing that Kafka may still bring."""
        missing = any(table.missing for table in found.tables if table.table == checking.ROWS)
        return missing and self._taken().by_kafka

    def give_up(self, found: Iterable[Difference]) -> None:
        """What keeps changing was waited for long enough; raises NotTakenIn where it is coming."""
        if any(self.misses(each) for each in found):
            raise NotTakenIn(
                "Events are still coming in through Kafka: wait until the lag of the consumer "
                f"`{places.ROWS}` is 0 (`backlot_consumer_lag_messages`), and ask again."
            )

    def _taken(self) -> places.Taken:
        return places.taken(self._conn, places.ROWS)
