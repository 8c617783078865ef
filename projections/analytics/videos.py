"""The videos as counting needs them: owner, length, category, and which of them can be listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.model import Aggregate
from domain.upload import Upload
from engine.log import event_id
from infra.advisory_locks import Lock, lock_in_transaction
from projections.analytics.calendar import by_days
from projections.analytics.ingest import Store, StoredBatch
from projections.analytics.judgement import Key
from projections.integration_events import EVENTS_SOURCE, Message

START = b"""
INSERT INTO analytics.videos (video_id, owner, category)
VALUES (%(id)s, %(owner)s, %(category)s) ON CONFLICT DO NOTHING
"""
SHOW = b"""
UPDATE analytics.videos SET listed = (%(visibility)s = 'public') WHERE video_id = %(id)s
"""
COMPLETE = b"UPDATE analytics.videos SET completed_at = %(at)s WHERE video_id = %(id)s"
CHANGE = b"UPDATE analytics.videos SET category = %(category)s WHERE video_id = %(id)s"
MEASURE = b"UPDATE analytics.videos SET duration_seconds = %(duration)s WHERE video_id = %(id)s"
DISOWN = b"UPDATE analytics.videos SET owner = %(owner)s WHERE video_id = %(id)s"
REMOVE = b"UPDATE analytics.videos SET removed = true WHERE video_id = %(id)s"
# Nobody can watch what was never completed.
FORGET = b"DELETE FROM analytics.videos WHERE video_id = %(id)s AND completed_at IS NULL"

# When something was seen of them; mostly nothing, where they have just begun.
SEEN = b"""
SELECT video_id, min(earliest), max(latest) FROM analytics.sessions
WHERE video_id = ANY (%b::uuid[]) GROUP BY video_id
"""
# Those in which the owner's own was taken for somebody else's, since it came before the owner.
OWNERS = b"""
SELECT a.video_id::text, a.metadata->>'session'
FROM analytics.video_analytics a JOIN analytics.videos v USING (video_id)
WHERE v.video_id = ANY (%b::uuid[]) AND a.user_id = v.owner AND a."timestamp" BETWEEN %b AND %b
  AND a.event_type IN ('view', 'watch_time') AND NOT (a.metadata->>'own')::boolean
"""
# What came of the owner before it was known that this is the owner.
PARTICIPANTS = b"""
SELECT p.video_id::text, p.viewer FROM analytics.participants p JOIN analytics.videos v
    ON v.video_id = p.video_id AND v.owner = p.viewer
WHERE v.video_id = ANY (%b::uuid[])
"""
SESSIONS = b"""
SELECT video_id::text, session::text FROM analytics.sessions WHERE video_id = ANY (%b::uuid[])
"""

WRITES: Mapping[type[Aggregate.Event], bytes] = {
    Upload.Started: START,
    Upload.VisibilityChanged: SHOW,
    Upload.Completed: COMPLETE,
    Upload.Aborted: FORGET,
    Upload.Expired: FORGET,
    Upload.DetailsChanged: CHANGE,
    Upload.SpeechTranscribed: MEASURE,
    Upload.Disowned: DISOWN,
    Upload.Removed: REMOVE,
}


def listed(video: LiteralString) -> LiteralString:
    """Return the condition that a row of analytics.videos can be ranked and recommended."""
    return f"NOT {video}.removed AND {video}.listed AND {video}.completed_at IS NOT NULL"


KINDS = {event.TOPIC: event for event in WRITES}
UPLOAD_TOPICS = frozenset(KINDS)


class UploadChange(NamedTuple):
    """What an event of an upload says, by the names that the statements use."""

    kind: type[Aggregate.Event]
    values: Mapping[str, Any]


def apply(conn: Connection[TupleRow], store: Store, batch: Sequence[UploadChange]) -> StoredBatch:
    """Take in the changes of videos, in order, and correct what was counted before they were known.

    Run it in a transaction; to repeat it changes nothing.
    """
    lock_in_transaction(conn, Lock.ANALYTICS_ROWS)
    for change in batch:
        conn.execute(WRITES[change.kind], change.values, prepare=True)
    begun, measured = (
        [change.values["id"] for change in batch if change.kind is kind]
        for kind in (Upload.Started, Upload.SpeechTranscribed)
    )
    again = _keys(conn, SESSIONS, measured) if measured else set()
    seen: list[tuple[UUID, datetime, datetime]] = []
    if begun:
        seen = conn.execute(SEEN, (begun,)).fetchall()
    for videos, first, last in by_days(seen):
        again |= _keys(conn, OWNERS, videos, first, last)
    owners = _keys(conn, PARTICIPANTS, begun) if begun else set()
    return store.recount(conn, again, owners)


def _keys(
    conn: Connection[TupleRow], query: bytes, videos: list[UUID], *times: datetime
) -> set[Key]:
    return {(row[0], row[1]) for row in conn.execute(query, (videos, *times)).fetchall()}


def message(position: int, event: Aggregate.Event) -> Message:
    """Return the message of one of the events in WRITES, for the analytics alone."""
    value = {
        "id": event.originator_id,
        "at": event.timestamp,
        "owner": event.owner if isinstance(event, Upload.Event) else None,
        "category": getattr(event, "category", None),
        "duration": getattr(event, "duration_seconds", None),
        "visibility": getattr(event, "visibility", None),
    }
    return Message(
        type(event).TOPIC,
        event_id(event.originator_id, event.originator_version),
        str(event.originator_id),
        orjson.dumps(value),
        position,
        event.timestamp,
        EVENTS_SOURCE,
        event.correlation_id,
    )


def change_of(topic: str, value: Mapping[str, Any]) -> UploadChange:
    """Return the change that such a message tells."""
    at = datetime.fromisoformat(value["at"])
    return UploadChange(KINDS[topic], {**value, "id": UUID(value["id"]), "at": at})
