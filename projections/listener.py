"""Wakes every runner of the process when somebody appends: one LISTEN connection for all.

A notification that says `hurry` comes from somebody who waits for a read model: then runners also
cut short the pause in which they let events gather.
"""

from __future__ import annotations

from threading import Event, Thread

import structlog
from psycopg import Connection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from infra.cancellation import join
from projections.connecting import Backoff, connect
from projections.log import CHANNEL, HURRY

log = structlog.get_logger(__name__)

LOOK_UP_SECONDS = 0.5
# Notifications that arrive within this time after one are answered together.
GATHER_SECONDS = 0.005


class Listener:
    """Sets the subscribed events at each notification; a lost one costs only a poll's delay."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._subscribers: list[Event] = []
        self._hurried: list[Event] = []
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="listener", daemon=True)

    def subscribe(self) -> Event:
        """An event that is set when something was appended; to be called before `start`."""
        wake = Event()
        self._subscribers.append(wake)
        return wake

    def hurried(self) -> Event:
        """An event that is set when somebody waits for a read model; before `start`, too."""
        hurry = Event()
        self._hurried.append(hurry)
        return hurry

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended; safe before a start."""
        self._stopping.set()
        join(self._thread)

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                with connect(self._database_url, "listener") as conn:
                    self._listen(conn, backoff)
            except (OperationalError, InterfaceError) as error:
                log.warning("listener_disconnected", error=str(error))
                self._stopping.wait(backoff.next())

    def _listen(self, conn: Connection[TupleRow], backoff: Backoff) -> None:
        conn.execute(SQL("LISTEN {}").format(Identifier(CHANNEL)))
        backoff.reset()
        # Something may have been appended while nobody listened.
        self._wake_all()
        while not self._stopping.is_set():
            told = {note.payload for note in conn.notifies(timeout=LOOK_UP_SECONDS, stop_after=1)}
            if told:
                self._wake_all()
            if HURRY in told:
                for hurry in self._hurried:
                    hurry.set()
            elif told:
                self._stopping.wait(GATHER_SECONDS)

    def _wake_all(self) -> None:
        for wake in self._subscribers:
            wake.set()
