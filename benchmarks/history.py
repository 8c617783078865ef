"""A history: who engaged with which videos when, as the product counts it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID


class Kind(StrEnum):
    """What a user did with a video."""

    VIEW = "view"
    LIKE = "like"
    UNLIKE = "unlike"
    COMMENT = "comment"
    SHARE = "share"


ENGAGEMENT = frozenset((Kind.VIEW, Kind.LIKE))
"""After these the product recommends the video to that user no more."""


@dataclass(frozen=True, slots=True)
class Film:
    """A video, and from when on it can be watched."""

    video_id: UUID
    title: str
    category: str | None
    owner: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """A user did something with a video; of a view, how many seconds were watched if known."""

    at: datetime
    user: str
    video_id: UUID
    kind: Kind = Kind.VIEW
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What happened, in order of time."""

    films: Sequence[Film]
    events: Sequence[Event]


def counted(events: Iterable[Event], repeat: timedelta) -> list[Event]:
    """Return what of these events, which are in order of time, the product counts.

    A user's view of a video within `repeat` of one that counts belongs to that one, with its
    seconds. A like that stands already is none, and neither is an unlike without a like.
    """
    kept: list[Event] = []
    views: dict[tuple[str, UUID], int] = {}
    liked: set[tuple[str, UUID]] = set()
    for event in events:
        key = event.user, event.video_id
        if event.kind is Kind.VIEW:
            place = views.get(key)
            if place is not None and event.at - kept[place].at < repeat:
                kept[place] = _prolonged(kept[place], event)
                continue
            views[key] = len(kept)
        elif event.kind is Kind.LIKE:
            if key in liked:
                continue
            liked.add(key)
        elif event.kind is Kind.UNLIKE:
            if key not in liked:
                continue
            liked.remove(key)
        kept.append(event)
    return kept


def _prolonged(view: Event, again: Event) -> Event:
    if again.seconds is None:
        return view
    return replace(view, seconds=(view.seconds or 0.0) + again.seconds)
