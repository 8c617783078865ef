"""One's own history out of an export of the event log, to judge recommendations by.

The log holds who likes what; views are telemetry, of which there is no export.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from uuid import UUID

from benchmarks.community import Film, History, View
from domain.upload import Upload
from domain.video_likes import VideoLikes
from engine.archive.verification import read_header, read_rows
from engine.log import EventMapper

WANTED = (Upload.Started, Upload.Completed, VideoLikes.Liked)
TOPICS = frozenset(event.TOPIC for event in WANTED)


def exported(path: Path) -> History:
    """What `backlot events export` (jsonl) wrote; raises ExportUnusable.

    Only what became a video counts; a like that was taken back was one all the same.
    """
    read_header(path)
    mapper, begun, films, likes = (
        EventMapper(),
        dict[UUID, Film](),
        dict[UUID, Film](),
        list[View](),
    )
    for row in read_rows(path):
        if row.topic not in TOPICS or row.state is None:
            continue
        event = mapper.decode(row.stream_id, row.version, row.topic, row.state)
        if isinstance(event, VideoLikes.Liked):
            liked = View(event.timestamp, event.viewer, event.video_id, row.stream_id, None, True)
            likes.append(liked)
        elif isinstance(event, Upload.Started):
            begun[row.stream_id] = _film(event, event.timestamp)
        elif isinstance(event, Upload.Completed) and row.stream_id in begun:
            films[row.stream_id] = replace(begun[row.stream_id], since=event.timestamp)
    likes.sort(key=lambda view: (view.at, view.session))
    return History(list(films.values()), [like for like in likes if like.video_id in films])


def _film(event: Upload.Started, at: datetime) -> Film:
    return Film(event.originator_id, event.title, event.category, event.owner, at)
