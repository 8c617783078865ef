"""The rules of counting: what a message becomes, which views count, how long a viewer watched, and
how much of that one viewer brings to trending.

The rules look at the events of a session, and of a viewer of a video, in order of time, never of
arrival: the counts are the same whatever order they came in, however often, and cut into whatever
batches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from projections import integration_events

VIEW, LIKE, COMMENT, WATCH_TIME, SHARE = "view", "like", "comment", "watch_time", "share"

LONGEST_SECONDS = 86_400
"""Positions in a video are told up to here."""

# What lies further ahead than clocks go wrong would stand in every ranking until its time comes.
AHEAD = timedelta(days=1)

CANONICAL = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

T = TypeVar("T")

Metadata = Mapping[str, Any]
Verdict = tuple["Row", Metadata]
"""A row, and the metadata that it is stored with."""
Details = Callable[[Mapping[str, Any]], tuple[Metadata, str | None, float, float | None]]
"""What a message says beside the rest: metadata, session, reported seconds, position."""


class NotCountable(ValueError):
    """A message says something that can't be counted."""


class Row(NamedTuple):
    """What a message becomes; of a view or of watch time the rules have yet to see its session.

    Ids are kept as text, which compares and hashes far faster than UUID; times are in UTC.
    """

    event_id: str
    video_id: str
    user_id: str | None
    event_type: str
    at: datetime
    metadata: Metadata
    session: str | None = None
    # Seconds, as the player reports them, and where in the video these began.
    reported: float = 0.0
    position: float | None = None


class Change(NamedTuple):
    """A stored row that counts otherwise now, and its metadata before."""

    row: Row
    before: Metadata


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator sets.

    `repeat` is how long a view of a session stands for its repetitions. In trending count at most
    `viewer_comments` comments and `viewer_seconds` of watch time of one viewer on one video.
    """

    repeat: timedelta = timedelta(hours=1)
    viewer_comments: int = 3
    viewer_seconds: float = 300 * 60.0

    def trending_comments(self, standing: int) -> int:
        """Return how many of a viewer's standing comments on a video count in trending."""
        return max(0, min(standing, self.viewer_comments))

    def trending_seconds(self, before: float, seconds: float) -> float:
        """Return how many of these seconds count in trending, after so many before them."""
        return min(seconds, max(0.0, self.viewer_seconds - before))


def in_order(row: Row) -> tuple[datetime, str, str]:
    """Return the sort key of a session's events: by time, and at one instant a view first."""
    return row.at, row.event_type, row.event_id


@dataclass(frozen=True, slots=True)
class WatchedVideo:
    """What the rules ask of a video; None where it is not known."""

    owner: str | None = None
    duration_seconds: float | None = None


UNKNOWN = WatchedVideo()
KnownVideos = Mapping[str, WatchedVideo]
"""What the rules ask of videos, by their ids."""


class Span:
    """That of which events lie between two times, which are both None before there is one."""

    earliest: datetime | None
    latest: datetime | None

    def extend(self, first: datetime, last: datetime) -> None:
        """Note that there are events from the one time to the other."""
        if self.earliest is None or first < self.earliest:
            self.earliest = first
        if self.latest is None or last > self.latest:
            self.latest = last


def spans_since(known: Mapping[T, Span], since: datetime) -> list[tuple[T, datetime, datetime]]:
    """Return those with events since a time, each with the first and last time to look at."""
    return [
        (key, max(each.earliest, since), each.latest)
        for key, each in known.items()
        if each.earliest is not None and each.latest is not None and each.latest >= since
    ]


