"""What viewers like, and what is recommended to them, in the memory of one process.

Of those who asked last: all their likes, and the recommendations that they were told.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.checkpoints import Pool
from engine.tail import LastSeen, LogTail, Lru
from infra.batcher import BatchLoader
from projections.likes import Likes
from projections.recommendations.recommender import UserRecommendations

MOST_VIEWERS = 5_000
# So many viewers' likes are read with one statement: each of them keeps the event loop busy.
MOST_VIEWERS_AT_ONCE = 16
# Of one viewer; who likes more is asked about each time.
MOST_LIKES = 1_000
# Of all viewers that liked something while the read model was behind.
MOST_CHANGES = 50_000
MOST_OFFERS = 2_000

NOTHING: Mapping[str, int] = MappingProxyType({})

ReadSome = Callable[[AsyncConnection[TupleRow], str, Sequence[UUID]], Awaitable[Collection[UUID]]]


class Liked(NamedTuple):
    """What a viewer likes, at which positions; up to where the read model has to come for it."""

    things: Mapping[UUID, int]
    behind: Mapping[str, int] = NOTHING


class LoadedLikes(NamedTuple):
    """What a viewer likes, and whether that is all."""

    liked: Liked
    whole: bool


@dataclass(slots=True, eq=False)
class ViewerLikes:
    """What a viewer likes, by its id the position of the like; newest first."""

    things: dict[UUID, int]
    at: int


def likes_of_viewers(table: LiteralString, thing: LiteralString) -> bytes:
    """Return the statement that reads all likes of each viewer, and how far these are."""
    return f"""
    SELECT at.position, l.things, l.positions
    FROM (SELECT position FROM backlot_checkpoints
          WHERE kind = 'projection' AND subscription = %(likes)s) AS at
    RIGHT JOIN unnest(%(viewers)s::text[]) WITH ORDINALITY AS asked (viewer, place) ON true
    CROSS JOIN LATERAL (
        SELECT array_agg({thing} ORDER BY position DESC) AS things,
               array_agg(position ORDER BY position DESC) AS positions
        FROM (SELECT {thing}, position FROM {table} WHERE viewer = asked.viewer
              ORDER BY position DESC LIMIT %(limit)s) AS newest) AS l
    ORDER BY asked.place
    """.encode()


class LikedCache:
    """The likes of the viewers who asked last; whoever follows the log tells it of each event."""

    def __init__(self, pool: Pool, kind: str, all_of: bytes, read_some: ReadSome) -> None:
        """`all_of` reads the likes of viewers, `read_some` which of some things one of them likes.

        `kind` names it in the metrics.
        """
        self._pool = pool
        self._all_of = all_of
        self._read_some = read_some
        self._viewers: Lru[str, ViewerLikes] = Lru(MOST_VIEWERS, kind)
        self._changes = LastSeen(MOST_CHANGES)
        self._loader: BatchLoader[str, LoadedLikes] = BatchLoader(self._read, MOST_VIEWERS_AT_ONCE)
        # Another number whenever everything was dropped: what was read before is not kept.
        self._epoch = 0

    def begin(self, position: int) -> None:
        """Forget everything; what follows was recorded behind this position."""
        self._epoch += 1
        self._viewers.clear()
        self._changes.begin(position)

    def peek(self, viewer: str) -> ViewerLikes | None:
        """Return what is in memory of a viewer, without counting it as used."""
        return self._viewers.peek(viewer)

    def liked(self, viewer: str, thing: UUID, position: int) -> None:
        """Take in that a viewer likes something from this position on."""
        self._changes.put(viewer, position)
        known = self._viewers.peek(viewer)
        if known is not None and position > known.at:
            if len(known.things) >= MOST_LIKES:
                self._viewers.drop(viewer)
                return
            # Newest first.
            known.things = {thing: position, **known.things}
            known.at = position

    def unliked(self, viewer: str, thing: UUID, position: int) -> None:
        """Take in that a viewer likes something no longer."""
        self._changes.put(viewer, position)
        known = self._viewers.peek(viewer)
        if known is not None and position > known.at:
            known.things.pop(thing, None)
            known.at = position

    def removed(self, thing: UUID) -> None:
        """Take in that something is gone, which nobody likes any more."""
        for viewer in self._viewers.values():
            viewer.things.pop(thing, None)

    async def among(self, viewer: str, things: Collection[UUID]) -> Liked:
        """Return what the viewer likes, at least of these; raise what the database raises."""
        cached = self._viewers.get(viewer)
        if cached is not None:
            return Liked(cached.things)
        found, whole = await self._loader.ask(viewer)
        if whole:
            return found
        async with self._pool.connection() as conn:
            some = await self._read_some(conn, viewer, list(things))
        return found._replace(things=dict.fromkeys(some, 0))

    async def all(self, viewer: str) -> Liked | None:
        """Return all that a viewer likes, newest like first; None where that is too much."""
        cached = self._viewers.get(viewer)
        if cached is not None:
            return Liked(cached.things)
        found, whole = await self._loader.ask(viewer)
        return found if whole else None

    async def _read(self, viewers: Sequence[str]) -> dict[str, LoadedLikes]:
        """Return the likes of viewers; keep those of which all are there and nothing lacks."""
        epoch = self._epoch
        given = {"likes": Likes.name, "viewers": list(viewers), "limit": MOST_LIKES + 1}
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(self._all_of, given, prepare=True)
            rows = await cursor.fetchall()
        found = {}
        for viewer, (at, things, positions) in zip(viewers, rows, strict=True):
            reached = at or 0
            likes = dict(zip(things or (), positions or (), strict=True))
            changed = self._changes.get(viewer)
            behind = {Likes.name: changed} if changed > reached else {}
            whole = len(likes) <= MOST_LIKES
            if whole and not behind and epoch == self._epoch:
                self._viewers.put(viewer, ViewerLikes(likes, reached))
            found[viewer] = LoadedLikes(Liked(likes, behind), whole)
        return found


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
