"""A runner's metrics; those of a runner that is not active are withdrawn, not left to grow old."""

from __future__ import annotations

from collections.abc import Sequence

from infra.metrics import counter, gauge
from projections.replaying.rows import Replay, ReplayState

PROJECTION_LAG_EVENTS = gauge(
    "backlot_projection_lag_events",
    "Positions between the end of the event store and the projection.",
    ("projection",),
)
PROJECTION_LAG_SECONDS = gauge(
    "backlot_projection_lag_seconds",
    "Age of the oldest event that the projection has not applied; 0 when it is caught up.",
    ("projection",),
)
PROJECTION_POSITION = gauge(
    "backlot_projection_position",
    "Position up to which the projection has applied the event store.",
    ("projection",),
)
PROJECTION_EVENTS = counter(
    "backlot_projection_events_applied",
    "Events applied by the projection; its rate is the projection's speed.",
    ("projection",),
)
PROJECTION_PARKED = gauge(
    "backlot_projection_parked",
    "Events set aside because the projection failed on them.",
    ("projection",),
)
PROJECTION_STATE = gauge(
    "backlot_projection_state",
    "1 for the state that the projection is in, 0 for the others.",
    ("projection", "state"),
)
REPLAY_STATE = gauge(
    "backlot_replay_state",
    "1 for the state of the projection's last replay, 0 for the others.",
    ("projection", "state"),
)
REPLAY_POSITION = gauge(
    "backlot_replay_position",
    "Position up to which the last replay has applied the event store.",
    ("projection",),
)
REPLAY_EVENTS = gauge(
    "backlot_replay_events",
    "Events that the last replay has applied.",
    ("projection",),
)
REPLAY_RATE = gauge(
    "backlot_replay_rate",
    "Positions per second that the last replay makes; 0 when it rests or has ended.",
    ("projection",),
)
REPLAY_SECONDS = gauge(
    "backlot_replay_seconds",
    "How long the last replay has taken, to its end or so far.",
    ("projection",),
)

PROGRESS = (
    PROJECTION_POSITION,
    PROJECTION_LAG_EVENTS,
    PROJECTION_LAG_SECONDS,
    PROJECTION_PARKED,
)
REPLAY = (
    REPLAY_POSITION,
    REPLAY_EVENTS,
    REPLAY_RATE,
    REPLAY_SECONDS,
)
PAUSED = "paused"


class Gauges:
    """The metrics of one projection in this process."""

    def __init__(self, name: str, states: Sequence[str]) -> None:
        self._name = name
        self._states = states

    def state(self, state: str) -> None:
        for other in self._states:
            PROJECTION_STATE.labels(self._name, other).set(other == state)

    def progress(self, position: int, lag_events: int, lag_seconds: float) -> None:
        PROJECTION_POSITION.labels(self._name).set(position)
        PROJECTION_LAG_EVENTS.labels(self._name).set(lag_events)
        PROJECTION_LAG_SECONDS.labels(self._name).set(lag_seconds)

    def applied(self, events: int) -> None:
        PROJECTION_EVENTS.labels(self._name).inc(events)

    def parked(self, events: int) -> None:
        PROJECTION_PARKED.labels(self._name).set(events)

    def replay(self, replay: Replay | None) -> None:
        """What became of the last replay, wherever it is worked on; nothing before the first."""
        if replay is None:
            return
        name, rests = self._name, replay.paused and not replay.finished
        present = PAUSED if rests else str(replay.state)
        for state in (*ReplayState, PAUSED):
            REPLAY_STATE.labels(name, state).set(state == present)
        REPLAY_POSITION.labels(name).set(replay.position)
        REPLAY_EVENTS.labels(name).set(replay.events_applied)
        REPLAY_RATE.labels(name).set(0 if replay.rests else replay.rate or 0)
        REPLAY_SECONDS.labels(name).set(replay.seconds)

    def withdraw(self) -> None:
        """Say nothing of progress, because another process may be making it."""
        for each in (*PROGRESS, *REPLAY):
            each.remove(self._name)
        for state in (*ReplayState, PAUSED):
            REPLAY_STATE.remove(self._name, state)