@dataclass(slots=True)
class Session(Span):
    """What the rules remember of a session; `watched` is in seconds.

    Its events lie between `earliest` and `latest`, which are both None before there is one.
    """

    first_view: datetime | None = None
    counted_view: datetime | None = None
    last_report: datetime | None = None
    watched: float = 0.0
    earliest: datetime | None = None
    latest: datetime | None = None
    # Of the first report with a position that counts.
    first_position: datetime | None = None

    def as_before(self, since: datetime, later: Iterable[Row]) -> Session:
        """Return the session as it was before a time; `later` are the rows since then."""
        if self.earliest is None or self.earliest >= since:
            return Session(earliest=self.earliest, latest=self.latest)
        times = (self.first_view, self.counted_view, self.last_report, self.first_position)
        first, counted, report, position = (
            at if at is not None and at < since else None for at in times
        )
        watched = self.watched - sum(row.metadata.get("seconds", 0.0) for row in later)
        span = self.earliest, self.latest
        return Session(first, counted, report, max(0.0, watched), *span, position)

    def decide(self, row: Row, video: WatchedVideo, rules: Rules) -> Metadata:
        """Return what counts of the session's next event in order: its row's metadata.

        What the owner does is stored, and is no part of trending. A viewer without a name is its
        session; of one with a name, `Participant` says what counts in trending.
        """
        own = row.user_id is not None and row.user_id == video.owner
        if row.event_type == VIEW:
            return {"counts": self._view(row.at, rules.repeat), "own": own, "session": row.session}
        before = self.watched
        seconds = self._watch(row, video.duration_seconds)
        metadata: dict[str, Any] = {
            "seconds": seconds,
            "own": own,
            "session": row.session,
            "reported": row.reported,
        }
        if row.position is not None:
            metadata["position"] = row.position
            if seconds > 0 and self.first_position is None:
                self.first_position = row.at
                metadata["first"] = True
        if row.user_id is None and self.watched > rules.viewer_seconds:
            return _trending(metadata, seconds, rules.trending_seconds(before, seconds))
        return metadata

    def _view(self, at: datetime, repeat: timedelta) -> bool:
        """Return whether a view counts: not if one that counts was less than `repeat` before it."""
        if self.first_view is None:
            self.first_view = at
        counts = self.counted_view is None or at - self.counted_view >= repeat
        if counts:
            self.counted_view = at
        return counts

    def _watch(self, row: Row, duration: float | None) -> float:
        """Return the seconds that count: at most the time since the report before, or the view.

        A session without a view has watched nothing, and no session has watched more than the
        video's length: a viewer who sees the video again has another session.
        """
        since, self.last_report = self.last_report, row.at
        if self.first_view is None:
            return 0.0
        passed = row.at - max(since or self.first_view, self.first_view)
        seconds = min(row.reported, passed.total_seconds())
        if duration is not None:
            seconds = min(seconds, max(0.0, duration - self.watched))
        self.watched += seconds
        return seconds


@dataclass(slots=True)
class Participant(Span):
    """What the rules remember of a viewer who has a name, and of one video: the comments that
    stand, and the seconds watched, without those of the owner.

    All its events lie between `earliest` and `latest`; the last comment was at `commented_at`, the
    last report of watch time at `reported_at`. All are None before there is one.
    """

    comments: int = 0
    seconds: float = 0.0
    commented_at: datetime | None = None
    reported_at: datetime | None = None
    earliest: datetime | None = None
    latest: datetime | None = None

    def is_late(self, row: Row) -> bool:
        """Return whether an event is not later than all of its kind that are known."""
        if row.event_type == LIKE:
            return False
        last = self.commented_at if row.event_type == COMMENT else self.reported_at
        return last is not None and row.at <= last

    def as_before(self, since: datetime, later: Iterable[Row]) -> Participant:
        """Return the participant as it was before a time; `later` are the rows since then."""
        if self.earliest is None or self.earliest >= since:
            return Participant(earliest=self.earliest, latest=self.latest)
        comments, seconds = self.comments, self.seconds
        for row in later:
            if row.event_type == COMMENT:
                comments -= row.metadata["delta"]
            elif row.event_type == WATCH_TIME and not row.metadata["own"]:
                seconds -= row.metadata["seconds"]
        times = self.commented_at, self.reported_at
        return Participant(comments, max(0.0, seconds), *times, self.earliest, self.latest)

    def decide(self, row: Row, metadata: Metadata, video: WatchedVideo, rules: Rules) -> Metadata:
        """Return the metadata of the viewer's next event on the video, in order: with `trending`
        where less counts in trending than elsewhere.

        `metadata` are what counts elsewhere, of watch time as `Session` has decided.
        """
        if row.event_type == WATCH_TIME:
            self.reported_at = row.at
            if metadata["own"]:
                return metadata
            before, seconds = self.seconds, metadata["seconds"]
            self.seconds = before + seconds
            if self.seconds <= rules.viewer_seconds:
                return metadata
            return _trending(metadata, seconds, rules.trending_seconds(before, seconds))
        delta: int = metadata["delta"]
        counts = delta if row.event_type == LIKE else self._comment(row.at, delta, rules)
        return _trending(metadata, delta, 0 if row.user_id == video.owner else counts)

    def _comment(self, at: datetime, delta: int, rules: Rules) -> int:
        self.commented_at = at
        before = rules.trending_comments(self.comments)
        self.comments += delta
        return rules.trending_comments(self.comments) - before


