"""Brings a history into a database, through the sinks that a running Backlot has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID, uuid5

from psycopg import Connection
from psycopg.rows import TupleRow

from benchmarks.community import Film, History, View
from domain.upload import Upload
from engine.connections import connect
from engine.messages import IncomingMessage, RawMessage, Sink
from projections import integration_events
from projections.recommendations.co_occurrence import rank_categories
from projections.recommendations.model import Weighing
from workers.analytics import Analytics, AnalyticsVideos
from workers.recommendations import EngagementSink

BATCH = 2_000
REPEAT = timedelta(hours=1)
NAMES = UUID(int=0xB1E)


def remember(url: str, history: History, weighing: Weighing) -> None:
    """Hand all of it to the sinks, in order of time, as messages from the log would be."""
    uploads = [message for film in history.films for message in _uploaded(film)]
    views = [message for view in history.views for message in _done(view)]
    views.sort(key=lambda message: str(message.value.get("ts") or message.value["timestamp"]))
    with connect(url, "bench") as conn:
        _keep(conn, AnalyticsVideos(REPEAT), uploads)
        _keep(conn, Analytics(REPEAT), views)
        _keep(conn, EngagementSink(weighing), views)
        rank_categories(conn, weighing)
        conn.execute(b"ANALYZE")


def _keep(conn: Connection[TupleRow], sink: Sink, messages: Iterable[IncomingMessage]) -> None:
    sink.prepare(conn)
    wanted = [message for message in messages if message.topic in sink.topics]
    for batch in _batches(wanted):
        with conn.transaction():
            sink.store(conn, batch)


def _batches(messages: Sequence[IncomingMessage]) -> Iterator[list[IncomingMessage]]:
    left = iter(messages)
    while batch := list(islice(left, BATCH)):
        yield batch


def _uploaded(film: Film) -> Iterator[IncomingMessage]:
    """Begun and completed at once."""
    value = {"id": str(film.video_id), "at": film.since.isoformat(), "owner": film.owner}
    for kind in (Upload.Started, Upload.Completed):
        yield _message(kind.TOPIC, {**value, "category": film.category, "duration": None})


def _done(view: View) -> Iterator[IncomingMessage]:
    told = {"videoId": str(view.video_id), "userId": view.user}
    after = view.at + timedelta(seconds=view.seconds or 0)
    if view.seconds is not None:
        session = {**told, "sessionId": str(view.session)}
        yield _happened(
            integration_events.VIDEO_VIEWED, view, {**session, "timestamp": _iso(view.at)}
        )
        watched = {**session, "timestamp": _iso(after), "seconds": view.seconds}
        yield _happened(integration_events.VIDEO_WATCH_TIME, view, watched)
    if view.liked:
        yield _happened(
            integration_events.VIDEO_LIKED, view, {**told, "action": "like", "ts": _iso(after)}
        )


def _happened(topic: str, view: View, value: Mapping[str, Any]) -> IncomingMessage:
    return _message(topic, {"id": str(uuid5(view.session, topic)), **value})


def _message(topic: str, value: Mapping[str, Any]) -> IncomingMessage:
    id_ = uuid5(NAMES, f"{topic} {value['id']}")
    raw = RawMessage(topic, ("history", 0), 0)
    return IncomingMessage(id_, topic, str(value["id"]), value, 0, None, lambda: raw)


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")
