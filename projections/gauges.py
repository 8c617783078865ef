"""A runner's metrics; those of a runner that is not active are withdrawn, not left to grow old."""

from __future__ import annotations

from collections.abc import Sequence

from infra import metrics
from projections.replaying.rows import Replay, ReplayState

PROGRESS = (
    metrics.PROJECTION_POSITION,
    metrics.PROJECTION_LAG_EVENTS,
    metrics.PROJECTION_LAG_SECONDS,
    metrics.PROJECTION_PARKED,
)
REPLAY = (
    metrics.REPLAY_POSITION,
    metrics.REPLAY_EVENTS,
    metrics.REPLAY_RATE,
    metrics.REPLAY_SECONDS,
)
PAUSED = "paused"


class Gauges:
    """The metrics of one projection in this process."""

    def __init__(self, name: str, states: Sequence[str]) -> None:
        self._name = name
        self._states = states

    def state(self, state: str) -> None:
        for other in self._states:
            metrics.PROJECTION_STATE.labels(self._name, other).set(other == state)

    def progress(self, position: int, lag_events: int, lag_seconds: float) -> None:
        metrics.PROJECTION_POSITION.labels(self._name).set(position)
        metrics.PROJECTION_LAG_EVENTS.labels(self._name).set(lag_events)
        metrics.PROJECTION_LAG_SECONDS.labels(self._name).set(lag_seconds)

    def applied(self, events: int) -> None:
        metrics.PROJECTION_EVENTS.labels(self._name).inc(events)

    def parked(self, events: int) -> None:
        metrics.PROJECTION_PARKED.labels(self._name).set(events)

    def replay(self, replay: Replay | None) -> None:
        """What became of the last replay, wherever it is worked on; nothing before the first."""
        if replay is None:
            return
        name, rests = self._name, replay.paused and not replay.finished
        present = PAUSED if rests else str(replay.state)
        for state in (*ReplayState, PAUSED):
            metrics.REPLAY_STATE.labels(name, state).set(state == present)
        metrics.REPLAY_POSITION.labels(name).set(replay.position)
        metrics.REPLAY_EVENTS.labels(name).set(replay.events_applied)
        metrics.REPLAY_RATE.labels(name).set(0 if replay.rests else replay.rate or 0)
        metrics.REPLAY_SECONDS.labels(name).set(replay.seconds)

    def withdraw(self) -> None:
        """Say nothing of progress, because another process may be making it."""
        for gauge in (*PROGRESS, *REPLAY):
            gauge.remove(self._name)
        for state in (*ReplayState, PAUSED):
            metrics.REPLAY_STATE.remove(self._name, state)
