"""What counts, in one place: what a message becomes, which views count, how long was watched.

The rules look at a session's events in order of time, never of arrival: the counts are the same
whatever order they came in, however often, and cut into whatever batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, NamedTuple
from uuid import UUID

from infra.integration import topics

VIEW, LIKE, COMMENT, WATCH_TIME, SHARE = "view", "like", "comment", "watch_time", "share"

# What lies further ahead than clocks go wrong would stand in every ranking until its time comes.
AHEAD = timedelta(days=1)
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)

Metadata = Mapping[str, Any]


class NotCountable(ValueError):
    """A message says something that can't be counted."""


class Row(NamedTuple):
    """What a message becomes; of a view or of watch time the rules have yet to see its session."""

    event_id: UUID
    video_id: UUID
    user_id: str | None
    event_type: str
    at: datetime
    metadata: Metadata
    session: UUID | None = None
    # Seconds, as the player reports them.
    reported: float = 0.0


class Play(NamedTuple):
    """A view or a report of watch time in the history of its session; sorts by time."""

    at: datetime
    # A view before a report of the same instant.
    is_report: bool
    event_id: UUID
    user_id: str | None
    reported: float = 0.0


class Decision(NamedTuple):
    """What is counted of a view (0 or 1) or of a report (seconds), and whether it is the owner's.

    The owner's own is kept, and is no part of trending.
    """

    counted: float
    own: bool


@dataclass(frozen=True, slots=True)
class Video:
    """What the rules ask of a video; None is what nobody knows."""

    owner: str | None = None
    duration_seconds: float | None = None


@dataclass(slots=True)
class Session:
    """What the rules remember of a session; `watched` is in seconds."""

    first_view: datetime | None = None
    counted_view: datetime | None = None
    last_report: datetime | None = None
    watched: float = 0.0

    def decide(self, play: Play, video: Video, repeat: timedelta) -> Decision:
        """What counts of the next event of the session, in order of time."""
        own = play.user_id is not None and play.user_id == video.owner
        if play.is_report:
            return Decision(self._watch(play, video.duration_seconds), own)
        return Decision(float(self._view(play.at, repeat)), own)

    def _view(self, at: datetime, repeat: timedelta) -> bool:
        """A view counts unless one that counts was less than `repeat` before it."""
        if self.first_view is None:
            self.first_view = at
        counts = self.counted_view is None or at - self.counted_view >= repeat
        if counts:
            self.counted_view = at
        return counts

    def _watch(self, play: Play, duration: float | None) -> float:
        """Not more than the time that went by since the report before, or since the first view.

        A session without a view has watched nothing, and none has watched more than the video's
        length: who sees it again has another session.
        """
        since, self.last_report = self.last_report, play.at
        if self.first_view is None:
            return 0.0
        passed = play.at - max(since or self.first_view, self.first_view)
        seconds = min(play.reported, passed.total_seconds())
        if duration is not None:
            seconds = min(seconds, max(0.0, duration - self.watched))
        self.watched += seconds
        return seconds


def metadata_of(row: Row, decision: Decision) -> Metadata:
    """What is kept beside a view or a report of watch time."""
    if row.event_type == VIEW:
        counts = bool(decision.counted)
        return {"counts": counts, "own": decision.own, "session": str(row.session)}
    return {
        "seconds": decision.counted,
        "own": decision.own,
        "session": str(row.session),
        "reported": row.reported,
    }


def row_of(topic: str, id_: UUID, value: Mapping[str, Any], now: datetime) -> Row:
    """What a message of one of the TOPICS becomes; raises NotCountable."""
    kind, time_field, details = KINDS[topic]
    try:
        at = _time(value[time_field], now)
        row = Row(id_, UUID(value["videoId"]), _text(value["userId"]), kind, at, {})
        return details(row, value)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NotCountable(f"{type(error).__name__}: {error}") from error


def _time(told: str, now: datetime) -> datetime:
    at = datetime.fromisoformat(told)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    if not EARLIEST <= at <= now + AHEAD:
        raise ValueError(f"{told} is not a time when this can have happened")
    return at


def _text(told: str | None) -> str | None:
    if told is not None and "\x00" in told:
        raise ValueError("NUL is not a character that can be stored")
    return told


def _delta(delta: int) -> Callable[[Row, Mapping[str, Any]], Row]:
    def changed(row: Row, value: Mapping[str, Any]) -> Row:
        return row._replace(metadata={"delta": delta})

    return changed


def _view(row: Row, value: Mapping[str, Any]) -> Row:
    return row._replace(session=UUID(value["sessionId"]))


def _watch(row: Row, value: Mapping[str, Any]) -> Row:
    seconds = float(value["seconds"])
    if not isfinite(seconds) or seconds < 0:
        raise ValueError(f"nobody can watch for {seconds} seconds")
    return row._replace(session=UUID(value["sessionId"]), reported=seconds)


def _share(row: Row, value: Mapping[str, Any]) -> Row:
    channel = _text(value.get("channel"))
    return row._replace(metadata={} if channel is None else {"channel": channel})


KINDS: Mapping[str, tuple[str, str, Callable[[Row, Mapping[str, Any]], Row]]] = {
    topics.VIDEO_VIEWED: (VIEW, "timestamp", _view),
    topics.VIDEO_WATCH_TIME: (WATCH_TIME, "timestamp", _watch),
    topics.VIDEO_SHARED: (SHARE, "timestamp", _share),
    topics.VIDEO_LIKED: (LIKE, "ts", _delta(1)),
    topics.VIDEO_UNLIKED: (LIKE, "ts", _delta(-1)),
    topics.COMMENT_CREATED: (COMMENT, "ts", _delta(1)),
    topics.COMMENT_DELETED: (COMMENT, "ts", _delta(-1)),
}
TOPICS = frozenset(KINDS)
