"""What a process keeps in memory of its answers: so many entries, the ones that were used last."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from engine.tail import LogTail
from infra.http.shapes import Position
from infra.metrics import counter
from projections.recommendations.recommender import UserRecommendations

MOST_OFFERS = 2_000

CACHE_READS = counter(
    "backlot_read_cache_reads",
    "Videos, likes of viewers, pages and answers that were wanted, by whether they were in memory.",
    ("kind", "outcome"),
)

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """The entries that were used last; so many at most."""

    def __init__(self, most: int, kind: str) -> None:
        self._most, self._crowded = most, most * 3 // 4
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._hits, self._misses = (CACHE_READS.labels(kind, each) for each in ("hit", "miss"))

    def get(self, key: K) -> V | None:
        (found,) = self.get_all((key,))
        return found

    def get_all(self, keys: Iterable[K]) -> list[V | None]:
        """Return the entries of the keys, in their order."""
        entries = self._entries
        found = [entries.get(key) for key in keys]
        if missing := found.count(None):
            self._misses.inc(missing)
        if hits := len(found) - missing:
            self._hits.inc(hits)
        # Which was used last matters only where there is little room left.
        if len(entries) > self._crowded:
            for key, value in zip(keys, found, strict=True):
                if value is not None:
                    entries.move_to_end(key)
        return found

    def peek(self, key: K) -> V | None:
        """Return the entry without counting it as used."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def drop(self, key: K) -> None:
        self._entries.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()

    def values(self) -> Iterable[V]:
        return self._entries.values()


class Listings(Generic[V]):
    """What any change of the catalog makes out of date: pages of lists, and rankings."""

    def __init__(self, kind: str, most: int, seconds: float = math.inf) -> None:
        """So many at most, and nothing for longer than so many seconds."""
        self._kept: Lru[Hashable, tuple[V, float]] = Lru(most, kind)
        self._seconds = seconds
        self.changes = 0
        """Another number whenever a list may have changed."""

    def get(self, key: Hashable) -> V | None:
        found = self._kept.get(key)
        return found[0] if found is not None and time.monotonic() < found[1] else None

    def put(self, key: Hashable, value: V, changes: int) -> None:
        """Keep what was read after so many changes, and before the next one."""
        if changes == self.changes:
            self._kept.put(key, (value, time.monotonic() + self._seconds))

    def drop(self, key: Hashable) -> None:
        self._kept.drop(key)

    def clear(self) -> None:
        self._kept.clear()
        self.changes += 1


class VideoPage(NamedTuple):
    """The videos of a page, and the cursor of the next one if there is one."""

    videos: Sequence[UUID]
    next_cursor: str | None


class CachedStats(NamedTuple):
    """The stats of a video as JSON, and what they include."""

    body: bytes
    includes: Position


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
