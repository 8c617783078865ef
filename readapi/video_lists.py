"""Which videos stand in which list, in the memory of one process."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple
from uuid import UUID

from engine.tail import CACHE_READS

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
