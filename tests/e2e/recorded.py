"""What lies in the event table, read past the program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg

from domain.comment import Comment
from domain.model import Aggregate
from domain.video_likes import VideoLikes
from engine.log import EventMapper
from tests.e2e.program import Program

EVENTS = """
SELECT notification_id, originator_id, originator_version, topic, state
FROM backlot_events ORDER BY notification_id
"""


@dataclass(frozen=True)
class Recorded:
    """Every event, by position, and each with a version and a position of its own.

    `names` are the user ids of who acted, by their pseudonyms.
    """

    events: list[Aggregate.Event]
    positions: list[int]
    names: Mapping[str, str]

    @classmethod
    def of(cls, program: Program) -> Recorded:
        mapper, persons = EventMapper(), program.persons()
        mapper.ciphers = persons
        with psycopg.connect(program.database_url) as conn:
            rows = conn.execute(EVENTS).fetchall()
        events = [
            mapper.decode(stream, version, topic, bytes(state))
            for _, stream, version, topic, state in rows
        ]
        names = persons.names({event.actor for event in events})
        return cls(events, [row[0] for row in rows], names)

    def comments(self) -> Counter[str]:
        """How often each text was posted."""
        return Counter(event.content for event in self.events if isinstance(event, Comment.Posted))

    def likes(self, video: str) -> Counter[str]:
        """How often each viewer's like of the video was recorded."""
        return self._viewers(video, VideoLikes.Liked)

    def unlikes(self, video: str) -> Counter[str]:
        """How often each viewer's like of the video was taken back."""
        return self._viewers(video, VideoLikes.Unliked)

    def _viewers(self, video: str, kind: type[VideoLikes.Event]) -> Counter[str]:
        return Counter(
            self.names[event.viewer]
            for event in self.events
            if isinstance(event, kind) and str(event.video_id) == video
        )
