"""All projections of one process: their threads and the listener that wakes them."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

from infra.codec import EventMapper
from projections.connecting import connect
from projections.install import install
from projections.listener import Listener
from projections.projection import Projection
from projections.runner import Runner, RunnerStatus


class ProjectionHost:
    """Runs each projection in a thread; across processes, one runner of each is active."""

    def __init__(
        self,
        database_url: str,
        projections: Sequence[Projection],
        *,
        batch_events: int = 5000,
        poll_seconds: float = 1.0,
        mapper: EventMapper | None = None,
    ) -> None:
        """`batch_events` bounds a transaction, `poll_seconds` the delay when a NOTIFY is lost."""
        self._database_url = database_url
        self._projections = projections
        self._listener = Listener(database_url)
        self._runners = [
            Runner(
                database_url,
                projection,
                wake=self._listener.subscribe(),
                hurry=self._listener.hurried() if projection.hurries else Event(),
                mapper=mapper or EventMapper(),
                batch_events=batch_events,
                poll_seconds=poll_seconds,
            )
            for projection in projections
        ]

    def follow(self, name: str) -> Event:
        """An event that is set whenever this projection has moved here; before `start`."""
        runner = next(r for r in self._runners if r.status().name == name)
        return runner.follow()

    def start(self) -> None:
        """Make the tables and begin; raises OperationalError when the database is not there."""
        with connect(self._database_url, "projections") as conn:
            install(conn, self._projections)
        self._listener.start()
        for runner in self._runners:
            runner.start()

    def stop(self) -> None:
        """Finish what is being applied, and end all threads."""
        for runner in self._runners:
            runner.ask_to_stop()
        for runner in self._runners:
            runner.stop()
        self._listener.stop()

    def status(self) -> list[RunnerStatus]:
        """What each runner of this process does; asks nobody, so it can be called often."""
        return [runner.status() for runner in self._runners]