def _trending(metadata: Metadata, whole: float, counts: float) -> Metadata:
    return metadata if counts == whole else {**metadata, "trending": counts}


def columns(rows: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """Return the columns of rows, of which there is at least one."""
    return [list(column) for column in zip(*rows, strict=True)]


def row_of(topic: str, id_: UUID, value: Mapping[str, Any], now: datetime) -> Row:
    """Return what a message of one of the TOPICS becomes; raise NotCountable."""
    kind, time_field, details = KINDS[topic]
    try:
        at = _time(value[time_field], now)
        user = _text(value["userId"])
        return Row(str(id_), _id(value["videoId"]), user, kind, at, *details(value))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise NotCountable(f"{type(error).__name__}: {error}") from error


def _id(text: str) -> str:
    """Return a UUID as it is written everywhere here."""
    return text if CANONICAL.fullmatch(text) else str(UUID(text))


def _time(text: str, now: datetime) -> datetime:
    at = datetime.fromisoformat(text)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    if at > now + AHEAD:
        raise ValueError(f"{text} is not a time when this can have happened")
    return at


def _text(text: str | None) -> str | None:
    if text is not None and "\x00" in text:
        raise ValueError("NUL is not a character that can be stored")
    return text


def _delta(delta: int) -> Details:
    metadata = {"delta": delta}
    return lambda value: (metadata, None, 0.0, None)


def _view(value: Mapping[str, Any]) -> tuple[Metadata, str | None, float, None]:
    return {}, _id(value["sessionId"]), 0.0, None


def _watch(value: Mapping[str, Any]) -> tuple[Metadata, str | None, float, float | None]:
    seconds = float(value["seconds"])
    if not isfinite(seconds) or seconds < 0:
        raise ValueError(f"nobody can watch for {seconds} seconds")
    position = value.get("position")
    if position is not None and not 0 <= (position := float(position)) <= LONGEST_SECONDS:
        raise ValueError(f"no video is watched from {position} seconds on")
    return {}, _id(value["sessionId"]), seconds, position


def _share(value: Mapping[str, Any]) -> tuple[Metadata, str | None, float, None]:
    channel = _text(value.get("channel"))
    return {} if channel is None else {"channel": channel}, None, 0.0, None


KINDS: Mapping[str, tuple[str, str, Details]] = {
    integration_events.VIDEO_VIEWED: (VIEW, "timestamp", _view),
    integration_events.VIDEO_WATCH_TIME: (WATCH_TIME, "timestamp", _watch),
    integration_events.VIDEO_SHARED: (SHARE, "timestamp", _share),
    integration_events.VIDEO_LIKED: (LIKE, "ts", _delta(1)),
    integration_events.VIDEO_UNLIKED: (LIKE, "ts", _delta(-1)),
    integration_events.COMMENT_CREATED: (COMMENT, "ts", _delta(1)),
    integration_events.COMMENT_DELETED: (COMMENT, "ts", _delta(-1)),
}
TOPICS = frozenset(KINDS)
