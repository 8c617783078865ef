"""Applies stretches of the log to one copy of a projection: rows, ledger and position together.

The runner of a live copy and the replay of another one go through here, so that each event counts
exactly once in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.checkpoints import Checkpoint, Superseded, of_copy
from engine.connections import is_outage
from infra.codec import MAPPER, EventMapper
from infra.errors import describe
from projections import ledger
from projections.log import Log, LogWindow
from projections.poison import apply_one_by_one
from projections.projection import Batch, Projection, RangeProjection

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction came to: the copy's new position, events applied, whether some broke.

    `until` is where it stands now, which is before the broken event when that stopped it.
    """

    until: int
    applied: int
    broken: bool = False


class Applier:
    """Moves one copy along the log, a transaction at a time."""

    def __init__(
        self,
        projection: Projection,
        *,
        mapper: EventMapper = MAPPER,
        batch_events: int,
        place: Checkpoint | None = None,
        log: Log | None = None,
    ) -> None:
        """`place` and `log` are the copy's row and its topics, unless it is built in parts."""
        self.projection = projection
        self.place = place or of_copy(projection.schema, projection.version)
        self.log = log or Log(projection.events, mapper=mapper, batch_events=batch_events)
        self._batch_events = batch_events

    def advance(self, conn: Connection[TupleRow], before: int, head: int) -> Step:
        """Read and take in the next window after `before`, at most up to `head`; see `take_in`."""
        return self.take_in(conn, before, self.read(conn, before, head))

    def read(self, conn: Connection[TupleRow], before: int, head: int) -> LogWindow:
        """Return the next window after `before`, at most up to `head`.

        Without events where the projection reads the log by itself.
        """
        if isinstance(self.projection, RangeProjection):
            return LogWindow([], min(head, before + self._batch_events))
        return self.log.read(conn, before, head)

    def take_in(self, conn: Connection[TupleRow], before: int, window: LogWindow) -> Step:
        """Apply a window.

        An event that can't be applied is parked, or stops the copy, by the projection's policy.
        Raise Superseded when the copy is no longer running at `before`, and what the database
        raises when it is away.
        """
        if isinstance(self.projection, RangeProjection):
            return self._take_in_range(conn, self.projection, before, window.until)
        try:
            return self.apply(conn, before, window, self.decode(window))
        except Superseded:
            raise
        except Exception as error:
            if is_outage(error):
                raise
            return self.sort_out(conn, before, window, error)

    def decode(self, window: LogWindow) -> Batch:
        """The window's events in their newest shape; raises MapperDeserialisationError."""
        return [self.log.decode(stored) for stored in window.events]

    def apply(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, batch: Batch
    ) -> Step:
        """Apply a window as a whole; raises whatever the projection does on an event it can't."""
        projection = self.projection
        with conn.cursor(binary=True) as cursor:
            if not batch:
                self.place.move(cursor, before, window.until)
                return Step(window.until, 0)
            with conn.transaction():
                self.place.hold(cursor, before)
                projection.apply(batch, cursor)
                ledger.add(cursor, projection.schema, [recorded.position for recorded in batch])
                self.place.move(cursor, before, window.until)
        return Step(window.until, len(batch))

    def sort_out(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, error: Exception
    ) -> Step:
        """Apply a window that broke as a whole event by event, each by the projection's policy."""
        name = self.projection.name
        log.warning("projection_batch_failed", projection=name, error=describe(error))
        result = apply_one_by_one(conn, self.projection, self.place, self.log, before, window)
        until = window.until if result.stopped_at is None else result.stopped_at - 1
        return Step(until, len(result.applied), broken=True)

    def _take_in_range(
        self, conn: Connection[TupleRow], projection: RangeProjection, before: int, until: int
    ) -> Step:
        try:
            with conn.transaction(), conn.cursor(binary=True) as cursor:
                self.place.hold(cursor, before)
                projection.apply_range(before, until, cursor)
                ledger.add_range(cursor, projection.schema, before, until)
                self.place.move(cursor, before, until)
        except Superseded:
            raise
        except Exception as error:
            if is_outage(error):
                raise
            # Its statement takes any event; whatever breaks it, no single event is to blame.
            with conn.transaction(), conn.cursor(binary=True) as cursor:
                self.place.stop(cursor, before, culprit=before + 1, error=describe(error))
            log.exception("projection_stopped", projection=projection.name, position=before + 1)
            return Step(before, 0, broken=True)
        return Step(until, until - before)
