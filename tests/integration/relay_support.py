"""What tests of published messages share: one of each, a running relay, what lies in the topics."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from domain.person import Person, VideosFate
from domain.person import stream_id as person_stream
from domain.upload import Visibility
from engine.log import event_id
from engine.subscription import Notifications, Subscription
from engine.telemetry import Telemetry, TelemetryEvent
from infra.kafka import Reader, Record
from infra.settings.adapters import KafkaSettings
from projections.integration_events import TOPICS
from tests.integration.analytics_support import REPEAT
from tests.integration.consuming_support import VIDEO
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, origin
from tests.support import DEADLINE_SECONDS, ended
from workers.relay import subscribe_relay

SEEN = TelemetryEvent(
    uuid4(), "video.viewed", VIDEO, "ann", datetime.now(UTC), {"sessionId": str(uuid4())}, "asked"
)

IN_LIST = {
    "listId": str(uuid4()),
    "givenAt": "2026-11-22T09:00:00Z",
    "place": 1,
    "source": "neighbour",
    "variant": "default",
}
DETAILS: dict[str, dict[str, Any]] = {
    "video.watch_time": {"sessionId": str(uuid4()), "seconds": 2.5},
    "video.shared": {"channel": "mail"},
    "recommendation.shown": IN_LIST,
    "recommendation.chosen": IN_LIST,
}


async def watch(url: str, *events: TelemetryEvent) -> None:
    telemetry = Telemetry(url, repeat=REPEAT)
    telemetry.open()
    for event in events:
        await telemetry.record(event)
    await telemetry.close()


async def watch_everything(url: str) -> int:
    """One of each kind of telemetry that is told; how many messages that makes."""
    others = [
        SEEN._replace(event_id=uuid4(), topic=each, details=details)
        for each, details in DETAILS.items()
    ]
    await watch(url, SEEN, *others)
    return 1 + len(others)


def write_everything(writer: Writer) -> int:
    """One of each kind of event that is told; how many messages that makes."""
    shown = writer.video()
    writer.show(shown, Visibility.UNLISTED)
    video = shown.id
    writer.like(video, "ann")
    writer.unlike(video, "ann")
    comment = writer.comment(video)
    writer.like_comment(comment, "ann")
    writer.save(writer.wish_comment("unlike", comment, "ann"))
    comment.edit("¡Muy bonito!", origin("bob"))
    comment.translate(2, "es", "en", "Very beautiful!", "model", "1", origin("translator"))
    comment.delete(origin("bob"))
    aborted, expired = writer.upload(), writer.upload()
    aborted.abort(origin())
    expired.expire(origin("expiry"))
    person = Person.blank(person_stream("ann"))
    person.request_forgetting("ann", VideosFate.DELETE, origin("root"))
    person.finish_forgetting("ann", {}, origin("privacy"))
    writer.save(comment, aborted, expired, person)
    return 13


def make_relay(
    database_url: str, servers: str, notifications: Notifications, **options: Any
) -> Subscription[Any]:
    given: dict[str, Any] = {"batch_events": 50, "poll_seconds": 0.2, **options}
    return subscribe_relay(
        database_url,
        KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,)),
        notifications=notifications,
        **given,
    )


@asynccontextmanager
async def relaying(database_url: str, servers: str, **options: Any) -> AsyncIterator[None]:
    """A relay as in a process of Backlot; ended as by a cancellation."""
    notifications = Notifications(database_url)
    relay = make_relay(database_url, servers, notifications, **options)
    tasks = [asyncio.create_task(notifications.run()), asyncio.create_task(relay.run())]
    try:
        yield
    finally:
        await ended(*tasks)


class Topics:
    """Everything that is published, read again and again from where it was read to."""

    def __init__(self, servers: str) -> None:
        self.records: list[Record] = []
        self._reader = Reader(KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,)), TOPICS)

    async def __aenter__(self) -> Topics:
        await self._reader.start({})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.stop()

    async def until(self, count: int, seconds: float = DEADLINE_SECONDS) -> None:
        """Read until there are that many different messages."""
        async with asyncio.timeout(seconds):
            while len(set(self.ids)) < count:
                self.records += await self._reader.read(0.1, 1000)

    async def drain(self) -> None:
        """Read what there is."""
        while found := await self._reader.read(0.3, 1000):
            self.records += found

    @property
    def ids(self) -> list[str]:
        return [dict(record.headers)["ce_id"].decode() for record in self.records]

    def positions(self) -> dict[tuple[str, bytes | None], list[int]]:
        """The positions per topic and key, each where it came first."""
        found: dict[tuple[str, bytes | None], list[int]] = {}
        for record in self.records:
            position = int(dict(record.headers)["position"])
            known = found.setdefault((record.partition.topic, record.key), [])
            if position not in known:
                known.append(position)
        return found


def relayed(database_url: str) -> dict[str, int]:
    """How far each source is published."""
    return dict(
        rows(database_url, "SELECT source, position FROM backlot_checkpoints WHERE kind = 'relay'")
    )


def expected_ids(database_url: str, topics: Iterable[str]) -> set[str]:
    """The ids of the events of these stored topics."""
    query = "SELECT originator_id, originator_version FROM backlot_events WHERE topic = ANY (%s)"
    return {str(event_id(*row)) for row in rows(database_url, query, [list(topics)])}


async def _run(database_url: str, servers: str) -> None:
    async with relaying(database_url, servers):
        sys.stderr.write("ready\n")
        sys.stderr.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    # A process of its own, to be killed.
    asyncio.run(_run(*sys.argv[1:]))
