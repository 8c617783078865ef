"""What happened to comments lately, for those who follow videos; see `live`."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from domain.comment import Comment
from engine.checkpoints import Pool
from engine.event_store import EVENTS
from engine.log import topics_of
from engine.tail import LogTail, TailEvent, TailTelemetry
from infra.http.shapes import Position

MOST_CHANGES = 10_000
"""So many changes of comments are kept for those who come back."""
MOST_RECALLED = 2_000
"""So many positions behind what is kept are read again, from the log."""

APPEARED, EDITED, TRANSLATED, REMOVED = (
    *("comment", "comment-edited"),
    *("comment-translated", "comment-removed"),
)
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
TOPICS = frozenset(KINDS)
RECALL = f"""
SELECT notification_id, (convert_from(state, 'UTF8')::json->>'video_id')::uuid, originator_id, topic
FROM {EVENTS} WHERE notification_id > %b AND notification_id <= %b AND topic = ANY (%b)
ORDER BY notification_id
""".encode()


class CommentChange(NamedTuple):
    """What happened to a comment that everybody sees, or saw until then."""

    position: int
    video_id: UUID
    comment_id: UUID
    kind: str


ChangesByVideo = Mapping[UUID, Sequence[CommentChange]]


class CommentChanges:
    """The latest changes of comments, in order; a follower of the log. For one event loop."""

    def __init__(self, pool: Pool, tail: LogTail) -> None:
        """`pool` leads to the log."""
        self._pool = pool
        self._changes: deque[CommentChange] = deque()
        # All that came behind this position is here.
        self._floor = 0
        tail.follow(self, TOPICS)

    def begin(self, position: Position) -> None:
        self._changes.clear()
        self._floor = position.events

    def take(self, event: TailEvent) -> None:
        video_id, kind = UUID(event.fields["video_id"]), KINDS[event.topic]
        self._changes.append(CommentChange(event.position, video_id, event.stream_id, kind))
        if len(self._changes) > MOST_CHANGES:
            self._floor = self._changes.popleft().position

    def take_telemetry(self, event: TailTelemetry) -> None:
        pass

    async def recall(self, position: int) -> None:
        """Read the log behind this position, or as far back as it may be read again."""
        floor = self._floor
        first = max(position, floor - MOST_RECALLED)
        if first >= floor:
            return
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(RECALL, (first, floor, list(KINDS)))
            rows = await cursor.fetchall()
        if floor == self._floor:
            self._changes.extendleft(
                CommentChange(position, video_id, comment_id, KINDS[topic])
                for position, video_id, comment_id, topic in reversed(rows)
            )
            self._floor = first

    def since(self, position: int) -> ChangesByVideo | None:
        """Return what happened behind a position; None where that is not known."""
        if position < self._floor:
            return None
        found: defaultdict[UUID, list[CommentChange]] = defaultdict(list)
        for change in reversed(self._changes):
            if change.position <= position:
                break
            found[change.video_id].append(change)
        return {video_id: changes[::-1] for video_id, changes in found.items()}
