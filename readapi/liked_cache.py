"""What viewers like, in the memory of one process: all likes of those who asked last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.checkpoints import Pool
from engine.tail import LastSeen, Lru
from projections.likes import Likes

MOST_VIEWERS = 5_000
# Of one viewer; who likes more is asked about each time.
MOST_LIKES = 1_000
# Of all viewers that liked something while the read model was behind.
MOST_CHANGES = 50_000

NOTHING: Mapping[str, int] = MappingProxyType({})

ReadSome = Callable[[AsyncConnection[TupleRow], str, Sequence[UUID]], Awaitable[Collection[UUID]]]


class Liked(NamedTuple):
    """What a viewer likes, at which positions; up to where the read model has to come for it."""

    things: Mapping[UUID, int]
    behind: Mapping[str, int] = NOTHING


@dataclass(slots=True, eq=False)
class ViewerLikes:
    """What a viewer likes, by its id the position of the like; newest first."""

    things: dict[UUID, int]
    at: int


def likes_of_viewer(table: LiteralString, thing: LiteralString) -> bytes:
    """Return the statement that reads all likes of a viewer, and how far that is."""
    return f"""
    SELECT at.position, l.{thing}, l.position
    FROM (SELECT position FROM backlot_checkpoints
          WHERE kind = 'projection' AND subscription = %(likes)s) AS at
    LEFT JOIN (SELECT {thing}, position FROM {table} WHERE viewer = %(viewer)s
               ORDER BY position DESC LIMIT %(limit)s) AS l ON true
    """.encode()


class LikedCache:
    """The likes of the viewers who asked last; whoever follows the log tells it of each event."""

    def __init__(self, pool: Pool, kind: str, all_of: bytes, read_some: ReadSome) -> None:
        """`all_of` reads the likes of a viewer, `read_some` which of some things they like.

        `kind` names it in the metrics.
        """
        self._pool = pool
        self._all_of = all_of
        self._read_some = read_some
        self._viewers: Lru[str, ViewerLikes] = Lru(MOST_VIEWERS, kind)
        self._changes = LastSeen(MOST_CHANGES)
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
        found, whole = await self._read(viewer)
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
        found, whole = await self._read(viewer)
        return found if whole else None

    async def _read(self, viewer: str) -> tuple[Liked, bool]:
        """Return a viewer's likes and whether these are all; keep all that lack nothing."""
        epoch = self._epoch
        given = {"likes": Likes.name, "viewer": viewer, "limit": MOST_LIKES + 1}
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(self._all_of, given)
            rows = await cursor.fetchall()
        reached = rows[0][0] or 0
        likes = {thing: position for _, thing, position in rows if thing is not None}
        changed = self._changes.get(viewer)
        behind = {Likes.name: changed} if changed > reached else {}
        whole = len(likes) <= MOST_LIKES
        if whole and not behind and epoch == self._epoch:
            self._viewers.put(viewer, ViewerLikes(likes, reached))
        return Liked(likes, behind), whole
