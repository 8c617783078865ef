"""Reconciliation of the like counters in Redis with the read model, at a common position.

Only a fault of this program or of Redis makes a counter wrong; each drift is reported.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.installation import MigrationSet
from infra.metrics import counter, gauge
from projections.like_counters import FILL_SECONDS, Counter, Counters, counted
from projections.likes import Likes

log = structlog.get_logger(__name__)

TABLES = MigrationSet("projections", Path(__file__).with_name("sql"), "projections")
"""The table of the drift that was found; it belongs to no copy of the likes."""

WAIT_SECONDS = 5.0
POLL_SECONDS = 0.05

REPORT = """
INSERT INTO projections.like_drift
    (video_id, counter, counter_position, likes, position, repaired)
VALUES (%s, %s, %s, %s, %s, %s)
"""

COUNTER_DRIFT = gauge(
    "backlot_like_counters_drifting",
    "Like counters that differed from the read model when they were last compared.",
)
COUNTERS_DRIFTED = counter(
    "backlot_like_counters_drifted", "Like counters that were found to differ from the read model."
)


class CountersBehind(Exception):
    """What the read model has is not in the counters yet, so that nothing can be compared."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A counter that differs from the read model at the same position."""

    video_id: UUID
    counter: Counter
    truth: Counter


@dataclass(slots=True)
class Reconciled:
    """What a comparison came to."""

    compared: int = 0
    repaired: bool = True
    drifted: list[Drift] = field(default_factory=list)

    def compare(self, video_id: UUID, counter: Counter, truth: Counter) -> None:
        """Count a comparison, and note the counter if it differs."""
        self.compared += 1
        if counter.likes != truth.likes:
            self.drifted.append(Drift(video_id, counter, truth))


def reconcile(
    conn: Connection[TupleRow],
    likes: Likes,
    counters: Counters,
    *,
    repair: bool = True,
    wait_seconds: float = WAIT_SECONDS,
) -> Reconciled:
    """Compare every counter with the read model; report and, if `repair`, drop what differs.

    Raise CountersBehind when the publisher does not catch up within `wait_seconds`, and what
    Redis and the database raise when they are away.
    """
    result = Reconciled(repaired=repair)
    for videos in filter(None, counters.all_videos()):
        position, truth = counted(conn, likes, videos)
        _await(counters, position, wait_seconds)
        for video, held in zip(videos, counters.get(videos), strict=True):
            # A counter that was put since is newer than `truth`; one that is gone is not wrong.
            if held is not None and held.position <= position:
                result.compare(video, held, truth[video])
    result.drifted = _lasting(counters, result.drifted)
    for drift in result.drifted:
        _report(conn, drift, repair)
    if repair:
        # The next query, or the next like, puts the right counter.
        counters.drop([drift.video_id for drift in result.drifted])
    COUNTER_DRIFT.set(len(result.drifted))
    return result


def _lasting(counters: Counters, drifted: list[Drift]) -> list[Drift]:
    """Return the drifts that last: a fill that came too late takes itself back in a moment."""
    if not drifted:
        return []
    time.sleep(FILL_SECONDS)
    now = counters.get([drift.video_id for drift in drifted])
    return [drift for drift, held in zip(drifted, now, strict=True) if held == drift.counter]


def _await(counters: Counters, position: int, seconds: float) -> None:
    """Wait until what the read model has at this position is in the counters."""
    deadline = time.monotonic() + seconds
    while (counters.published() or 0) < position:
        if time.monotonic() > deadline:
            raise CountersBehind(
                f"The like counters have not reached position {position}; is a process with the "
                "role `projections` running, and does it reach Redis?"
            )
        time.sleep(POLL_SECONDS)


def _report(conn: Connection[TupleRow], drift: Drift, repair: bool) -> None:
    held, truth = drift.counter, drift.truth
    COUNTERS_DRIFTED.inc()
    log.error(
        "like_counter_drifted",
        videoId=str(drift.video_id),
        counter=held.likes,
        counterPosition=held.position,
        likes=truth.likes,
        position=truth.position,
        repaired=repair,
    )
    conn.execute(REPORT, (drift.video_id, *held, *truth, repair))
