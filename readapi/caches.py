"""Lists that a process keeps in memory: which videos stand in them, and what is recommended."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from engine.tail import CACHE_READS, LogTail, Lru
from projections.recommendations.recommender import UserRecommendations

MOST_OFFERS = 2_000
# Ids of all lists together, and how many a segment counts as beside its own: about 12 MB.
MOST_LISTED, LEAST_LISTED = 100_000, 20


class Listed(NamedTuple):
    """A video in a list; the position is its place there."""

    video_id: UUID
    position: int


class ListSegment:
    """All videos of a list that stand there from a position (`since`) on, and `before` another."""

    __slots__ = "_ids", "_places", "before", "since"

    def __init__(self, rows: Sequence[tuple[UUID, int]], before: int, most: int) -> None:
        """`rows` were read before a position, newest first: all, if these are less than `most`."""
        self._ids = [video_id for video_id, _ in rows]
        # Negative, so that they ascend.
        self._places = array("q", (-position for _, position in rows))
        self.before = before
        self.since = rows[-1][1] if len(rows) == most else 0

    @property
    def size(self) -> int:
        return LEAST_LISTED + len(self._ids)

    def rows(self, before: int, limit: int) -> list[Listed]:
        """Return the first of those that lie before a position."""
        start = bisect_left(self._places, 1 - before)
        end = start + limit
        rows = zip(self._ids[start:end], self._places[start:end], strict=True)
        return [Listed(video_id, -place) for video_id, place in rows]


class VideoLists:
    """Which videos stand in which list: in long segments, so that most pages lie within one."""

    def __init__(self) -> None:
        self._segments: OrderedDict[tuple[Hashable, int], ListSegment] = OrderedDict()
        # Before which positions the segments of each list lie, ascending.
        self._ends: dict[Hashable, list[int]] = {}
        self._held = 0
        self._hits, self._misses = (CACHE_READS.labels("page", each) for each in ("hit", "miss"))
        self.changes = 0
        """Another number whenever a list may have changed."""

    def page(self, key: Hashable, before: int, limit: int) -> tuple[list[Listed], int | None]:
        """Return so many of a list before a position, newest first, as far as they are known.

        With the position before which the following ones have to be read, if there may be more.
        """
        found: list[Listed] = []
        while len(found) < limit and before > 0:
            segment = self._find(key, before)
            if segment is None:
                self._misses.inc()
                return found, before
            found += segment.rows(before, limit - len(found))
            before = segment.since
        self._hits.inc()
        return found, None

    def put(self, key: Hashable, segment: ListSegment, changes: int) -> None:
        """Keep what was read after so many changes, and before the next one."""
        if changes != self.changes:
            return
        if (key, segment.before) in self._segments:
            self._drop(key, segment.before)
        insort(self._ends.setdefault(key, []), segment.before)
        self._segments[key, segment.before] = segment
        self._held += segment.size
        while self._held > MOST_LISTED:
            self._drop(*next(iter(self._segments)))

    def change(self, position: int) -> None:
        """Forget of each list the segments in which the video of that position has its place."""
        self.changes += 1
        for key, ends in list(self._ends.items()):
            for end in ends[bisect_right(ends, position) :]:
                if self._segments[key, end].since <= position:
                    self._drop(key, end)

    def clear(self) -> None:
        """Forget all lists."""
        self.changes += 1
        self._segments.clear()
        self._ends.clear()
        self._held = 0

    def _find(self, key: Hashable, before: int) -> ListSegment | None:
        ends = self._ends.get(key, ())
        place = bisect_left(ends, before)
        if place == len(ends):
            return None
        segment = self._segments[key, ends[place]]
        if segment.since >= before:
            return None
        self._segments.move_to_end((key, segment.before))
        return segment

    def _drop(self, key: Hashable, end: int) -> None:
        self._held -= self._segments.pop((key, end)).size
        ends = self._ends[key]
        ends.remove(end)
        if not ends:
            del self._ends[key]


@dataclass(slots=True, eq=False)
class Offers:
    """What may be recommended to a user, and what of it not any more: seen, liked or dismissed.

    `looked_up` are the videos of which the log was asked; whatever happens later is told.
    """

    found: UserRecommendations
    looked_up: set[UUID] = field(default_factory=set)
    out: set[UUID] = field(default_factory=set)
    # What was told of them, and of which state: see `readapi.recommendations`.
    told: tuple[Hashable, Any] | None = None
    # When Redis was last seen to have them.
    checked: float = field(default_factory=time.monotonic)
    # How often the catalog and who may see videos had changed.
    catalog: int = 0
    visibility: int = 0

    def forget_lookups(self) -> None:
        """Have the log asked again."""
        self.looked_up.clear()
        self.out.clear()


class OfferCache:
    """Recommendations that were told; of any user, until something else may be known of them.

    Recommendations are cached in Redis for all processes: one process has them here as long, and
    looks now and then whether they were made anew or dropped.
    """

    def __init__(self, tail: LogTail, seconds: float) -> None:
        """What was seen in Redis counts for so many seconds."""
        self._tail, self._seconds = tail, seconds
        self._offers: Lru[str, Offers] = Lru(MOST_OFFERS, "recommendations")
        self._cleared = self._catalog = self._visibility = 0

    def get(self, user_id: str) -> Offers | None:
        offers = self._offers.get(user_id)
        if offers is None:
            return None
        if offers.found.with_newest and offers.catalog != self._catalog:
            self._offers.drop(user_id)
            return None
        if offers.visibility != self._visibility:
            offers.visibility = self._visibility
            offers.forget_lookups()
        return offers

    def is_checked(self, offers: Offers) -> bool:
        """Return whether Redis was seen to have these a moment ago."""
        return time.monotonic() - offers.checked < self._seconds

    def mark(self, user_id: str) -> Hashable:
        """Return what is another one when the user, or the catalog, has gone on."""
        return self._cleared, self._catalog, self._tail.own(user_id)

    def put(self, user_id: str, offers: Offers, mark: Hashable) -> None:
        """Keep what was read after the mark, if it still is the same."""
        if mark == self.mark(user_id):
            offers.catalog, offers.visibility = self._catalog, self._visibility
            self._offers.put(user_id, offers)

    def leave_out(self, user_id: str, video_id: UUID) -> None:
        """Recommend a video no more to a user."""
        if (offers := self._offers.peek(user_id)) is not None:
            offers.out.add(video_id)

    def drop(self, user_id: str) -> None:
        self._offers.drop(user_id)

    def catalog_changed(self, *, visibility: bool) -> None:
        """Have the newest videos found anew, and whether others may be seen if that has changed."""
        self._catalog += 1
        self._visibility += visibility

    def clear(self) -> None:
        self._offers.clear()
        self._cleared += 1
