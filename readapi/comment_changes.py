"""What happened to comments lately, for those who follow videos; see `live`."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple
from uuid import UUID

import orjson

from domain.comment import Comment
from domain.comment_likes import CommentLikes
from engine.checkpoints import Pool
from engine.event_store import EVENTS
from engine.log import topics_of
from engine.tail import LogTail, TailEvent, TailTelemetry
from infra.http.shapes import Position

MOST_CHANGES = 10_000
"""So many changes of comments, and counts of so many, are kept for those who come back."""
MOST_RECALLED = 2_000
"""So many positions behind what is kept are read again, from the log."""

APPEARED, REPLIED, EDITED, TRANSLATED, COUNTED, REMOVED = (
    *("comment", "reply", "comment-edited"),
    *("comment-translated", "comment-counts", "comment-removed"),
)
# What happened to a comment meanwhile is told as one event, which shows all of it.
MOST_NEWS_FIRST = (APPEARED, REPLIED, EDITED, TRANSLATED, COUNTED)
# What is not here, nobody but those whom it concerns may see.
KINDS: Mapping[str, str] = {
    topic: kind
    for kind, events in (
        (APPEARED, (Comment.Posted, Comment.Approved, Comment.Restored)),
        (EDITED, (Comment.Edited,)),
        (TRANSLATED, (Comment.LanguageDetected, Comment.Translated)),
        (TRANSLATED, (Comment.TranslationFailed, Comment.TranslationSkipped)),
        (REMOVED, (Comment.Deleted, Comment.Withheld, Comment.Removed)),
    )
    for event in events
    for topic in topics_of(event)
}
LIKES = frozenset(topic for event in CommentLikes.events() for topic in topics_of(event))
TOPICS = LIKES.union(KINDS)
# What of these changes how many replies another comment has.
MOVES = frozenset(topic for topic, kind in KINDS.items() if kind in (APPEARED, REMOVED))
RECALL = f"""
SELECT notification_id, originator_id, topic, state FROM {EVENTS}
WHERE notification_id > %b AND notification_id <= %b AND topic = ANY (%b)
ORDER BY notification_id
""".encode()


class CommentChange(NamedTuple):
    """What happened to a comment that everybody sees, or saw until then."""

    position: int
    video_id: UUID
    comment_id: UUID
    kind: str


def changes_in(event: TailEvent) -> Iterator[CommentChange]:
    """Yield what an event changes of comments: of its own, and the counts of another one."""
    fields, topic = event.fields, event.topic
    counted = fields["comment_id"] if topic in LIKES else fields.get("parent_id")
    kind = KINDS.get(topic)
    if kind is not None:
        if kind == APPEARED and counted is not None:
            kind = REPLIED
        yield CommentChange(event.position, UUID(fields["video_id"]), event.stream_id, kind)
    if counted is not None and (topic in LIKES or topic in MOVES):
        yield CommentChange(event.position, UUID(fields["video_id"]), UUID(counted), COUNTED)


by_position = attrgetter("position")

ChangesByVideo = Mapping[UUID, Sequence[CommentChange]]


class CommentChanges:
    """The latest changes of comments, in order; a follower of the log. For one event loop."""

    def __init__(self, pool: Pool, tail: LogTail) -> None:
        """`pool` leads to the log."""
        self._pool = pool
        self._changes: deque[CommentChange] = deque()
        # Of counts the newest are told, however often they change: one for each comment.
        self._counted: OrderedDict[UUID, CommentChange] = OrderedDict()
        # All that came behind this position is here.
        self._floor = 0
        tail.follow(self, TOPICS)

    def begin(self, position: Position) -> None:
        self._changes.clear()
        self._counted.clear()
        self._floor = position.events

    def take(self, event: TailEvent) -> None:
        for change in changes_in(event):
            if change.kind == COUNTED:
                put_last(self._counted, change)
                if len(self._counted) > MOST_CHANGES:
                    self._floor = max(self._floor, self._counted.popitem(last=False)[1].position)
            else:
                self._changes.append(change)
                if len(self._changes) > MOST_CHANGES:
                    self._floor = max(self._floor, self._changes.popleft().position)

    def take_telemetry(self, event: TailTelemetry) -> None:
        pass

    async def recall(self, position: int) -> None:
        """Read the log behind this position, or as far back as it may be read again."""
        floor = self._floor
        first = max(position, floor - MOST_RECALLED)
        if first >= floor:
            return
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(RECALL, (first, floor, list(TOPICS)))
            rows = await cursor.fetchall()
        if floor != self._floor:
            return
        changes, counted = [], OrderedDict[UUID, CommentChange]()
        for at, stream, topic, state in rows:
            for change in changes_in(TailEvent(at, stream, topic, orjson.loads(state))):
                if change.kind != COUNTED:
                    changes.append(change)
                elif change.comment_id not in self._counted:
                    put_last(counted, change)
        self._changes.extendleft(reversed(changes))
        self._counted = OrderedDict(counted | self._counted)
        self._floor = first

    def since(self, position: int) -> ChangesByVideo | None:
        """Return what happened behind a position; None where that is not known."""
        if position < self._floor:
            return None
        found: defaultdict[UUID, list[CommentChange]] = defaultdict(list)
        for kept in (self._changes, self._counted.values()):
            for change in reversed(kept):
                if change.position <= position:
                    break
                found[change.video_id].append(change)
        for changes in found.values():
            changes.sort(key=by_position)
        return found


def put_last(changes: OrderedDict[UUID, CommentChange], change: CommentChange) -> None:
    """Keep the last change of each comment, in their order."""
    changes[change.comment_id] = change
    changes.move_to_end(change.comment_id)
