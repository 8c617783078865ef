"""Which videos a batch of engagements brings together, and how strongly.

A viewer's engagements a and b with two videos bring these together by weight(a) · weight(b), which
decays from the later of the two times: the sum is the same whichever came first.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeVar

from projections.analytics.windows import start_of_hour
from projections.recommendations.weighing import EngagementKind, Weighing

MOST_HALVINGS = 1000.0

K = TypeVar("K")


class Engagement(NamedTuple):
    """A viewer watched or liked a video; ids are text, which hashes faster than UUID."""

    viewer: str
    video_id: str
    kind: EngagementKind
    at: datetime


@dataclass(slots=True)
class Mass:
    """A weight as it was at a time (seconds since 1970); it halves with each half-life."""

    weight: float
    as_of: float

    def add(self, weight: float, at: float, half_life: float) -> None:
        """Take in another weight of its own time; in which order makes no difference."""
        if at > self.as_of:
            self.weight, weight = weight, self.weight
            self.as_of, at = at, self.as_of
        self.weight += weight * 2.0 ** -min((self.as_of - at) / half_life, MOST_HALVINGS)


@dataclass(slots=True)
class Times:
    """When a viewer last watched and last liked a video."""

    watched: datetime | None = None
    liked: datetime | None = None

    def of(self, kind: EngagementKind) -> datetime | None:
        return self.liked if kind is EngagementKind.LIKED else self.watched

    def move(self, kind: EngagementKind, at: datetime) -> bool:
        """Go on to a later time; whether it was later."""
        before = self.of(kind)
        if before is not None and before >= at:
            return False
        if kind is EngagementKind.LIKED:
            self.liked = at
        else:
            self.watched = at
        return True

    def each(self) -> list[tuple[EngagementKind, datetime]]:
        both = (EngagementKind.WATCHED, self.watched), (EngagementKind.LIKED, self.liked)
        return [(kind, at) for kind, at in both if at is not None]


Key = tuple[str, str]
"""A viewer and a video."""
Pair = tuple[str, str]
"""Two videos, the lesser id first."""


@dataclass(slots=True)
class Viewer:
    """What is known of a viewer: the times of some videos, and which came last, in order."""

    times: dict[str, Times] = field(default_factory=dict)
    recent: list[tuple[datetime, str]] = field(default_factory=list)
    # How many new engagements there are in each hour.
    hours: dict[datetime, int] = field(default_factory=dict)

    def remember(self, video_id: str, most: int) -> None:
        """Put the video where its latest time belongs, and keep so many of the last."""
        self.recent = [each for each in self.recent if each[1] != video_id]
        latest = max(at for _, at in self.times[video_id].each())
        insort(self.recent, (latest, video_id))
        del self.recent[:-most]

    def others(self, video_id: str, most: int) -> list[str]:
        """The last videos beside this one, the latest first."""
        return [video for _, video in reversed(self.recent) if video != video_id][:most]


@dataclass(slots=True)
class PairingChange:
    """What a batch comes to: times that moved, what videos gained, what brings them together."""

    times: dict[Key, Times] = field(default_factory=dict)
    gained: dict[str, Mass] = field(default_factory=dict)
    pairs: dict[Pair, Mass] = field(default_factory=dict)


def add(masses: dict[K, Mass], key: K, weight: float, at: float, half_life: float) -> None:
    """Add to one of many masses."""
    mass = masses.get(key)
    if mass is None:
        masses[key] = Mass(weight, at)
    else:
        mass.add(weight, at, half_life)


class Pairing:
    """Takes engagements in one by one."""

    def __init__(self, weighing: Weighing, viewers: dict[str, Viewer]) -> None:
        """`viewers` know the times of all videos that come, and enough of the last ones."""
        self._weighing = weighing
        self._viewers = viewers
        self.change = PairingChange()

    def take(self, event: Engagement) -> None:
        """The first of its kind counts; each further one only moves the time."""
        viewer = self._viewers[event.viewer]
        times = viewer.times.setdefault(event.video_id, Times())
        is_new = times.of(event.kind) is None
        if not times.move(event.kind, event.at):
            return
        self.change.times[event.viewer, event.video_id] = times
        if is_new:
            self._count(viewer, event)
        viewer.remember(event.video_id, self._weighing.paired_with + 1)

    def _count(self, viewer: Viewer, event: Engagement) -> None:
        weighing, hour = self._weighing, start_of_hour(event.at)
        weight, at = weighing.of(event.kind), event.at.timestamp()
        add(self.change.gained, event.video_id, weight, at, weighing.half_life_seconds)
        viewer.hours[hour] = viewer.hours.get(hour, 0) + 1
        if viewer.hours[hour] <= weighing.paired_per_hour:
            for other in viewer.others(event.video_id, weighing.paired_with):
                self._pair(event.video_id, other, weight, at, viewer.times[other])

    def _pair(self, video_id: str, other: str, weight: float, at: float, times: Times) -> None:
        pair = (video_id, other) if video_id < other else (other, video_id)
        weighing = self._weighing
        for kind, then in times.each():
            both, later = weight * weighing.of(kind), max(at, then.timestamp())
            add(self.change.pairs, pair, both, later, weighing.half_life_seconds)
