"""The `eventsourcing` library as it comes: the baseline of appending and of projecting."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, Tracking
from eventsourcing.postgres import (
    PostgresApplicationRecorder,
    PostgresDatastore,
    PostgresFactory,
    PostgresTrackingRecorder,
)
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row
from psycopg.sql import SQL

from domain.video_likes import VideoLikes
from engine.log import EventMapper, Recorded, topics_of
from engine.projection import Projection as OurProjection

LOOK_SECONDS = 0.02
COUNTS = "CREATE TABLE IF NOT EXISTS stock_counts (video_id uuid PRIMARY KEY, likes bigint)"
ADD = """
INSERT INTO stock_counts AS c (video_id, likes) VALUES (%b, %b)
ON CONFLICT (video_id) DO UPDATE SET likes = c.likes + excluded.likes
"""


def environment(url: str) -> dict[str, str]:
    """The library's settings for a database, with its own defaults where it has some."""
    options = conninfo_to_dict(url)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(options["dbname"]),
        "POSTGRES_HOST": str(options["host"]),
        "POSTGRES_PORT": str(options["port"]),
        "POSTGRES_USER": str(options["user"]),
        "POSTGRES_PASSWORD": "",
    }


def stock_recorder(url: str) -> PostgresApplicationRecorder:
    """The stock recorder, with its tables made."""
    recorder = PostgresFactory(environment(url)).application_recorder()
    if not isinstance(recorder, PostgresApplicationRecorder):
        raise TypeError(f"Not the stock recorder: {type(recorder).__name__}.")
    return recorder


class Log(Application[UUID]):
    """Reads our event table, under the name that the library derives, with our own codec."""

    name = "backlot"

    def construct_mapper(self) -> Mapper[UUID]:
        return EventMapper()


class Counts(PostgresTrackingRecorder):
    """Likes per video: the same counts as ours, without the rows of who likes what."""

    def __init__(self, datastore: PostgresDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        self.sql_create_statements.append(SQL(COUNTS).format())

    def add(self, video_id: UUID, delta: int, tracking: Tracking) -> None:
        """Change one count; the library commits it together with the position."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(ADD, (video_id, delta), prepare=True)


class CountLikes(Projection[Counts]):
    """The library's projection: one call, and so one transaction, per event."""

    name = "stock_likes"
    topics = (VideoLikes.Liked.TOPIC, VideoLikes.Unliked.TOPIC)

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        delta = 1 if isinstance(domain_event, VideoLikes.Liked) else -1
        self.view.add(domain_event.video_id, delta, tracking)


def rows_of(model: OurProjection) -> tuple[type[Projection[Any]], type[PostgresTrackingRecorder]]:
    """The same rows as a projection of ours, by the same statements, as the library makes them."""

    class Rows(PostgresTrackingRecorder):
        def apply(self, event: Any, tracking: Tracking) -> None:
            with self.datastore.transaction(commit=True) as cursor:
                self._insert_tracking(cursor, tracking)
                with cursor.connection.cursor(binary=True, row_factory=tuple_row) as ours:
                    model.apply([Recorded(tracking.notification_id, event)], ours)

    class MakeRows(Projection[Rows]):
        name = f"stock_{model.name}"
        topics = tuple(topic for event in model.events for topic in topics_of(event))

        def process_event(self, domain_event: Any, tracking: Tracking) -> None:
            self.view.apply(domain_event, tracking)

    return MakeRows, Rows


def project(
    url: str,
    seconds: float,
    projection: type[Projection[Any]] = CountLikes,
    view: type[PostgresTrackingRecorder] = Counts,
) -> float:
    """Let the stock runner go on for a while from where it stands; returns its events/s."""
    runner: ProjectionRunner[Any, Any] = ProjectionRunner(
        application_class=Log,
        projection_class=projection,
        view_class=view,
        env=environment(url),
    )
    with runner:
        started, first = _await_change(runner.view, -1)
        time.sleep(seconds)
        ended, last = _await_change(runner.view, runner.view.max_tracking_id(Log.name) or 0)
    return (last - first) / (ended - started)


def _await_change(view: PostgresTrackingRecorder, seen: int) -> tuple[float, int]:
    """When the position was seen to move, and where to."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        position = view.max_tracking_id(Log.name) or -1
        if position > seen:
            return time.perf_counter(), position
        time.sleep(LOOK_SECONDS)
    raise TimeoutError("The stock projection does not move.")
